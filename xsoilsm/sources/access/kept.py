"""What was read and will be asked for again, kept in memory up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

__all__ = ["Kept"]


class Kept:
    """Values by key in the memory of this process; what was used least recently goes first.

    Threads may share it.

    Parameters
    ----------
    limit : int
        Bytes that are kept. The last value stays even where it is larger.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._total = 0
        self._guard = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """Value of a key, or None. Do not change it."""
        with self._guard:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of so many bytes."""
        with self._guard:
            self._total += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = value, size
            while self._total > self.limit and len(self._values) > 1:
                _, (_, gone) = self._values.popitem(last=False)
                self._total -= gone

    def clear(self) -> None:
        """Forget everything."""
        with self._guard:
            self._values.clear()
            self._total = 0
