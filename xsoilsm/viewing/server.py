"""Outside the seven steps (look): a tile server for results, on this machine alone.

Tiles are cut by titiler. Maps are named by what `find_layers` found: an address can name no other
file. The page's scripts come from installed packages, so it works without a network.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response
from rio_tiler.errors import TileOutsideBounds
from rio_tiler.models import ImageData
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from titiler.core.algorithm import Algorithms
from titiler.core.algorithm.base import BaseAlgorithm
from titiler.core.factory import TilerFactory

from xsoilsm.viewing.flags import colour, legend
from xsoilsm.viewing.layers import VARIABLES, Layer, find_layers, scenes
from xsoilsm.viewing.pixels import series_at

__all__ = ["make_app", "serve"]

Explain = Callable[[float, float, str], str]

_PAGE = ("index.html", "viewer.css", "viewer.js")
_SCRIPTS = ("maplibre-gl.js", "maplibre-gl.css")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; worker-src blob:; style-src 'self' "
    "'unsafe-inline'; frame-ancestors 'none'"
)
_LIMITS = {"soil_moisture": (0.0, 0.45, "ylgnbu"), "soil_moisture_std": (0.0, 0.08, "magma_r")}


class Flags(BaseAlgorithm):
    """Quality flags as colours, a step of titiler between reading and drawing."""

    bits: int = 0

    def __call__(self, img: ImageData) -> ImageData:
        """Colour one tile."""
        rgb, shown = colour(img.array.data[0].astype(np.int64), self.bits)
        hidden = np.broadcast_to(~shown, rgb.shape)
        return ImageData(np.ma.MaskedArray(rgb, mask=hidden), crs=img.crs, bounds=img.bounds)


def make_app(layers: Sequence[Layer], explain: Explain | None = None) -> FastAPI:
    """Make the web application. Lazy: reads nothing.

    Parameters
    ----------
    layers : sequence of Layer
    explain : callable of (lon, lat, time) giving str, optional
        Says why a cell is empty or flagged; without it the flags speak.

    Returns
    -------
    fastapi.FastAPI
    """
    known = {_name(layer.id): layer for layer in layers}

    def path_of(layer: str) -> str:
        if layer not in known:
            raise HTTPException(404, f"there is no map {layer!r}")
        return str(known[layer].path)

    app = FastAPI(title="xsoilsm", docs_url=None, redoc_url=None, openapi_url=None)
    # Only by its own names: a page elsewhere cannot reach this server by a name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    tiler = TilerFactory(
        router_prefix="/maps/{layer}",
        path_dependency=path_of,
        process_dependency=Algorithms({"flags": Flags}).dependency,
        add_preview=False,
        add_part=False,
        add_viewer=False,
    )
    app.include_router(tiler.router, prefix="/maps/{layer}")

    @app.exception_handler(TileOutsideBounds)
    def beyond(request: Request, error: Exception) -> Response:
        return Response(status_code=204)

    @app.get("/api/scenes")
    def all_scenes() -> dict[str, Any]:
        listed = scenes(layers)
        for scene in listed:
            scene |= {name: _name(str(scene[name])) for name in VARIABLES if name in scene}
        return {"scenes": listed, "flags": legend(), "limits": _LIMITS}

    @app.get("/api/pixel")
    def pixel(lon: float, lat: float, res: str) -> dict[str, Any]:
        return {"lon": lon, "lat": lat, "series": series_at(layers, lon, lat, res)}

    @app.get("/api/explain")
    def reasons(lon: float, lat: float, time: str) -> dict[str, str]:
        return {"text": "" if explain is None else explain(lon, lat, time)}

    own = files("xsoilsm.viewing").joinpath("page")
    contents = {name: own.joinpath(name).read_bytes() for name in _PAGE}
    contents |= {name: _maplibre().joinpath(name).read_bytes() for name in _SCRIPTS}

    @app.get("/{name}")
    @app.get("/")
    def page(name: str = "index.html") -> Response:
        if name not in contents:
            raise HTTPException(404, f"there is no page {name!r}")
        kind = _TYPES[os.path.splitext(name)[1]]
        headers = {"Content-Security-Policy": _POLICY}
        return Response(contents[name], media_type=kind, headers=headers)

    return app


def serve(
    folder: str | os.PathLike[str],
    port: int = 0,
    *,
    explain: Explain | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Answer until interrupted; parameters and errors as for `xsoilsm.viewing.view`."""
    app = make_app(find_layers(folder), explain)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        if started is not None:
            started(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with warnings.catch_warnings():
            # rio-tiler keeps NaN as fill value while it turns values into colours; it is masked.
            warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
            server.run(sockets=[listening])


def _name(layer_id: str) -> str:
    """Name of a map in an address, where a slash would part it."""
    return layer_id.replace("/", "~")


def _maplibre() -> Path:
    """Folder of the scripts in the package maplibre, which need not be imported for that."""
    spec = importlib.util.find_spec("maplibre")
    if spec is None or not spec.submodule_search_locations:
        msg = "the package maplibre is not installed; it brings the scripts of the page"
        raise ModuleNotFoundError(msg, name="maplibre")
    return Path(spec.submodule_search_locations[0], "srcjs")
