"""Outside the seven steps (samples): rectangles of cells, so that nothing beside truth is read.

Cells that hold truth lie scattered. Those that touch are read together, as rectangles in which
every cell holds truth; none reaches over the lines of a global lattice, so a rectangle does not
depend on cells far away. Where stations are dense it is quicker to read what lies between too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from odc.geo.geobox import GeoBox

from xsoilsm import grid

__all__ = ["SIDES", "Rectangle", "bounding_rectangles", "rectangles"]

SIDES = {"9km": 2, "1km": 16, "500m": 32, "100m": 64}
"""Cells along a side of the lattice, by resolution: at most 18 km are read at once."""


class Rectangle(NamedTuple):
    """A block of cells of one grid.

    Parameters
    ----------
    row, column : int
        Of its upper left cell.
    height, width : int
        Number of rows and columns.
    """

    row: int
    column: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """Name for files, for instance ``"r04500c011000h2w3"``."""
        return f"r{self.row:06d}c{self.column:06d}h{self.height}w{self.width}"

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Row and column of every cell, row by row."""
        return [
            (self.row + i, self.column + j) for i in range(self.height) for j in range(self.width)
        ]

    def geobox(self, res: str) -> GeoBox:
        """GeoBox of the block on the grid of a resolution."""
        return grid.get_grid(res).geobox(
            (self.row, self.row + self.height), (self.column, self.column + self.width)
        )


def rectangles(cells: Iterable[tuple[int, int]], side: int) -> list[Rectangle]:
    """Cover cells with rectangles that hold no other cell and do not overlap.

    Computes.

    Parameters
    ----------
    cells : iterable of (row, column)
    side : int
        Cells along a side of the lattice that no rectangle crosses.

    Returns
    -------
    list of Rectangle
        By row and column of their upper left cells.

    Raises
    ------
    ValueError
        When `side` is not positive.

    Examples
    --------
    >>> [part.name for part in rectangles([(5, 7), (5, 8), (6, 7), (6, 8), (9, 7)], 16)]
    ['r000005c000007h2w2', 'r000009c000007h1w1']
    """
    if side < 1:
        msg = f"side {side} is not positive"
        raise ValueError(msg)
    runs: list[Rectangle] = []
    last: tuple[int, int] | None = None
    for row, column in sorted(set(cells)):
        beside = last == (row, column - 1) and column % side != 0
        if beside:
            runs[-1] = runs[-1]._replace(width=runs[-1].width + 1)
        else:
            runs.append(Rectangle(row, column, 1, 1))
        last = (row, column)
    # Runs of the same columns in rows below each other grow together.
    done: list[Rectangle] = []
    open_ends: dict[tuple[int, int, int], Rectangle] = {}
    for run in runs:
        above = open_ends.pop((run.row, run.column, run.width), None)
        grown = run if above is None else above._replace(height=above.height + 1)
        if (run.row + 1) % side == 0:
            done.append(grown)
        else:
            open_ends[run.row + 1, run.column, run.width] = grown
    return sorted([*done, *open_ends.values()])


def bounding_rectangles(cells: Iterable[tuple[int, int]], side: int) -> list[Rectangle]:
    """Cover cells with one rectangle for each square of the lattice that holds some.

    Computes.

    Parameters
    ----------
    cells : iterable of (row, column)
    side : int
        Cells along a side of the lattice.

    Returns
    -------
    list of Rectangle
        Each from the first to the last row and column that hold a cell; cells between are in it
        too.

    Raises
    ------
    ValueError
        When `side` is not positive.

    Examples
    --------
    >>> [part.name for part in bounding_rectangles([(5, 7), (9, 8), (20, 7)], 16)]
    ['r000005c000007h5w2', 'r000020c000007h1w1']
    """
    if side < 1:
        msg = f"side {side} is not positive"
        raise ValueError(msg)
    squares: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in cells:
        squares.setdefault((row // side, column // side), []).append((row, column))
    found = []
    for held in squares.values():
        rows, columns = zip(*held, strict=True)
        top, left = min(rows), min(columns)
        found.append(Rectangle(top, left, max(rows) - top + 1, max(columns) - left + 1))
    return sorted(found)
