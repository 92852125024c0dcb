"""Native pixels are what is averaged, whatever else a file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.transform import from_origin

from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.pixels.reading import CellSums, NativeReader, Raster, native_windows

LOOKS = 4.4
PIXELS = 1200


def speckle(folder: Path) -> Path:
    """Write 12 x 12 km of homogeneous speckle, a COG whose overviews repeat single pixels."""
    rng = np.random.default_rng(0)
    power = (rng.standard_gamma(LOOKS, (PIXELS, PIXELS)) / LOOKS).astype(np.float32)
    profile = {
        "driver": "GTiff",
        "width": PIXELS,
        "height": PIXELS,
        "count": 1,
        "dtype": "float32",
        "crs": "EPSG:32630",
        "transform": from_origin(300000, 4580000, 10, 10),
        "tiled": True,
    }
    plain, cog = folder / "plain.tif", folder / "cog.tif"
    with rasterio.open(plain, "w", **profile) as file:
        file.write(power, 1)
    copy(plain, cog, driver="COG", OVERVIEW_RESAMPLING="NEAREST", BLOCKSIZE=256)
    return cog


def cell_means(path: Path, res: str) -> npt.NDArray[np.float32]:
    """Means of the cells that the file covers whole."""
    sums = CellSums(1, ease2_geobox((-5.37, 41.26, -5.26, 41.34), res))
    with NativeReader([Raster(str(path), Access())]) as reader:
        for patch in native_windows(reader.geobox, sums.target):
            sums.add(np.stack(reader.read(patch)).astype(np.float32), patch)
    mean, coverage = sums.finish()
    return mean[coverage > 0.999]


def test_overviews_of_nearest_pixels_do_not_change_the_looks(tmp_path: Path) -> None:
    cog = speckle(tmp_path)
    with rasterio.open(cog) as file:
        factors = file.overviews(1)
        coarse = file.read(1, out_shape=(PIXELS // 4, PIXELS // 4), resampling=Resampling.nearest)
    assert 4 in factors
    means = cell_means(cog, "1km")
    plain = cell_means(tmp_path / "plain.tif", "1km")
    assert means.size >= 25
    assert np.array_equal(means, plain)
    # 10,000 pixels of 4.4 looks each: the relative spread of a cell is 1 / sqrt(44,000).
    spread = float(np.std(means) / np.mean(means))
    assert 0.6 < spread * np.sqrt(LOOKS * 1e4) < 1.5
    # The same from an overview would have a sixteenth of the looks: the test can fail.
    blocks = coarse[:300, :300].reshape(12, 25, 12, 25).mean(axis=(1, 3))
    assert np.std(blocks) / np.mean(blocks) * np.sqrt(LOOKS * 1e4) > 2.5
