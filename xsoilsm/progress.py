"""Outside the seven steps (show): progress bars on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["share_bar", "task_bar"]


class _ShareBar:
    """A bar that takes shares of the work, and texts that say what is going on."""

    def __init__(self, name: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=100, desc=name, bar_format="{desc:<28} {percentage:3.0f}% |{bar}| ")

    def __enter__(self) -> Callable[[float | str], None]:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, state: float | str) -> None:
        if isinstance(state, str):
            self._bar.set_description_str(state)
        else:
            self._bar.update(100 * state - self._bar.n)


def share_bar(
    show: bool, name: str
) -> AbstractContextManager[Callable[[float | str], None] | None]:
    """Context that gives a callable for shares from 0 to 1 and texts, or None without a bar."""
    return _ShareBar(name) if show else nullcontext(None)


def task_bar(show: bool, name: str) -> AbstractContextManager[Any]:
    """Context in which local Dask computations show how many of their tasks are done."""
    if not show:
        return nullcontext()
    from tqdm.dask import TqdmCallback

    bar: AbstractContextManager[Any] = TqdmCallback(desc=name)
    return bar
