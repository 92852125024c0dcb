"""Fixtures: the virtual landscape behind the services of a provider."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr

from services import provider as forms
from services import stac_api
from services.storage import BlobStorage, blob_storage
from xsoilsm import load_cube, open_catalog
from xsoilsm.catalog import Catalog
from xsoilsm.simulate import simulate_landscape

REGION = (-5.43, 41.2775, -5.37, 41.3225)
"""West, south, east, north of the landscape, degrees."""

GOOD, UNPROJECTED, STALE, SPLIT, ZEROED = range(5)
"""Numbers of the acquisitions, by time, and what is wrong with their items or files."""

TIME = "2020-04"


@dataclass
class Services:
    """What runs, and the cubes of the landscape read from its own files.

    Parameters
    ----------
    storage : BlobStorage
    api : str
        Root of the STAC API.
    landscape : Path
        Folder with ``catalog.json``.
    shared : Path
        Real sample data.
    """

    storage: BlobStorage
    api: str
    landscape: Path
    shared: Path
    turn: Iterator[int] = field(default_factory=itertools.count)

    @property
    def endpoints(self) -> dict[str, str]:
        """What a user changes to reach the services here."""
        return forms.endpoints(self.api, self.storage.url)

    def catalog(self) -> Catalog:
        """Open the catalog of the Planetary Computer with other endpoints, nothing else."""
        return open_catalog("planetary-computer", endpoints=self.endpoints)

    def demo(self) -> Catalog:
        """Open the catalog of the landscape's own files."""
        return open_catalog("demo", endpoints={"landscape": str(self.landscape / "catalog.json")})

    def start_anew(self) -> None:
        """End all faults, and forget what client and server remember."""
        from planetary_computer import sas, settings

        from xsoilsm.sources.pixels import edges
        from xsoilsm.sources.sentinel1 import annotation

        edges.forget()
        settings.Settings.get.cache_clear()
        sas.TOKEN_CACHE.clear()
        for function in vars(annotation).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
        self.storage.reset()
        # Signatures that differ from all before: GDAL remembers files by their signed links.
        self.storage.lifetime(2700 + next(self.turn))

    def items(self) -> list[dict[str, Any]]:
        """Items that the STAC API serves."""
        return forms.items(self.shared, self.landscape)


@pytest.fixture(scope="session")
def services(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Start a STAC API on PostgreSQL and a blob storage with expiring signatures."""
    reason = stac_api.missing()
    if reason:
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, but continuous integration must have it")
        pytest.skip(reason)
    with warnings.catch_warnings():
        # planetary-computer 1.0 defines its models in the manner of pydantic 1.
        warnings.simplefilter("ignore")
        import planetary_computer  # noqa: F401
    folder = tmp_path_factory.mktemp("services")
    landscape = _landscape(tmp_path_factory)
    containers = forms.containers(landscape)
    scenes = "sentinel1euwestrtc/sentinel1-grd-rtc"
    spoilt = shutil.copytree(containers[scenes], folder / "scenes")
    items = forms.items(shared, landscape)
    passes = sorted(
        {i["properties"]["sat:absolute_orbit"] for i in items if i["collection"] == RTC}
    )
    for item in items:
        if item["collection"] != RTC:
            continue
        number = passes.index(item["properties"]["sat:absolute_orbit"])
        if number == UNPROJECTED:
            _without_projection(item)
        elif number == STALE:
            item["properties"]["proj:transform"][2] += 20_000.0
        elif number == ZEROED:
            for key in ("vv", "vh"):
                path = item["assets"][key]["href"].partition("sentinel1-grd-rtc/")[2]
                _zero_the_north(spoilt / path)
    containers[scenes] = spoilt
    soil = forms.lay_out_soil(landscape, folder / "soil")
    with ExitStack() as stack:
        storage = stack.enter_context(blob_storage(folder, containers, {"soilgrids": soil}))
        api = stack.enter_context(
            stac_api.stac_api(folder, forms.collections(shared, landscape), items)
        )
        yield Services(storage, api, landscape, shared)


def _landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulate the landscape, once for all processes of the session."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "landscape.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        simulate_landscape(base / "landscape", size_km=5, spacing=50, acquisitions=5)
    return base / "landscape"


RTC = "sentinel-1-rtc"


def _without_projection(item: dict[str, Any]) -> None:
    for name in [key for key in item["properties"] if key.startswith("proj:")]:
        del item["properties"][name]
    item["stac_extensions"] = [x for x in item["stac_extensions"] if "projection" not in x]


def _zero_the_north(file: Path) -> None:
    """Overwrite the upper half of a scene with zeros, as failed processing leaves them."""
    with rasterio.open(file) as source:
        profile, data = source.profile, source.read(1)
    data[: data.shape[0] // 2] = 0
    file.unlink()
    with rasterio.open(file, "w", **profile) as target:
        target.write(data, 1)


@pytest.fixture
def provider(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Services]:
    """Hand out the services without faults, with nothing remembered, and a client in a hurry."""
    monkeypatch.setenv("PC_SDK_SAS_URL", services.storage.tokens_url)
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XSOILSM_HTTP_WAIT", "0.02")
    monkeypatch.setenv("XSOILSM_HTTP_TIMEOUT", "5")
    services.start_anew()
    yield services
    services.start_anew()


@pytest.fixture(scope="session")
def expected(services: Services) -> xr.Dataset:
    """Cube of the landscape, computed from its own files, without any service."""
    cube = load_cube(REGION, TIME, catalog=services.demo(), cache=False).compute()
    assert cube.sizes["time"] == 5
    assert np.isfinite(cube.sigma0_vv.values).all()
    return cube


@pytest.fixture(scope="session")
def lazy(services: Services) -> xr.Dataset:
    """Cube over the services, set up once and long before it is read."""
    return load_cube(REGION, TIME, catalog=services.catalog(), cache=False)
