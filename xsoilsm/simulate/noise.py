"""Outside the seven steps (simulate): random fields that depend only on a seed and a place.

A field is a sum of octaves of smoothed white noise on lattices that cover the whole plane. The
value at a lattice node is a hash of its integer place, so any window of a field can be evaluated
by itself and neighbouring windows agree exactly: large landscapes need no large arrays.
Nothing is read.

Sources: cubic B-spline smoothing of lattice noise, octaves with falling amplitude (Perlin 1985);
cells of nearest jittered points (Worley 1996); the hash is the finaliser of SplitMix64
(Steele, Lea and Flood 2014); seeds spread by ``numpy.random.SeedSequence``.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import ndtri

__all__ = ["Fractal", "Patches", "child_seed", "generator", "uniform"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]

_SPLINE_VARIANCE = (151 / 315) ** 2
"""Mean variance of cubic B-spline smoothed white noise of unit variance in two dimensions."""


def child_seed(seed: int, purpose: str, *numbers: int) -> np.random.SeedSequence:
    """Seed of one purpose, independent of the seeds of all other purposes.

    Parameters
    ----------
    seed : int
        Seed of the landscape.
    purpose : str
        What the numbers are for, for instance ``"speckle"``.
    *numbers : int
        Non-negative numbers that tell draws of one purpose apart.

    Returns
    -------
    numpy.random.SeedSequence
    """
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *numbers))


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Make the generator of one purpose; parameters as in `child_seed`."""
    return np.random.default_rng(child_seed(seed, purpose, *numbers))


def _scramble(x: UInt64) -> UInt64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(key: int, row: npt.ArrayLike, column: npt.ArrayLike) -> UInt64:
    """Hash lattice places (any integers, broadcast) under a 64-bit key."""
    r = np.atleast_1d(np.asarray(row, dtype=np.int64)).view(np.uint64)
    c = np.atleast_1d(np.asarray(column, dtype=np.int64)).view(np.uint64)
    start = np.array([key], dtype=np.uint64)
    mixed = _scramble(r * np.uint64(0x9E3779B97F4A7C15) + start)
    return _scramble(mixed ^ (c * np.uint64(0xD1B54A32D192ED03) + np.uint64(0x632BE59BD9B4E019)))


def _unit(hashed: UInt64) -> Float64:
    """Turn hashes into uniform numbers in the open interval (0, 1)."""
    return ((hashed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def uniform(cells: UInt64, number: int) -> Float32:
    """Uniform numbers of patches.

    Parameters
    ----------
    cells : ndarray of uint64
        Names of patches, from `Patches.on_axes`.
    number : int
        Which of a patch's independent numbers.

    Returns
    -------
    ndarray of float32, in (0, 1)
    """
    step = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    return _unit(_scramble(cells + np.uint64(step))).astype(np.float32)


def _spline(fraction: Float64) -> Float64:
    """Cubic B-spline weights (..., 4) of the four lattice nodes around each point."""
    f = fraction[..., None]
    weights = np.concatenate(
        (
            (1 - f) ** 3,
            3 * f**3 - 6 * f**2 + 4,
            -3 * f**3 + 3 * f**2 + 3 * f + 1,
            f**3,
        ),
        axis=-1,
    )
    return np.asarray(weights / 6)


@dataclass(frozen=True)
class Fractal:
    """A smooth random field with mean 0 and variance 1 on an endless plane.

    Parameters
    ----------
    seed : int
        Seed of the landscape.
    name : str
        Purpose; fields with different names are independent.
    spacing : float
        Lattice spacing of the coarsest octave in m; features are about three times as wide.
    octaves : int, default 1
        Number of octaves; each halves the spacing.
    persistence : float, default 0.5
        Ratio of the amplitudes of one octave and the one before; 0.5 gives every octave the
        same slopes.
    numbers : tuple of int, default ()
        Tells fields of one name apart, for instance by day.
    """

    seed: int
    name: str
    spacing: float
    octaves: int = 1
    persistence: float = 0.5
    numbers: tuple[int, ...] = ()

    def _octaves(self, octaves: int | None) -> list[tuple[int, float, float]]:
        """Key, spacing in m and amplitude of each octave."""
        amplitude = self.persistence ** np.arange(self.octaves)
        amplitude = amplitude / np.sqrt(np.square(amplitude).sum() * _SPLINE_VARIANCE)
        keys = child_seed(self.seed, self.name, *self.numbers).generate_state(
            self.octaves, np.uint64
        )
        count = self.octaves if octaves is None else min(octaves, self.octaves)
        return [(int(keys[k]), self.spacing / 2**k, float(amplitude[k])) for k in range(count)]

    def on_axes(self, v: Float64, u: Float64, octaves: int | None = None) -> Float32:
        """Evaluate on a grid.

        Parameters
        ----------
        v, u : (y,), (x,) ndarray
            Northing and easting of rows and columns in m.
        octaves : int, optional
            Only so many of the coarsest octaves: the same field, smoothed.

        Returns
        -------
        (y, x) ndarray of float32
        """
        total = np.zeros((v.size, u.size), dtype=np.float32)
        for key, spacing, amplitude in self._octaves(octaves):
            rows, first_row, count_rows = _axis_weights(v / spacing)
            columns, first_column, count_columns = _axis_weights(u / spacing)
            nodes = ndtri(
                _unit(
                    _hash(
                        key,
                        first_row + np.arange(count_rows)[:, None],
                        first_column + np.arange(count_columns)[None, :],
                    )
                )
            )
            half = columns @ (nodes * amplitude).astype(np.float32).T  # (x, node rows)
            total += rows @ np.ascontiguousarray(half.T)
        return total

    def at(self, v: Float64, u: Float64, octaves: int | None = None) -> Float32:
        """Evaluate at scattered points; `v` and `u` are broadcast, the rest as in `on_axes`."""
        v, u = np.broadcast_arrays(np.asarray(v, float), np.asarray(u, float))
        total = np.zeros(v.shape, dtype=np.float64)
        for key, spacing, amplitude in self._octaves(octaves):
            row, column = np.floor(v / spacing), np.floor(u / spacing)
            wy, wx = _spline(v / spacing - row), _spline(u / spacing - column)
            around = np.arange(-1, 3)
            nodes = ndtri(
                _unit(
                    _hash(
                        key,
                        row.astype(np.int64)[..., None, None] + around[:, None],
                        column.astype(np.int64)[..., None, None] + around[None, :],
                    )
                )
            )
            total += amplitude * np.einsum("...ij,...i,...j->...", nodes, wy, wx)
        return total.astype(np.float32)


def _axis_weights(position: Float64) -> tuple[csr_array, int, int]:
    """Sparse spline matrix of one axis, its first lattice number and the count of nodes."""
    base = np.floor(position)
    first = int(base.min()) - 1
    count = int(base.max()) + 3 - first
    offset = (base.astype(np.int64) - 1 - first)[:, None] + np.arange(4)
    matrix = csr_array(
        (
            _spline(position - base).astype(np.float32).ravel(),
            offset.ravel(),
            np.arange(0, 4 * position.size + 1, 4),
        ),
        shape=(position.size, count),
    )
    return matrix, first, count


@dataclass(frozen=True)
class Patches:
    """Irregular patches, such as fields, around jittered lattice points.

    Parameters
    ----------
    seed : int
        Seed of the landscape.
    name : str
        Purpose.
    spacing : float
        Mean distance of neighbouring patches in m.
    """

    seed: int
    name: str
    spacing: float

    def on_axes(self, v: Float64, u: Float64) -> UInt64:
        """Name the patch of every cell of a grid.

        Parameters
        ----------
        v, u : (y,), (x,) ndarray
            Northing and easting of rows and columns in m.

        Returns
        -------
        (y, x) ndarray of uint64
            One number per patch, to be used with `uniform`.
        """
        key = int(child_seed(self.seed, self.name).generate_state(1, np.uint64)[0])
        y, x = v / self.spacing, u / self.spacing
        row, column = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        first_row, first_column = int(row.min()) - 1, int(column.min()) - 1
        rows = np.arange(first_row, int(row.max()) + 2)
        columns = np.arange(first_column, int(column.max()) + 2)
        name = _hash(key, rows[:, None], columns[None, :])
        jitter_y = uniform(name, 1000) + rows[:, None]
        jitter_x = uniform(name, 1001) + columns[None, :]
        best = np.full((v.size, u.size), np.inf)
        result = np.zeros((v.size, u.size), dtype=np.uint64)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                at = np.ix_(row + down - first_row, column + right - first_column)
                distance = (jitter_y[at] - y[:, None]) ** 2 + (jitter_x[at] - x[None, :]) ** 2
                nearer = distance < best
                np.copyto(best, distance, where=nearer)
                np.copyto(result, name[at], where=nearer)
        return result
