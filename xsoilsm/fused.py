"""Step 5 of 7 (networks): a convolution on a GPU, its ReLU and its pooling in one pass.

What the first two convolutions give are by far the most numbers of all. Written once, as sums of
two positions, they are a third of the traffic that separate operations make. Written in Triton,
which comes with PyTorch for GPUs on Linux; import this where it may be absent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["convolve_and_pool"]

PIXELS = 128
"""Pixels of a program, whose sums stay in registers."""


@triton.jit  # type: ignore[untyped-decorator]
def _convolve(  # type: ignore[no-untyped-def]
    source, weights, biases, out, batch, places_in, places, channels,
    CHANNELS: tl.constexpr, FILTERS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    # Program (pixels, position after pooling, member).
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    position = tl.program_id(1)
    member = tl.program_id(2).to(tl.int64)
    inside = pixel < batch
    filters = tl.arange(0, FILTERS)
    bias = tl.load(biases + member * FILTERS + filters)
    one = tl.zeros((FILTERS, PIXELS), dtype=tl.float32) + bias[:, None]
    two = tl.zeros((FILTERS, PIXELS), dtype=tl.float32) + bias[:, None]
    weight = weights + member * 5 * CHANNELS * FILTERS + filters
    step = (CHANNELS + 1) * batch  # a channel of ones follows the others
    x_at = source + (member * places_in + 2 * position) * step + pixel
    for channel in range(CHANNELS):
        x = tl.load(x_at + channel * batch, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + channel * FILTERS)
        one += w[:, None] * x[None, :]
        for k in tl.static_range(1, 5):
            x = tl.load(x_at + k * step + channel * batch, mask=inside, other=0.0).to(tl.float32)
            two += w[:, None] * x[None, :]
            w = tl.load(weight + (k * CHANNELS + channel) * FILTERS)
            one += w[:, None] * x[None, :]
        x = tl.load(x_at + 5 * step + channel * batch, mask=inside, other=0.0).to(tl.float32)
        two += w[:, None] * x[None, :]
    # A comparison keeps NaN, a maximum would not.
    pooled = tl.where(one < 0, 0.0, one) + tl.where(two < 0, 0.0, two)
    row = (member * places + 2 + position) * channels + filters
    target = out + row[:, None] * batch + pixel[None, :]
    tl.store(target, pooled, mask=inside[None, :])


def convolve_and_pool(
    source: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor, out: torch.Tensor
) -> None:
    """Convolve for all members, apply ReLU and sum pairs of positions.

    Computes, in the current stream; in float32, whatever the type of source and result.

    Parameters
    ----------
    source : (places, channels + 1, batch) or (members, places, channels + 1, batch) Tensor
        Padded by two places on either side; the last channel is not read.
    weights : (members, 5, channels, filters) Tensor of float32
        As many filters as a power of two.
    biases : (members, filters) Tensor of float32
    out : (members, places, filters or more, batch) Tensor
        Neither padding nor further channels are written.
    """
    members, places, channels, batch = out.shape
    grid = (triton.cdiv(batch, PIXELS), places - 4, members)
    _convolve[grid](
        *(source, weights, biases, out, batch),
        *(source.shape[1] if source.ndim == 4 else 0, places, channels),
        CHANNELS=weights.shape[2],
        FILTERS=weights.shape[3],
        PIXELS=PIXELS,
        num_warps=4,
        enable_fp_fusion=True,
    )
