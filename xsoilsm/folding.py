"""Step 5 of 7 (networks): fold what is constant at inference into fewer, plainer layers.

Every batch norm disappears into the linear layer before or after it, the factors of the mean
poolings into the layer that follows, and the columns of the dense layers are put into the order
"30 inputs, then the features of block 1, 2, ...", so that new features are appended and never
concatenated. Folding is done in float64 and rounded once; the result equals the network.

Source of the equations: `xsoilsm.network`. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FoldedMember", "Layer", "fold"]

EPSILON = 1e-5  # of every batch norm, torch's default
JOINED = 30  # 18 snapshot inputs and 12 features of the convolutions
POOLED = (2, 2)  # lengths of the first two poolings
LAST_POOL = (4, 4, 3)  # the last window of the third pooling holds three values

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """An affine map in float32, y = weight @ x + bias.

    Parameters
    ----------
    weight : (outputs, inputs) ndarray of float32
    bias : (outputs,) ndarray of float32
    """

    weight: Float32
    bias: Float32


@dataclass(frozen=True)
class FoldedMember:
    """One network, folded.

    Parameters
    ----------
    convolutions : tuple of 3 Layer
        Weights (filters, 5 * channels), columns by kernel position, then channel. ReLU and a
        *sum* over the pooling window follow each one.
    blocks : tuple of (Layer, Layer, Layer)
        The dense blocks; ReLU follows each layer. Inputs of the first layer of a block: the 18
        snapshot inputs, the 12 pooled sums (filter by filter), the outputs of earlier blocks.
    head : Layer
        To 32 units; ReLU follows.
    out : Layer
        To soil moisture in m3 m-3.
    """

    convolutions: tuple[Layer, Layer, Layer]
    blocks: tuple[tuple[Layer, Layer, Layer], ...]
    head: Layer
    out: Layer

    @property
    def depth(self) -> int:
        """Number of dense blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Units of a layer in a block."""
        return int(self.blocks[0][0].weight.shape[0])


def fold(state: Mapping[str, npt.NDArray[Any]]) -> FoldedMember:
    """Fold the state dict of one DenseSM.

    Computes.

    Parameters
    ----------
    state : mapping of str to ndarray
        With the names of `xsoilsm.network.DenseSM`.

    Returns
    -------
    FoldedMember

    Raises
    ------
    KeyError
        When a parameter is missing.
    """
    p = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}
    depth = len({name.split(".")[1] for name in p if name.startswith("dense_layers.")})
    width = p["dense_layers.0.linear1.weight"].shape[0]
    scale, shift = _affine(p, "norm")
    inputs = np.ones(JOINED)
    inputs[-12:] = np.tile(1.0 / np.array(LAST_POOL), 4)  # sums come in place of means

    def dense_input(name: str, blocks_before: int) -> tuple[Float64, Float64]:
        """Undo the order "newest block first, inputs last" and take in the batch norm."""
        weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
        raw = weight[:, -JOINED:]
        newest_first = [weight[:, i * width : (i + 1) * width] for i in range(blocks_before)]
        columns = np.hstack([raw * (scale * inputs), *reversed(newest_first)])
        return columns, bias + raw @ shift

    blocks = []
    for number in range(depth):
        block = f"dense_layers.{number}"
        first = _normed(*dense_input(f"{block}.linear1", number), *_affine(p, f"{block}.bn1"))
        rest = [
            _normed(
                p[f"{block}.linear{i}.weight"],
                p[f"{block}.linear{i}.bias"],
                *_affine(p, f"{block}.bn{i}"),
            )
            for i in (2, 3)
        ]
        blocks.append((first, rest[0], rest[1]))
    head = _layer(*dense_input("fc_layers.0.linear1", depth))
    head_scale, head_shift = _affine(p, "fc_layers.0.bn1")
    out = _layer(p["out.weight"] * head_scale, p["out.bias"] + p["out.weight"] @ head_shift)
    return FoldedMember(_convolutions(p), tuple(blocks), head, out)


def _convolutions(p: Mapping[str, Float64]) -> tuple[Layer, Layer, Layer]:
    layers = []
    for number in (1, 2, 3):
        kernel = p[f"conv_block.conv{number}.weight"]  # (filters, channels, 5)
        if number > 1:
            kernel = kernel / POOLED[number - 2]
        matrix = kernel.transpose(0, 2, 1).reshape(kernel.shape[0], -1)
        bias = p[f"conv_block.conv{number}.bias"]
        layers.append(_normed(matrix, bias, *_affine(p, f"conv_block.bn{number}")))
    return layers[0], layers[1], layers[2]


def _affine(p: Mapping[str, Float64], name: str) -> tuple[Float64, Float64]:
    """Scale and shift that a batch norm amounts to at inference."""
    scale = p[f"{name}.weight"] / np.sqrt(p[f"{name}.running_var"] + EPSILON)
    return scale, p[f"{name}.bias"] - p[f"{name}.running_mean"] * scale


def _normed(weight: Float64, bias: Float64, scale: Float64, shift: Float64) -> Layer:
    """Affine map followed by a batch norm."""
    return _layer(weight * scale[:, None], bias * scale + shift)


def _layer(weight: Float64, bias: Float64) -> Layer:
    return Layer(
        np.ascontiguousarray(weight, dtype=np.float32), np.ascontiguousarray(bias, np.float32)
    )
