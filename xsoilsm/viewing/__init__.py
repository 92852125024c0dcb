"""Outside the seven steps (look): results as pictures, and in a web page on this machine.

``pictures`` draws them, also for notebooks. For the page, ``layers`` finds what a folder of results
holds, ``pixels`` reads one place through time, ``flags`` colours quality flags, ``server``
answers, and the page itself lies in ``page``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

__all__ = ["view"]


def view(
    folder: str | os.PathLike[str],
    port: int = 0,
    *,
    explain: Callable[[float, float, str], str] | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Show a folder of results in a web page until interrupted. Listens on 127.0.0.1 only.

    Parameters
    ----------
    folder : path
        That holds results as GeoTIFFs, itself or in folders below.
    port : int, default 0
        A free one by default.
    explain : callable of (lon, lat, time) giving str, optional
        Says why a cell is empty or flagged, beside what its flags say.
    started : callable of str, optional
        Is told the address of the page as soon as it can be opened.

    Raises
    ------
    FileNotFoundError
        When the folder holds no map.
    OSError
        When the port is taken.
    ModuleNotFoundError
        When the packages of the extra ``view`` are not installed.
    """
    absent = [name for name in ("titiler", "uvicorn", "maplibre") if _is_absent(name)]
    if absent:
        msg = f"viewing needs {', '.join(absent)}; install them with: pip install 'xsoilsm[view]'"
        raise ModuleNotFoundError(msg, name=absent[0])
    from xsoilsm.viewing.server import serve

    serve(folder, port, explain=explain, started=started)


def _is_absent(package: str) -> bool:
    return importlib.util.find_spec(package) is None
