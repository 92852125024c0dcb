"""Step 5 of 7 (networks): the memory of a stack for batches of one size, reused in every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xsoilsm.training.layout import HEAD, JOINED, KERNEL, StackLayout

__all__ = ["BITS", "CHANNELS", "LAST_POOL", "PAD", "STEPS", "Arena", "First", "Space"]

STEPS, CHANNELS = 46, 3
PAD = KERNEL // 2
LAST_POOL = (4, 4, 3)
"""Lengths of the windows of the third pooling."""

BITS = (32 * STEPS, 22 * 16 + 11 * 4)
"""Values per sample that dropout decides about: of the first, and of the other convolutions."""

Tensor = torch.Tensor
Arena = dict[tuple[str, tuple[int, ...]], torch.Tensor]
"""Buffers by role and shape, shared by stacks that never work at the same time."""


@dataclass(frozen=True)
class First:
    """What the backward pass of the first convolution needs."""

    product: Tensor
    offset: Tensor
    inverse: Tensor
    scale: Tensor


class Space:
    """Buffers of a stack for batches of one size."""

    first: First
    kept: float
    """What dropout multiplies values with that it keeps; 1 without dropout."""

    def __init__(
        self, layout: StackLayout, n: int, device: torch.device, arena: Arena, tile: int
    ) -> None:
        m, w = len(layout.shapes), layout.width

        def buffer(role: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            key = (role, shape)
            if key not in arena:
                arena[key] = torch.zeros(shape, dtype=dtype, device=device)
            return arena[key]

        words = STEPS * n + -(-BITS[1] * n // 32)
        self.words = buffer("words", m, -(-words // 2), dtype=torch.int64)
        self.first_bits = buffer("first_bits", tile, BITS[0] * n, dtype=torch.int32)
        spread = 32 * (2 * self.words.shape[1] - STEPS * n)
        self.bits = buffer("bits", m, spread, dtype=torch.int32)
        self.first_active = buffer("first_active", m, 32, STEPS, n)
        shapes = ((23, 32, 16), (11, 16, 4))
        self.padded = [buffer("padded", m, t + 2 * PAD, c, n) for t, c, _ in shapes]
        self.d_padded = [buffer("d_padded", m, t + 2 * PAD, c, n) for t, c, _ in shapes]
        self.convolved = [buffer("convolved", m, t, f, n) for t, _, f in shapes]
        # The edges are never written to and stay zero.
        self.d_convolved = [buffer("d_convolved", m, t + 4 * PAD, f, n) for t, _, f in shapes]
        self.conv_active = [
            buffer("conv_active", m, 22, 16, n),
            buffer("conv_active", m, 11, 4, n),
        ]
        self.by_windows = [buffer("by_windows", t, KERNEL * c, f) for t, c, f in shapes]
        self.pooled = buffer("pooled", m, 3, 4, n)
        self.joined = buffer("joined", m, JOINED, n)
        # Not shared: rows of blocks that a member does not have are never written to.
        self.features = torch.zeros((m, layout.inputs(layout.depth), n), device=device)
        self.d_features = buffer("d_features", *self.features.shape)
        self.linear: dict[str, Tensor] = {}
        self.active: dict[str, Tensor] = {}
        for block, k in enumerate(layout.active):
            for layer in (1, 2, 3):
                name = f"block{block}.{layer}"
                self.linear[name] = buffer(f"linear {name}", k, w, n)
                if layer < 3:
                    self.active[name] = buffer(f"active {name}", k, w, n)
        self.d_linear, self.d_active = buffer("d_linear", m, w, n), buffer("d_active", m, w, n)
        self.head, self.centred, self.hidden = (
            buffer(role, m, HEAD, n) for role in ("head", "centred", "hidden")
        )
        shares = [1.0 / length for length in LAST_POOL]
        self.pool_factors = torch.tensor(shares, device=device)[:, None, None]
        buffers = dict(zip(("conv2", "conv3"), self.convolved, strict=True)) | self.linear
        buffers |= {"norm": self.joined, "head": self.centred}
        self.squares = {name: buffer("squares", *y.shape) for name, y in buffers.items()}
        self.statistics = torch.zeros(layout.running.size, device=device)
        self.unbias = torch.ones_like(self.statistics)
        views, factors = layout.running.views(self.statistics), layout.running.views(self.unbias)
        self.mean = {name: views[f"{name}.mean"] for name in (*buffers, "conv1")}
        self.variance = {name: views[f"{name}.var"] for name in (*buffers, "conv1")}
        for name, variance in self.variance.items():
            y = buffers.get(name, self.first_active)
            count = y.numel() // variance.numel()
            factors[f"{name}.var"].fill_(count / (count - 1))
        self.inverse = {name: torch.empty_like(v) for name, v in self.variance.items()}
        self.zeros = torch.zeros(m * max(w, HEAD), device=device)
