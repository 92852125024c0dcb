"""Step 5 of 7 (networks): DenseSM, the equations of one ensemble member.

Source: Zhu et al. (2024), Remote Sensing of Environment 301, 113944, section 3, with the details
that the published parameters fix beyond the paper: replicate padding, a last pooling that rounds
up, a batch norm over the 30 joined inputs, new features before old ones, and ReLU before the last
batch norm.
"""

from __future__ import annotations

from operator import index
from typing import SupportsIndex

import torch
from torch import nn

__all__ = ["DenseSM"]

SNAPSHOT_FEATURES = 18
"""Numbers per sample beside the series: 15 of the acquisition and 3 summaries of the series."""

SERIES_CHANNELS, SERIES_STEPS = 3, 46
"""Channels (NDVI, temperature, precipitation) and steps of the series."""

CONVOLUTIONS = ((SERIES_CHANNELS, 32, 2), (32, 16, 2), (16, 4, 4))
"""Input channels, filters and pooling length of the three convolutions."""

KERNEL = 5
SERIES_FEATURES = 12
"""Numbers that the convolutions make of the series: 4 filters at 3 positions."""

HEAD_WIDTH = 32
DROPOUT = 0.5


class DenseSM(nn.Module):
    """DenseSM-d-w: convolutions over the year, dense blocks, one number per sample.

    The names of parameters and buffers are those of the published state dicts, which load
    strictly. The counters of batches are floating-point numbers as they are there (means over
    the ten snapshots that were averaged).

    Parameters
    ----------
    depth : int
        Number of dense blocks, at least 1.
    width : int
        Number of units of each linear layer in a block, at least 1.

    Raises
    ------
    ValueError
        When `depth` or `width` is not a positive whole number.

    Examples
    --------
    >>> sum(p.numel() for p in DenseSM(1, 8).parameters())
    5361
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.depth, self.width = depth, width = _positive("depth", depth), _positive("width", width)
        self.conv_block = _ConvolutionBlock()
        joined = SNAPSHOT_FEATURES + SERIES_FEATURES
        self.norm = nn.BatchNorm1d(joined)
        self.dense_layers = nn.ModuleList(
            _DenseBlock(joined + block * width, width) for block in range(depth)
        )
        self.fc_layers = nn.ModuleList([_Head(joined + depth * width)])
        self.out = nn.Linear(HEAD_WIDTH, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.num_batches_tracked = torch.zeros((), dtype=torch.float32)

    def forward(self, snapshot: torch.Tensor, series: torch.Tensor) -> torch.Tensor:
        """Soil moisture of each sample.

        Parameters
        ----------
        snapshot : (n, 18) float tensor
            Normalised features, in the order of the contract.
        series : (n, 3, 46) float tensor
            Normalised series (channel, step), oldest step first.

        Returns
        -------
        (n,) tensor
            Soil moisture in m3 m-3, not clipped to its valid range.

        Raises
        ------
        ValueError
            When a tensor has another shape.
        """
        n = snapshot.shape[0]
        if snapshot.shape != (n, SNAPSHOT_FEATURES) or series.shape != (
            n,
            SERIES_CHANNELS,
            SERIES_STEPS,
        ):
            msg = (
                f"snapshot has shape {tuple(snapshot.shape)} and series {tuple(series.shape)}; "
                f"expected (n, {SNAPSHOT_FEATURES}) and (n, {SERIES_CHANNELS}, {SERIES_STEPS})"
            )
            raise ValueError(msg)
        x = self.norm(torch.cat((snapshot, self.conv_block(series)), dim=1))
        for layer in (*self.dense_layers, *self.fc_layers):
            x = layer(x)
        result: torch.Tensor = self.out(x).squeeze(-1)
        return result


def _positive(name: str, value: SupportsIndex) -> int:
    try:
        number = index(value)
    except TypeError:
        number = 0
    if number < 1:
        msg = f"{name} is {value!r}; expected a whole number of at least 1"
        raise ValueError(msg)
    return number


class _ConvolutionBlock(nn.Module):
    """Three times convolution, batch norm, ReLU, dropout, mean pooling: lengths 46, 23, 11, 3.

    Only the last pooling rounds up; its last window holds 3 of the 11 values and is their mean.
    """

    def __init__(self) -> None:
        super().__init__()
        for number, (channels, filters, _) in enumerate(CONVOLUTIONS, start=1):
            convolution = nn.Conv1d(
                channels, filters, KERNEL, padding=KERNEL // 2, padding_mode="replicate"
            )
            setattr(self, f"conv{number}", convolution)
            setattr(self, f"bn{number}", nn.BatchNorm1d(filters))
        self.dropout = nn.Dropout(DROPOUT)
        self.pools = [
            nn.AvgPool1d(length, ceil_mode=number == len(CONVOLUTIONS))
            for number, (_, _, length) in enumerate(CONVOLUTIONS, start=1)
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn series (n, 3, 46) into features (n, 12), filter by filter."""
        for number, pool in enumerate(self.pools, start=1):
            x = getattr(self, f"conv{number}")(x)
            x = torch.relu(getattr(self, f"bn{number}")(x))
            x = pool(self.dropout(x))
        return x.flatten(1)


class _DenseBlock(nn.Module):
    """Three times linear, batch norm, ReLU; the new features are put before the old ones."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        for number in (1, 2, 3):
            setattr(self, f"linear{number}", nn.Linear(inputs if number == 1 else width, width))
        for number in (1, 2, 3):
            setattr(self, f"bn{number}", nn.BatchNorm1d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (n, inputs) into (n, width + inputs)."""
        new = x
        for number in (1, 2, 3):
            new = getattr(self, f"linear{number}")(new)
            new = torch.relu(getattr(self, f"bn{number}")(new))
        return torch.cat((new, x), dim=1)


class _Head(nn.Module):
    """Linear, ReLU, then batch norm."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, HEAD_WIDTH)
        self.bn1 = nn.BatchNorm1d(HEAD_WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (n, inputs) into (n, 32)."""
        y: torch.Tensor = self.bn1(torch.relu(self.linear1(x)))
        return y
