"""Step 5 of 7 (networks): forward and backward of several networks at once, written out.

The equations are those of `xsoilsm.network`; gradients are their derivatives by hand instead of
by a tape. What is gained, at equal results:

* networks of one width share every product of matrices; samples are the last axis, so that all
  element-wise work and all statistics of batch norms run along contiguous memory;
* the statistics of the first batch norm follow from the 15 x 15 covariance of the series' windows,
  which all networks share, so that its largest activations are passed over once forward (product,
  ReLU, dropout, pooling) and once backward;
* dropout takes one random bit per value, as the factors 1/2 and 2 cancel against the poolings;
* convolutions are products with windows that overlap in memory, without copies;
* all buffers are reused from step to step.

Formulas of batch norm and its gradient: Ioffe and Szegedy (2015), arXiv:1502.03167, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from xsoilsm.training.buffers import CHANNELS, LAST_POOL, PAD, STEPS, Arena, First, Space
from xsoilsm.training.layout import JOINED, KERNEL, SNAPSHOT, StackLayout

__all__ = ["MOMENTUM", "Batch", "Outputs", "Stack"]

WINDOW = KERNEL * CHANNELS
EPSILON, MOMENTUM = 1e-5, 0.1  # of every batch norm, torch's defaults

Tensor = torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Some samples, prepared once for all networks.

    Parameters
    ----------
    windows : (16, 46 * n) tensor
        The five steps of three channels around each step, less their means; then ones.
    mean : (15,) tensor
        The means of the windows.
    covariance : (15, 15) tensor
    snapshot : (18, n) tensor
    """

    windows: Tensor
    mean: Tensor
    covariance: Tensor
    snapshot: Tensor

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.snapshot.shape[1])

    @classmethod
    def of(cls, snapshot: Tensor, series: Tensor) -> Batch:
        """Prepare samples.

        Parameters
        ----------
        snapshot : (n, 18) tensor
        series : (n, 46, 3) tensor
            Steps before channels.
        """
        n = snapshot.shape[0]
        padded = torch.empty((STEPS + 2 * PAD, CHANNELS, n), device=series.device)
        padded[PAD:-PAD] = series.permute(1, 2, 0)
        padded[:PAD], padded[-PAD:] = padded[PAD], padded[-PAD - 1]
        windows = torch.ones((WINDOW + 1, STEPS * n), device=series.device)
        shape, strides = (KERNEL, CHANNELS, STEPS, n), (CHANNELS * n, n, CHANNELS * n, 1)
        inner = windows[:WINDOW]
        inner.view(shape).copy_(padded.as_strided(shape, strides))
        mean = inner.mean(dim=1)
        inner -= mean[:, None]
        covariance = inner @ inner.t() / (STEPS * n)
        return cls(windows, mean, covariance, snapshot.t().contiguous())


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gives; valid until the next one.

    Parameters
    ----------
    predictions : (member, n) tensor
        Soil moisture in m3 m-3.
    hidden : (member, 32, n) tensor
        The last features, of which `predictions` are weighted sums.
    """

    predictions: Tensor
    hidden: Tensor


class Stack:
    """Several networks with their gradients and running statistics, on one device.

    Members are ordered as in `StackLayout.order`.

    Parameters
    ----------
    layout : StackLayout
    trained, running : tensor of float32
        Flat parameters and statistics, see `StackLayout.load`.
    device : torch.device
    seeds : sequence of int
        One per member, in the order of the layout; dropout of a step follows from seed and step.
    arena : dict, optional
        Buffers to share with other stacks that never work at the same time.
    at_once : bool, optional
        Do the convolutions of all members in one call. Default: on a GPU.
    """

    def __init__(
        self,
        layout: StackLayout,
        trained: Tensor,
        running: Tensor,
        device: torch.device,
        seeds: Sequence[int],
        arena: Arena | None = None,
        at_once: bool | None = None,
    ) -> None:
        self._arena: Arena = {} if arena is None else arena
        self.layout, self.device, self.seeds = layout, device, list(seeds)
        self.members = len(layout.shapes)
        self.momentum = MOMENTUM
        self.trained = trained.to(device, copy=True)
        self.running = running.to(device, copy=True)
        self.gradient = torch.zeros_like(self.trained)
        self._p = layout.trained.views(self.trained)
        self._g = layout.trained.views(self.gradient)
        self._r = layout.running.views(self.running)
        # One call for all members: fewer calls on a GPU. One call each: less memory on a CPU.
        self._at_once = self.device.type != "cpu" if at_once is None else at_once
        self._spaces: dict[int, Space] = {}
        self._generator = torch.Generator(device)
        shifts = torch.arange(32, dtype=torch.int32, device=device)
        self._shifts = shifts[:, None]

    # ----------------------------------------------------------------------- forward

    def forward(self, batch: Batch, step: int | None = None, *, frozen: bool = False) -> Outputs:
        """Predict, and keep what `backward` needs.

        Parameters
        ----------
        batch : Batch
        step : int, optional
            Number of the step, which decides about dropout. None: no dropout.
        frozen : bool, default False
            Normalise by the running statistics instead of those of the batch, and leave the
            running statistics as they are.

        Returns
        -------
        Outputs
        """
        n = batch.size
        if n not in self._spaces:
            self._spaces[n] = Space(
                self.layout, n, self.device, self._arena, self.members if self._at_once else 1
            )
        s = self._spaces[n]
        words = None if step is None else self._random_words(n, step, s)
        s.kept = 1.0 if step is None else 2.0
        self._convolve_first(batch, s, words, frozen)
        masks = None if words is None else self._bits(words[:, STEPS * n :], s.bits)
        self._convolve_rest(s, masks, n, frozen)
        s.joined[:, :SNAPSHOT] = batch.snapshot
        s.joined[:, SNAPSHOT:].view(-1, 4, 3, n).copy_(s.pooled.transpose(1, 2))
        self._normalise("norm", s.joined, s, frozen, out=s.features[:, :JOINED])
        for block, k in enumerate(self.layout.active):
            known = self.layout.inputs(block)
            x = s.features[:k, :known]
            for layer in (1, 2, 3):
                name = f"block{block}.{layer}"
                y = torch.bmm(self._p[f"{name}.weight"], x, out=s.linear[name])
                end = s.features[:k, known : known + self.layout.width]
                x = end if layer == 3 else s.active[name]
                self._normalise(name, y, s, frozen, out=x).relu_()
        torch.baddbmm(
            self._p["head.bias"][..., None], self._p["head.weight"], s.features, out=s.head
        ).relu_()
        s.centred.copy_(s.head)
        self._normalise("head", s.centred, s, frozen, out=s.hidden)
        if not frozen:
            self.running.lerp_(s.statistics * s.unbias, self.momentum)
        weight, bias = self._p["out.weight"], self._p["out.bias"]
        predictions = torch.baddbmm(bias[:, None, None], weight[:, None], s.hidden)[:, 0]
        return Outputs(predictions, s.hidden)

    def _convolve_first(self, batch: Batch, s: Space, words: Tensor | None, frozen: bool) -> None:
        weight, n = self._p["conv1.weight"], batch.size
        product = weight @ batch.covariance
        average = weight @ batch.mean
        if frozen:
            variance, offset = self._r["conv1.var"], average - self._r["conv1.mean"]
        else:
            s.mean["conv1"].copy_(average)
            variance = torch.sum(product * weight, dim=-1, out=s.variance["conv1"])
            offset = torch.zeros_like(average)
        inverse = torch.rsqrt(variance + EPSILON)
        scale = self._p["conv1.gamma"] * inverse
        s.first = First(product, offset, inverse, scale)
        folded = torch.cat(
            (weight * scale[..., None], (self._p["conv1.beta"] + scale * offset)[..., None]), dim=2
        )
        inner = s.padded[0][:, PAD:-PAD].transpose(1, 2)  # (member, filter, position, sample)
        for part in self._tiles():
            a = s.first_active[part]
            torch.mm(folded[part].view(-1, WINDOW + 1), batch.windows, out=a.view(-1, STEPS * n))
            a.relu_()
            if words is not None:
                mask = self._bits(words[part, : STEPS * n], s.first_bits)
                a.view(torch.int32).bitwise_and_(mask.view(a.shape))
            torch.add(a[:, :, 0::2], a[:, :, 1::2], out=inner[part])
        if words is None:
            inner *= 0.5  # with dropout, the factor 2 of the values that are kept cancels it
        _replicate_edges(s.padded[0])

    def _convolve_rest(self, s: Space, masks: Tensor | None, n: int, frozen: bool) -> None:
        split = 22 * 16 * n
        parts = (None, None) if masks is None else (masks[:, :split], masks[:, split:])
        a = self._convolve(2, 0, s, parts[0], frozen)
        torch.add(a[:, 0::2], a[:, 1::2], out=s.padded[1][:, PAD:-PAD])
        if masks is None:
            s.padded[1][:, PAD:-PAD] *= 0.5
        _replicate_edges(s.padded[1])
        a = self._convolve(3, 1, s, parts[1], frozen)
        for position, length in enumerate(LAST_POOL):
            part = a[:, 4 * position : 4 * position + length]
            torch.sum(part, dim=1, out=s.pooled[:, position]).mul_(s.kept / length)

    def _convolve(
        self, number: int, index: int, s: Space, mask: Tensor | None, frozen: bool
    ) -> Tensor:
        """Convolution, batch norm, ReLU and dropout of the positions that pooling keeps."""
        name, y, a = f"conv{number}", s.convolved[index], s.conv_active[index]
        self._windows_product(self._p[f"{name}.weight"], s.padded[index], out=y)
        self._normalise(name, y, s, frozen, out=a).relu_()
        if mask is not None:
            a.view(torch.int32).bitwise_and_(mask[:, : a[0].numel()].view(a.shape))
        return a

    def _normalise(self, name: str, y: Tensor, s: Space, frozen: bool, out: Tensor) -> Tensor:
        """Batch norm of (member, unit, n) or (member, position, unit, n).

        `y` keeps the values less their mean; positions beyond those of `out` count for the
        statistics only.
        """
        mean, variance = s.mean[name], s.variance[name]
        if frozen:
            mean, variance = self._r[f"{name}.mean"], self._r[f"{name}.var"]
            y -= _beside(mean, y)
        else:
            count = y.shape[-1] if y.ndim == 3 else y.shape[1] * y.shape[3]
            _sum(y, out=mean).div_(count)
            y -= _beside(mean, y)
            _sum(torch.mul(y, y, out=s.squares[name]), out=variance).div_(count)
        inverse = torch.add(variance, EPSILON, out=s.inverse[name]).rsqrt_()
        scale = self._p[f"{name}.gamma"] * inverse
        values = y if y.ndim == 3 else y[:, : out.shape[1]]
        return torch.mul(values, _beside(scale, y), out=out).add_(
            _beside(self._p[f"{name}.beta"], y)
        )

    # ----------------------------------------------------------------------- backward

    def backward(
        self,
        batch: Batch,
        predictions: Tensor,
        hidden: Tensor | None = None,
        *,
        frozen: bool = False,
    ) -> None:
        """Write the gradients of all parameters, after `forward` with the same batch.

        Parameters
        ----------
        batch : Batch
        predictions : (member, n) tensor
            Derivative of each member's loss by its predictions.
        hidden : (member, 32, n) tensor, optional
            Derivative by the last features, beside the way over the predictions.
        frozen : bool, default False
            As in `forward`.
        """
        s, p, g = self._spaces[batch.size], self._p, self._g
        g["out.bias"].copy_(predictions.sum(-1))
        g["out.weight"].copy_(torch.bmm(s.hidden, predictions[..., None])[..., 0])
        back = p["out.weight"][..., None] * predictions[:, None]
        if hidden is not None:
            back += hidden
        back = self._normalise_back("head", back, s.centred, s, frozen)
        _through_relu(back, s.head, out=back)
        g["head.bias"].copy_(back.sum(-1))
        torch.bmm(back, s.features.transpose(1, 2), out=g["head.weight"])
        d_features = torch.bmm(p["head.weight"].transpose(1, 2), back, out=s.d_features)
        for block in reversed(range(self.layout.depth)):
            k, known = self.layout.active[block], self.layout.inputs(block)
            rows = slice(known, known + self.layout.width)
            back, values = d_features[:k, rows], s.features[:k, rows]
            for layer in (3, 2, 1):
                name = f"block{block}.{layer}"
                back = _through_relu(back, values, out=s.d_active[:k])
                back = self._normalise_back(name, back, s.linear[name], s, frozen)
                values = (
                    s.active[f"block{block}.{layer - 1}"] if layer > 1 else s.features[:k, :known]
                )
                torch.bmm(back, values.transpose(1, 2), out=g[f"{name}.weight"])
                weight = p[f"{name}.weight"].transpose(1, 2)
                if layer > 1:
                    back = torch.bmm(weight, back, out=s.d_linear[:k])
                else:
                    d_features[:k, :known].baddbmm_(weight, back)
        back = d_features[:, :JOINED].contiguous()
        back = self._normalise_back("norm", back, s.joined, s, frozen)
        self._convolve_rest_back(back[:, SNAPSHOT:], s, frozen)
        self._convolve_first_back(batch, s, frozen)

    def _normalise_back(self, name: str, back: Tensor, y: Tensor, s: Space, frozen: bool) -> Tensor:
        """Go back through a batch norm of (member, unit, n), whose values less the mean are `y`."""
        units = y.shape[0] * y.shape[1]
        inverse, none = s.inverse[name].view(units), s.zeros[:units]
        variance = self._r[f"{name}.var"].reshape(units) if frozen else None
        result, by_gamma, by_beta = torch.ops.aten.native_batch_norm_backward(
            back.view(1, units, -1),
            y.view(1, units, -1),
            self._p[f"{name}.gamma"].view(units),
            none if frozen else None,
            variance,
            none,
            inverse,
            not frozen,
            EPSILON,
            [True, True, True],
        )
        self._g[f"{name}.gamma"].view(units).copy_(by_gamma)
        self._g[f"{name}.beta"].view(units).copy_(by_beta)
        passed: Tensor = result.view(back.shape)
        return passed

    def _convolve_rest_back(self, back: Tensor, s: Space, frozen: bool) -> None:
        n = back.shape[-1]
        back = back.reshape(-1, 4, 3, n).transpose(1, 2) * (s.kept * s.pool_factors)
        middle = s.d_convolved[1][:, 2 * PAD : -2 * PAD]
        for position, length in enumerate(LAST_POOL):
            part = slice(4 * position, 4 * position + length)
            values = s.conv_active[1][:, part]
            grown = back[:, position : position + 1].expand(values.shape)
            _through_relu(grown, values, out=middle[:, part])
        self._convolution_back(3, 1, s, frozen)
        middle, values = s.d_convolved[0][:, 2 * PAD : -2 * PAD], s.conv_active[0]
        grown = s.d_padded[1][:, PAD:-PAD, None].expand(-1, -1, 2, -1, -1)
        halves = values.view(-1, 11, 2, 16, n)
        _through_relu(grown, halves, out=middle[:, :22].view(halves.shape))
        middle[:, 22] = 0  # dropped by the pooling
        self._convolution_back(2, 0, s, frozen)

    def _convolution_back(self, number: int, index: int, s: Space, frozen: bool) -> None:
        name, padded, y = f"conv{number}", s.d_convolved[index], s.convolved[index]
        back = padded[:, 2 * PAD : -2 * PAD]
        inverse, count = s.inverse[name], y.shape[1] * y.shape[3]
        by_beta = _sum(back, out=self._g[f"{name}.beta"])
        by_gamma = _sum(torch.mul(back, y, out=s.squares[name]), out=self._g[f"{name}.gamma"])
        by_gamma.mul_(inverse)
        if not frozen:
            back.addcmul_(y, (by_gamma * inverse)[:, None, :, None], value=-1 / count)
            back.sub_(by_beta[:, None, :, None], alpha=1 / count)
        back.mul_((self._p[f"{name}.gamma"] * inverse)[:, None, :, None])
        by_weight = self._g[f"{name}.weight"]
        windows = _windows(s.padded[index])
        if self._at_once:
            torch.sum(torch.matmul(back, windows.transpose(2, 3)), dim=1, out=by_weight)
        else:
            for i in range(self.members):
                # This way round, the product is a third faster than its transpose.
                torch.bmm(windows[i], back[i].transpose(1, 2), out=s.by_windows[index])
                by_weight[i] = s.by_windows[index].sum(dim=0).t()
        weight = self._p[f"{name}.weight"]
        filters, channels = weight.shape[1], weight.shape[2] // KERNEL
        turned = weight.view(-1, filters, KERNEL, channels).flip(2).permute(0, 3, 2, 1)
        turned = turned.reshape(-1, channels, KERNEL * filters)
        d = s.d_padded[index]
        self._windows_product(turned, padded, out=d)
        d[:, PAD] += d[:, 0] + d[:, 1]
        d[:, -PAD - 1] += d[:, -1] + d[:, -2]
        if s.kept == 1:
            d *= 0.5

    def _convolve_first_back(self, batch: Batch, s: Space, frozen: bool) -> None:
        n, first = batch.size, s.first
        grown = s.d_padded[0][:, PAD:-PAD].transpose(1, 2)[:, :, :, None].expand(-1, -1, -1, 2, -1)
        sums = torch.empty((self.members, 32, WINDOW + 1), device=self.device)
        for part in self._tiles():
            values = s.first_active[part].view(-1, 32, STEPS // 2, 2, n)
            _through_relu(grown[part], values, out=values)
            torch.mm(
                s.first_active[part].view(-1, STEPS * n),
                batch.windows.t(),
                out=sums[part].view(-1, WINDOW + 1),
            )
        by_window, by_beta = sums[..., :WINDOW], sums[..., WINDOW]
        weight, g = self._p["conv1.weight"], self._g
        by_gamma = ((by_window * weight).sum(-1) + first.offset * by_beta) * first.inverse
        g["conv1.beta"].copy_(by_beta)
        g["conv1.gamma"].copy_(by_gamma)
        if frozen:
            by_weight = by_window + by_beta[..., None] * batch.mean
        else:
            by_weight = by_window - (by_gamma * first.inverse)[..., None] * first.product
        torch.mul(by_weight, first.scale[..., None], out=g["conv1.weight"])

    # ----------------------------------------------------------------------- parts

    def add_bias(self, amount: Tensor) -> None:
        """Add (member,) to what the networks predict."""
        self._p["out.bias"] += amount

    def _tiles(self) -> list[slice]:
        if self._at_once:
            return [slice(0, self.members)]
        return [slice(i, i + 1) for i in range(self.members)]

    def _windows_product(self, weight: Tensor, padded: Tensor, out: Tensor) -> None:
        """Multiply (member, a, 5 b) with the windows of (member, step + 4, b, n)."""
        windows = _windows(padded)
        if self._at_once:
            torch.matmul(weight[:, None], windows, out=out)
        else:
            for i in range(self.members):
                torch.bmm(weight[i].expand(windows.shape[1], -1, -1), windows[i], out=out[i])

    def _random_words(self, n: int, step: int, s: Space) -> Tensor:
        for row, seed in zip(s.words, self.seeds, strict=True):
            self._generator.manual_seed(_mix(seed, step))
            row.random_(-(2**63), None, generator=self._generator)
        return s.words.view(torch.int32)

    def _bits(self, words: Tensor, out: Tensor) -> Tensor:
        """Spread (member, k) words to (member, 32 k) masks of all ones or all zeros."""
        wide = out[:, : 32 * words.shape[1]].view(words.shape[0], 32, words.shape[1])
        torch.bitwise_left_shift(words[:, None], self._shifts, out=wide)
        wide.bitwise_right_shift_(31)
        return out

    def kept(self, n: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of dropout of a step: (member, 32, 46, n), (member, 22, 16, n), (member, 11, 4, n).

        The two others have positions before filters. They are what `forward` uses.
        """
        s = Space(self.layout, n, self.device, self._arena, self.members if self._at_once else 1)
        words = self._random_words(n, step, s)
        first = self._bits(
            words[:, : STEPS * n], s.first_bits.new_empty((self.members, 32 * STEPS * n))
        )
        rest = self._bits(words[:, STEPS * n :], s.bits)
        middle = 22 * 16 * n
        return (
            first.view(-1, 32, STEPS, n).bool(),
            rest[:, :middle].view(-1, 22, 16, n).bool(),
            rest[:, middle : middle + 44 * n].view(-1, 11, 4, n).bool(),
        )


def _beside(values: Tensor, y: Tensor) -> Tensor:
    """View (member, unit) so that it stands beside (member, unit, n) or (member, t, unit, n)."""
    return values[..., None] if y.ndim == 3 else values[:, None, :, None]


def _sum(y: Tensor, out: Tensor) -> Tensor:
    """Sum (member, unit, n) or (member, position, unit, n) to (member, unit)."""
    if y.ndim == 3:
        return torch.sum(y, dim=-1, out=out)
    return torch.sum(y.sum(-1), dim=1, out=out)


def _windows(padded: Tensor) -> Tensor:
    """Overlapping windows (member, step, 5 c, n) of (member, step + 4, c, n)."""
    m, steps, channels, n = padded.shape
    shape = (m, steps - 2 * PAD, KERNEL * channels, n)
    return padded.as_strided(shape, (steps * channels * n, channels * n, n, 1))


def _replicate_edges(padded: Tensor) -> None:
    padded[:, :PAD] = padded[:, PAD : PAD + 1]
    padded[:, -PAD:] = padded[:, -PAD - 1 : -PAD]


def _through_relu(back: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """Keep gradients where a ReLU, and dropout after it, let a value pass."""
    result: Tensor = torch.ops.aten.threshold_backward.grad_input(back, values, 0, grad_input=out)
    return result


def _mix(seed: int, step: int) -> int:
    """Spread seed and step over 63 bits. Source: splitmix64 of Steele et al. (2014)."""
    mask = 2**64 - 1
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
