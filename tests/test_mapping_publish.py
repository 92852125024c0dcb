"""What is made of a job's tiles, whole or with tiles that failed."""

from __future__ import annotations

import shutil
from pathlib import Path

import mapping_scene
import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr
from mapping_scene import begin

from xsoilsm.cog import verify_cog
from xsoilsm.mapping import JobError, open_job, run_job
from xsoilsm.mapping.ledger import Ledger
from xsoilsm.mapping.publish import publish
from xsoilsm.quality import QualityFlag

pytestmark = pytest.mark.usefixtures("scene")


def copy_of_the_job(folder: Path) -> Path:
    job, _ = mapping_scene.undisturbed()
    shutil.copytree(job.folder, folder)
    return folder


def test_mosaics_hold_the_tiles_and_the_catalog_leads_to_them(tmp_path: Path) -> None:
    out = copy_of_the_job(tmp_path / "job")
    written = publish(out)
    assert len(written["cog"]) == 6
    job = open_job(out)
    for file in written["cog"]:
        verify_cog(file)
        with rasterio.open(file) as mosaic:
            assert mosaic.shape == job.configuration.geobox.shape
            assert mosaic.transform == job.configuration.geobox.affine
    tiles = sorted(job.tiles.glob("*/*/soil_moisture.tif"))
    filled = 0
    for file in tiles:
        with rasterio.open(file) as tile:
            filled += int(np.isfinite(tile.read(1)).sum())
    mosaics = [file for file in written["cog"] if file.name.startswith("soil_moisture_1km")]
    assert filled == sum(int(np.isfinite(rasterio.open(f).read(1)).sum()) for f in mosaics)
    (catalog,) = written["stac"]
    items = list(pystac.Catalog.from_file(str(catalog)).get_items(recursive=True))
    radar = {name for a in job.acquisitions for name, _ in a.items}
    acquired = [item for item in items if item.datetime and item.id not in ("model",)]
    assert len(acquired) >= 2
    assert radar <= {
        name for item in items for name in item.properties.get("xsoilsm:input_items", [])
    }


def test_mosaics_are_the_same_again_and_after_a_retry(tmp_path: Path) -> None:
    out = copy_of_the_job(tmp_path / "job")
    first = {file: file.read_bytes() for file in publish(out)["cog"]}
    stamps = {file: file.stat().st_mtime_ns for file in first}
    publish(out)
    assert {file: file.stat().st_mtime_ns for file in first} == stamps
    job = open_job(out)
    product, tile = (part.name for part in _first_tile(job.tiles))
    with Ledger(job.ledger, job.hash) as ledger:
        ledger.mark(product, tile, "failed", "the disk was on fire")
    flags = [file for file in publish(out)["cog"] if file.name.startswith("quality_flag")]
    failed = sum(int((rasterio.open(f).read(1) & QualityFlag.READ_FAILED > 0).sum()) for f in flags)
    assert failed > 0
    assert run_job(out, workers=1).is_complete
    assert {file: file.read_bytes() for file in publish(out)["cog"]} == first


def _first_tile(tiles: Path) -> tuple[Path, Path]:
    product = sorted(path for path in tiles.iterdir() if path.is_dir())[0]
    return product, sorted(path for path in product.iterdir() if path.is_dir())[0]


def test_a_job_becomes_one_array_store(tmp_path: Path) -> None:
    out = copy_of_the_job(tmp_path / "job")
    (store,) = publish(out, forms=("zarr",), numbers="int16")["zarr"]
    (mosaics,) = (publish(out, forms=("cog",))["cog"],)
    with xr.open_zarr(store) as opened:
        assert opened.sizes["time"] == 2
        values = opened["soil_moisture"].load()
    for index, file in enumerate(f for f in mosaics if f.name.startswith("soil_moisture_1km")):
        with rasterio.open(file) as mosaic:
            np.testing.assert_allclose(values[index], mosaic.read(1), atol=5.1e-5)


def test_nothing_is_published_of_a_job_that_has_not_run(tmp_path: Path) -> None:
    job = begin(tmp_path / "job")
    with pytest.raises(JobError, match="run"):
        publish(job)
