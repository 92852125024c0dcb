"""Step 5 of 7 (networks): all members of an ensemble in few, large products of matrices.

What a GPU computes. Rows are features and columns pixels. The windows of a convolution are
consecutive rows, and the positions that a pooling sums become one product with a banded matrix,
for all members at once. Dense layers are batched over the members of one width, the deepest
first, so that block after block a leading part of them goes on. Biases are columns of weights
that meet rows of ones, so that nothing is added afterwards, and every buffer is made once: the
same operations on the same memory can be recorded and repeated.

The same products run on a CPU, where the tests compare them. On a GPU the first two convolutions
go through `xsoilsm.fused` where that works, after a comparison of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.folding import FoldedMember, Layer
from xsoilsm.precision import KNOWN, Precision, tensor_cores

__all__ = ["Grouped", "Work"]

SNAPSHOT, CHANNELS, STEPS = 18, 3, 46
KERNEL, PAD = 5, 2
INPUTS = 32
"""Rows before the features of block 1: the snapshot, 12 of the convolutions, two of ones."""

ONES = 30
HIDDEN = 32
WINDOWS = ((2,) * 23, (2,) * 11, (4, 4, 3))
"""Lengths of the windows of each pooling."""

_log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Convolve = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""From source, weights and biases to what is pooled, see `xsoilsm.fused`."""


@dataclass(frozen=True)
class _Group:
    """Members of one width, the deepest first.

    Parameters
    ----------
    start, count : int
        Which of all members these are.
    width : int
    blocks : tuple of (Tensor, Tensor, Tensor)
        Weights (members that are that deep, width, inputs) of the layers of each block.
    head : Tensor
        Weights (count, 32, inputs); zero for blocks that a member does not have.
    """

    start: int
    count: int
    width: int
    blocks: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]
    head: torch.Tensor

    @property
    def members(self) -> slice:
        """Which of all members these are."""
        return slice(self.start, self.start + self.count)

    @property
    def rows(self) -> int:
        """Rows of the inputs and the features of all blocks."""
        return INPUTS + len(self.blocks) * self.width


@dataclass(frozen=True)
class Work:
    """Buffers of one batch, pixels last. The first three are for the caller.

    Parameters
    ----------
    series : (3, 46, batch) Tensor of float32
        What `Grouped.convolve` reads.
    snapshot : (18, batch) Tensor of float32
        What `Grouped.dense` reads besides.
    result : (2, batch) Tensor of float32
        Mean and spread, which `Grouped.dense` writes.
    steps : (50, 4, batch) Tensor
        The series, padded, with ones as a fourth channel.
    padded : tuple of Tensor
        Inputs (member, step, channel, batch) of the second and third convolution.
    sums : tuple of Tensor
        A window of each convolution before pooling.
    pooled : (members, 4, 3, batch) Tensor
    features : tuple of (members, rows, batch) Tensor
        Of each group: inputs, then outputs of blocks.
    inner : tuple of (Tensor, Tensor)
        Of each group: outputs of a block's first two layers, then ones.
    hidden : (members, 32, batch) Tensor
    out : (members, 1, batch) Tensor of float32
    """

    series: torch.Tensor
    snapshot: torch.Tensor
    result: torch.Tensor
    steps: torch.Tensor
    padded: tuple[torch.Tensor, torch.Tensor]
    sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    pooled: torch.Tensor
    features: tuple[torch.Tensor, ...]
    inner: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    hidden: torch.Tensor
    out: torch.Tensor


class Grouped:
    """Folded members on a device, arranged for products over many of them.

    Parameters
    ----------
    members : sequence of FoldedMember
    device : str or torch.device
    precision : str, default "float32"
        One of `xsoilsm.precision.KNOWN`; on a CPU the others are imitated.
    fused : bool, default True
        Convolve, apply ReLU and pool in one pass on a GPU, where that works; in float32 always.
    """

    def __init__(
        self,
        members: Sequence[FoldedMember],
        device: str | torch.device,
        precision: str = "float32",
        *,
        fused: bool = True,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            # Threads have a current GPU each; the networks stay on this one.
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.precision: Precision = KNOWN[precision]
        ordered = sorted(members, key=lambda member: (member.width, -member.depth))
        self.members = len(ordered)
        first, second, third = zip(*(member.convolutions for member in ordered), strict=True)
        # One more filter gives a half at each position: the sum of two is a row of ones.
        bands = self._banded(first, CHANNELS, 2, ones_out=True)
        self._first = bands.flatten(0, 1)
        self._second = self._banded(second, 32, 2)
        self._third = self._banded(third, 16, 4, bias_in=False)
        bias = np.stack([layer.bias for layer in third])
        self._third_bias = self._put(np.tile(bias, (1, 4))[:, :, None])
        widths = sorted({member.width for member in ordered})
        self.groups = tuple(self._group(ordered, width) for width in widths)
        out = np.stack([member.out.weight for member in ordered])
        self._out = torch.from_numpy(out).to(self.device)
        out_bias = np.stack([member.out.bias for member in ordered])
        self._out_bias = torch.from_numpy(out_bias[:, :, None]).to(self.device)
        self._packed = [self._pack(first, CHANNELS), self._pack(second, 32)]
        self.fused: Convolve | None = None
        if self.device.type == "cuda":
            self.fused = _fused(self.device, self._packed[0]) if fused else None
            # Other streams will read the weights.
            torch.cuda.current_stream(self.device).synchronize()

    def work(self, batch: int, device: str | torch.device | None = None) -> Work:
        """Make the buffers of a batch of pixels.

        Computes.
        """
        device = self.device if device is None else torch.device(device)
        members, dtype = self.members, self.precision.dtype

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros((*shape, batch), dtype=dtype, device=device)

        features = tuple(zeros(group.count, group.rows) for group in self.groups)
        for rows in features:
            rows[:, ONES:INPUTS] = 1
        inner = tuple(
            (
                zeros(group.count, _with_ones(group.width)),
                zeros(group.count, _with_ones(group.width)),
            )
            for group in self.groups
        )
        for group, pair in zip(self.groups, inner, strict=True):
            for rows in pair:
                rows[:, group.width :] = 1
        steps = zeros(STEPS + 2 * PAD, CHANNELS + 1)
        steps[:, CHANNELS] = 1
        return Work(
            series=zeros(CHANNELS, STEPS, dtype=torch.float32),
            snapshot=zeros(SNAPSHOT, dtype=torch.float32),
            result=zeros(2, dtype=torch.float32),
            steps=steps,
            padded=(zeros(members, 23 + 2 * PAD, 33), zeros(members, 11 + 2 * PAD, 16)),
            sums=(zeros(members, 2, 33), zeros(members, 2, 16), zeros(members, 4, 4)),
            pooled=zeros(members, 4, 3),
            features=features,
            inner=inner,
            hidden=zeros(members, HIDDEN),
            out=zeros(members, 1, dtype=torch.float32),
        )

    @property
    def bytes_per_pixel(self) -> int:
        """Memory that a pixel of a batch takes.

        Computes.
        """
        tensors: list[Any] = [*vars(self.work(1, "meta")).values()]
        total = 0
        while tensors:
            tensor = tensors.pop()
            if isinstance(tensor, tuple):
                tensors += tensor
            else:
                total += tensor.numel() * tensor.element_size()
        return total

    def convolve(self, work: Work) -> None:
        """Put what the convolutions make of the series into the inputs of the dense layers.

        Computes.
        """
        work.steps[PAD:-PAD, :CHANNELS] = work.series.transpose(0, 1)
        _replicate_edges(work.steps)
        if self.fused is None:
            self._convolve_by_products(work)
        else:
            source = work.steps
            for packed, target in zip(self._packed, work.padded, strict=True):
                self.fused(source, *packed, target)
                _replicate_edges(target.transpose(0, 1))
                source = target
        self._convolve_last(work)

    def _convolve_by_products(self, work: Work) -> None:
        """Fill the inputs of the third convolution."""
        product, batch = self.precision.product, work.series.shape[-1]
        steps = work.steps.view(-1, batch)
        sums, target = work.sums[0], work.padded[0]
        for position in range(target.shape[1] - 2 * PAD):
            start = 2 * position * (CHANNELS + 1)
            window = steps[start : start + self._first.shape[-1]]
            product(self._first, window, sums.view(-1, batch))
            sums.relu_()
            torch.add(sums[:, 0], sums[:, 1], out=target[:, PAD + position])
        _replicate_edges(target.transpose(0, 1))

        source, sums, target = target.view(self.members, -1, batch), work.sums[1], work.padded[1]
        for position in range(target.shape[1] - 2 * PAD):
            start = 2 * position * 33
            window = source[:, start : start + self._second.shape[-1]]
            product(self._second, window, sums.view(self.members, -1, batch))
            sums.relu_()
            torch.add(sums[:, 0], sums[:, 1], out=target[:, PAD + position])
        _replicate_edges(target.transpose(0, 1))

    def _convolve_last(self, work: Work) -> None:
        """Do the third convolution, and put sums of its windows into the dense layers' inputs."""
        product, batch = self.precision.product, work.series.shape[-1]
        source, sums = work.padded[1].view(self.members, -1, batch), work.sums[2]
        for number, length in enumerate(WINDOWS[2]):
            start, columns = 4 * number * 16, (length + 2 * PAD) * 16
            part = sums[:, :length].view(self.members, -1, batch)
            weight = self._third[:, : length * 4, :columns]
            product(weight, source[:, start : start + columns], part)
            part.add_(self._third_bias[:, : length * 4]).relu_()
            torch.sum(sums[:, :length], dim=1, out=work.pooled[:, :, number])
        pooled = work.pooled.view(self.members, 12, batch)
        for group, features in zip(self.groups, work.features, strict=True):
            features[:, SNAPSHOT:ONES] = pooled[group.members]

    def dense(self, work: Work) -> None:
        """Put mean and spread of the members for the snapshot into the result.

        Computes.
        """
        product = self.precision.product
        for group, features, inner in zip(self.groups, work.features, work.inner, strict=True):
            features[:, :SNAPSHOT] = work.snapshot
            known = INPUTS
            for block in group.blocks:
                deep = block[0].shape[0]
                outputs = (
                    inner[0][:deep, : group.width],
                    inner[1][:deep, : group.width],
                    features[:deep, known : known + group.width],
                )
                inputs = (features[:deep, :known], inner[0][:deep], inner[1][:deep])
                for weight, source, target in zip(block, inputs, outputs, strict=True):
                    product(weight, source, target)
                    target.relu_()
                known += group.width
            product(group.head, features, work.hidden[group.members])
        work.hidden.relu_()
        torch.bmm(self._out, work.hidden.float(), out=work.out)
        work.out.add_(self._out_bias)
        spread, middle = torch.std_mean(work.out[:, 0], dim=0, correction=0)
        work.result[0], work.result[1] = middle, spread

    def _put(self, values: Float32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, self.precision.dtype)

    def _halves(self, bias: Float32) -> tuple[Float32, Float32]:
        high, low = self.precision.parts(torch.from_numpy(np.ascontiguousarray(bias)))
        return high.numpy(), low.numpy()

    def _banded(
        self,
        layers: Sequence[Layer],
        channels: int,
        length: int,
        *,
        bias_in: bool = True,
        ones_out: bool = False,
    ) -> torch.Tensor:
        """Weights (member, length * filters, (length + 4) * channels) for a window of positions.

        With `bias_in` a channel of ones follows the others, with `ones_out` a filter that
        makes one.
        """
        weight = np.stack([layer.weight for layer in layers])
        members, filters = weight.shape[:2]
        made = filters + ones_out
        band = np.zeros(
            (members, length, made, length + 2 * PAD, channels + bias_in), dtype=np.float32
        )
        bias = np.full((members, made), 0.5, np.float32)
        bias[:, :filters] = np.stack([layer.bias for layer in layers])
        for position in range(length):
            band[:, position, :filters, position : position + KERNEL, :channels] = weight.reshape(
                members, filters, KERNEL, channels
            )
        if bias_in:
            halves = self._halves(bias)
            for step, half in enumerate(halves):
                band[:, :, :, step, channels] = half[:, None]
        return self._put(band.reshape(members, length * made, -1))

    def _pack(self, layers: Sequence[Layer], channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (member, 5, channel, filter) and biases (member, filter) in float32."""
        weight = np.stack([layer.weight for layer in layers])
        weight = weight.reshape(*weight.shape[:2], KERNEL, channels).transpose(0, 2, 3, 1)
        bias = np.stack([layer.bias for layer in layers])
        return (
            torch.from_numpy(np.ascontiguousarray(weight)).to(self.device),
            torch.from_numpy(bias).to(self.device),
        )

    def _group(self, ordered: Sequence[FoldedMember], width: int) -> _Group:
        chosen = [member for member in ordered if member.width == width]
        depths = [member.depth for member in chosen]
        blocks = []
        for number in range(depths[0]):
            layers = [m.blocks[number] for m in chosen if m.depth > number]
            first, second, third = zip(*layers, strict=True)
            known = INPUTS + number * width
            inner = _with_ones(width)
            blocks.append(
                (
                    self._with_bias(first, known, ONES),
                    self._with_bias(second, inner, width),
                    self._with_bias(third, inner, width),
                )
            )
        heads = [member.head for member in chosen]
        return _Group(
            start=[member.width for member in ordered].index(width),
            count=len(chosen),
            width=width,
            blocks=tuple(blocks),
            head=self._with_bias(heads, INPUTS + depths[0] * width, ONES),
        )

    def _with_bias(self, layers: Sequence[Layer], columns: int, ones: int) -> torch.Tensor:
        """Weights (member, outputs, columns) with the bias where the inputs hold two ones."""
        outputs = layers[0].weight.shape[0]
        whole = np.zeros((len(layers), outputs, columns), np.float32)
        for target, layer in zip(whole, layers, strict=True):
            after = layer.weight[:, ones:]
            target[:, :ones] = layer.weight[:, :ones]
            target[:, ones + 2 : ones + 2 + after.shape[1]] = after
            target[:, ones], target[:, ones + 1] = self._halves(layer.bias)
        return self._put(whole)


def _with_ones(width: int) -> int:
    """Rows of outputs and at least two of ones, a multiple of four."""
    return width + 2 + -(width + 2) % 4


def _replicate_edges(x: torch.Tensor) -> None:
    x[:PAD] = x[PAD]
    x[-PAD:] = x[-PAD - 1]


def _fused(device: torch.device, packed: tuple[torch.Tensor, torch.Tensor]) -> Convolve | None:
    """Return the convolution in one pass if it works here, after a comparison with plain sums."""
    weight, bias = packed
    members, _, channels, filters = weight.shape
    try:
        from xsoilsm.fused import convolve_and_pool

        with torch.cuda.device(device), torch.inference_mode(), tensor_cores(False):
            source = torch.rand((8, channels + 1, 200), device=device)
            found = torch.zeros((members, 6, filters, 200), device=device)
            convolve_and_pool(source, weight, bias, found)
            windows = source[:, :channels].unfold(0, KERNEL, 1)  # (position, channel, pixel, k)
            each = torch.einsum("mkcf,pcnk->mpfn", weight, windows) + bias[:, None, :, None]
            each.relu_()
            error = (found[:, PAD:-PAD] - each[:, 0::2] - each[:, 1::2]).abs().max().item()
            scale = each.max().item()
    except Exception as failure:  # whatever a compiler brings about, there are products
        reason = " ".join(str(failure).split())[:300]
        _log.info("convolutions are products of matrices: %s", reason)
        return None
    if not error <= 1e-5 * max(scale, 1):
        _log.warning("convolutions are products of matrices: in one pass, off by %g", error)
        return None
    return convolve_and_pool
