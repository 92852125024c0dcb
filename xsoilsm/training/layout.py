"""Step 5 of 7 (networks): where the parameters of several networks lie while they are trained.

Networks of one width are trained as one stack. All their trained numbers lie in one flat tensor,
their running statistics in another, so that an optimiser step is one call and a snapshot is one
copy. This module knows the way between state dicts and those tensors; the equations are in
`xsoilsm.training.stacked`.

Differences to a state dict: members are ordered by depth, deepest first, so that the members that
have a block are the first ones; columns of dense layers are ordered "30 inputs, then the features
of block 1, 2, ..."; kernels are ordered by position, then channel. A bias before a batch norm has
no influence on the training (the batch norm subtracts it again, so its gradient is zero): it is
kept as it is, and the running mean is stored without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["HEAD", "JOINED", "KERNEL", "POOLED", "SNAPSHOT", "StackLayout"]

CONVOLUTIONS = ((3, 32), (32, 16), (16, 4))
"""Channels and filters of the three convolutions."""

KERNEL = 5
SNAPSHOT, POOLED = 18, 12
JOINED = SNAPSHOT + POOLED
HEAD = 32
_ALIGN = 16  # floats in a cache line

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
_Pairs = Iterator[tuple[Array, Array, Array | None]]


class _Piece(NamedTuple):
    start: int
    shape: Shape


class _Plan:
    """Named pieces of a flat tensor, each starting at a cache line."""

    def __init__(self) -> None:
        self.pieces: dict[str, _Piece] = {}
        self.size = 0

    def add(self, name: str, *shape: int) -> None:
        self.pieces[name] = _Piece(self.size, shape)
        self.size += -(-int(np.prod(shape)) // _ALIGN) * _ALIGN

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: flat[start : start + int(np.prod(shape))].view(shape)
            for name, (start, shape) in self.pieces.items()
        }


class StackLayout:
    """Layout of some networks that are trained side by side.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Depth and width of each network. Widths may differ: narrower layers are padded with
        units that give zero, whose parameters have zero gradients and stay zero.

    Attributes
    ----------
    order : list of int
        Positions in `shapes`, deepest network first.
    width, depth : int
        Of the widest and of the deepest network.
    active : list of int
        For each block, how many networks have it.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][0], shapes[i][1], i))
        self.shapes = [shapes[i] for i in self.order]
        self.depth, self.width = self.shapes[0][0], max(w for _, w in shapes)
        self.active = [sum(d > block for d, _ in shapes) for block in range(self.depth)]
        self.trained, self.running = _Plan(), _Plan()
        m = len(shapes)
        for number, (channels, filters) in enumerate(CONVOLUTIONS, start=1):
            self.trained.add(f"conv{number}.weight", m, filters, KERNEL * channels)
            self._norm(f"conv{number}", m, filters)
        self._norm("norm", m, JOINED)
        for block, k in enumerate(self.active):
            for layer in (1, 2, 3):
                inputs = self.inputs(block) if layer == 1 else self.width
                self.trained.add(f"block{block}.{layer}.weight", k, self.width, inputs)
                self._norm(f"block{block}.{layer}", k, self.width)
        self.trained.add("head.weight", m, HEAD, self.inputs(self.depth))
        self.trained.add("head.bias", m, HEAD)
        self._norm("head", m, HEAD)
        self.trained.add("out.weight", m, HEAD)
        self.trained.add("out.bias", m)

    def inputs(self, block: int) -> int:
        """Rows of features before a block."""
        return JOINED + block * self.width

    def _norm(self, name: str, members: int, size: int) -> None:
        self.trained.add(f"{name}.gamma", members, size)
        self.trained.add(f"{name}.beta", members, size)
        self.running.add(f"{name}.mean", members, size)
        self.running.add(f"{name}.var", members, size)

    def load(self, states: Sequence[Mapping[str, Array]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Put state dicts into flat tensors on the CPU.

        Parameters
        ----------
        states : sequence of mapping of str to ndarray
            In the order of `shapes` at construction.

        Returns
        -------
        trained, running : tensor of float32
        """
        trained, running = torch.zeros(self.trained.size), torch.zeros(self.running.size)
        stacked = self._arrays(trained, running)
        for row, position in enumerate(self.order):
            for inside, outside, bias in self._pairs(row, stacked, states[position]):
                inside[...] = outside if bias is None else outside - bias
        return trained, running

    def export(
        self, trained: torch.Tensor, running: torch.Tensor, templates: Sequence[Mapping[str, Array]]
    ) -> list[dict[str, Array]]:
        """Turn flat tensors into state dicts.

        Parameters
        ----------
        trained, running : tensor
        templates : sequence of mapping of str to ndarray
            State dicts that the training started from, for what is not trained.

        Returns
        -------
        list of dict of str to ndarray
            In the order of `shapes` at construction; counters of batches are the templates'.
        """
        stacked = self._arrays(trained.cpu(), running.cpu())
        states = [{n: np.array(v, order="C") for n, v in state.items()} for state in templates]
        for row, position in enumerate(self.order):
            for inside, outside, bias in self._pairs(row, stacked, states[position]):
                outside[...] = inside if bias is None else inside + bias
        return states

    def _arrays(self, trained: torch.Tensor, running: torch.Tensor) -> dict[str, Array]:
        views = self.trained.views(trained) | self.running.views(running)
        return {name: view.numpy() for name, view in views.items()}

    def _pairs(self, row: int, stacked: Mapping[str, Array], state: Mapping[str, Array]) -> _Pairs:
        """Pair views of the same numbers here and in a state dict, with a bias between them."""
        depth, width = self.shapes[row]

        def norm(key: str, name: str, bias: str | None = None) -> _Pairs:
            size = state[f"{name}.weight"].size
            for mine, theirs in (("gamma", "weight"), ("beta", "bias"), ("var", "running_var")):
                yield stacked[f"{key}.{mine}"][row, :size], state[f"{name}.{theirs}"], None
            shift = None if bias is None else state[bias]
            yield stacked[f"{key}.mean"][row, :size], state[f"{name}.running_mean"], shift

        def columns(key: str, name: str, blocks: int) -> _Pairs:
            inside, outside = stacked[key][row], state[name]
            rows = outside.shape[0]
            yield inside[:rows, :JOINED], outside[:, blocks * width :], None
            for block in range(blocks):  # the newest block comes first in a state dict
                start, left = self.inputs(block), (blocks - 1 - block) * width
                there = outside[:, left : left + width]
                yield inside[:rows, start : start + width], there, None

        for number, (channels, filters) in enumerate(CONVOLUTIONS, start=1):
            kernel = state[f"conv_block.conv{number}.weight"].transpose(0, 2, 1)
            inside = stacked[f"conv{number}.weight"][row].reshape(filters, KERNEL, channels)
            yield inside, kernel, None
            names = f"conv_block.bn{number}", f"conv_block.conv{number}.bias"
            yield from norm(f"conv{number}", *names)
        yield from norm("norm", "norm")
        for block in range(depth):
            name = f"dense_layers.{block}"
            yield from columns(f"block{block}.1.weight", f"{name}.linear1.weight", block)
            for layer in (2, 3):
                inside = stacked[f"block{block}.{layer}.weight"][row, :width, :width]
                yield inside, state[f"{name}.linear{layer}.weight"], None
            for layer in (1, 2, 3):
                names = f"{name}.bn{layer}", f"{name}.linear{layer}.bias"
                yield from norm(f"block{block}.{layer}", *names)
        yield from columns("head.weight", "fc_layers.0.linear1.weight", depth)
        yield stacked["head.bias"][row], state["fc_layers.0.linear1.bias"], None
        yield from norm("head", "fc_layers.0.bn1")
        yield stacked["out.weight"][row], state["out.weight"][0], None
        yield stacked["out.bias"][row : row + 1], state["out.bias"], None
