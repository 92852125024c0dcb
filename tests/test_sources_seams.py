from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Transformer
from sources_world import BBOX, NODATA, ORIGIN, World, cell_polygons, write_tiff

from xsoilsm.catalog import Segment, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.sentinel1 import rtc
from xsoilsm.sources.sentinel1.acquisitions import Acquisition, find_acquisitions
from xsoilsm.sources.sentinel1.seams import Seams

COARSE = ease2_geobox(BBOX, "1km")
FINE = ease2_geobox((5.0, 43.494, 5.006, 43.5), "100m")
ZONE_32 = "EPSG:32632"


def scene(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4.4, 0.02, (2, 500, 600)).astype(np.float32)


def add(world: World, pixels: np.ndarray, first: int, last: int, part: int) -> None:
    def edit(vv: Any, vh: Any) -> None:
        vv[:], vh[:] = pixels[0, first:last], pixels[1, first:last]

    world.radar(f"2020-06-03T17:40:{part:02d}", 33000, rows=(first, last), part=part, edit=edit)


def found(world: World) -> Acquisition:
    world.write()
    catalog = open_catalog(world.catalog_file())
    segment = Segment(
        source=catalog.sources["radar"][0], start=date(2020, 1, 1), end=date(2020, 12, 31)
    )
    ((acquisition,), _) = find_acquisitions(catalog, segment, BBOX)
    return acquisition


def read(world: World, geobox: Any) -> dict[str, np.ndarray]:
    stack = rtc.read_acquisition(found(world), geobox, "raise")
    return dict(zip(rtc.BANDS, stack[:, 0], strict=True))


@pytest.mark.parametrize("geobox", [COARSE, FINE])
@pytest.mark.parametrize("shared_rows", [1, 90])
def test_overlapping_slices_equal_one_image(tmp_path: Path, geobox: Any, shared_rows: int) -> None:
    pixels = scene(0)
    pixels[:, :, ::2] = NODATA  # half of the ground, which may not count as more where slices meet
    # The seam crosses the cells of both grids.
    parts, one = World(tmp_path / "parts"), World(tmp_path / "one")
    add(parts, pixels, 0, 290, 1)
    add(parts, pixels, 290 - shared_rows, 500, 2)
    add(one, pixels, 0, 500, 1)
    got, wanted = read(parts, geobox), read(one, geobox)
    assert 0.4 < wanted["coverage"].mean() < 0.6
    for name in ("sigma0_vv", "sigma0_vh", "coverage"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6, atol=2e-5)
    np.testing.assert_array_equal(got["source_flags"], wanted["source_flags"])


def test_the_first_slice_keeps_what_both_hold(tmp_path: Path) -> None:
    first, second = scene(1), scene(2) * 4
    world, mosaic = World(tmp_path / "two"), World(tmp_path / "mosaic")
    add(world, first, 0, 300, 1)
    add(world, second, 240, 500, 2)
    whole = np.concatenate([first[:, :300], second[:, 300:]], axis=1)
    add(mosaic, whole, 0, 500, 1)
    got, wanted = read(world, FINE), read(mosaic, FINE)
    np.testing.assert_allclose(got["sigma0_vv"], wanted["sigma0_vv"], rtol=0, atol=2e-3)


def test_a_zero_holds_nothing(tmp_path: Path) -> None:
    first, second = scene(1), scene(2)
    first[:, 200:300] = 0
    world, mosaic = World(tmp_path / "two"), World(tmp_path / "mosaic")
    add(world, first, 0, 300, 1)
    add(world, second, 150, 500, 2)
    add(mosaic, np.concatenate([first[:, :200], second[:, 200:]], axis=1), 0, 500, 1)
    got, wanted = read(world, FINE), read(mosaic, FINE)
    np.testing.assert_allclose(got["sigma0_vv"], wanted["sigma0_vv"], rtol=0, atol=2e-3)
    assert (got["coverage"] > 0.999).all()
    assert not got["source_flags"].any()


def test_coverage_counts_ground_once_and_zones_fuse(tmp_path: Path) -> None:
    """The second slice lies in the neighbouring zone, turned by one degree."""
    world = World(tmp_path)
    add(world, scene(1), 0, 300, 1)
    add(world, scene(2), 200, 500, 2)
    acquisition = found(world)
    across = Transformer.from_crs("EPSG:32631", ZONE_32, always_xy=True)
    x, y = across.transform(ORIGIN[0], ORIGIN[1] - 2700)
    corner = Affine(10, 0, round(x / 10) * 10, 0, -10, round(y / 10) * 10 + 50)
    for raster in (acquisition.slices[1].vv, acquisition.slices[1].vh):
        data = np.full((120, 350), 0.05, np.float32)
        write_tiff(Path(raster.href), data, corner, ZONE_32, -32768.0)
    fine = ease2_geobox(BBOX, "100m")
    stack = rtc.read_acquisition(acquisition, fine, "raise")
    coverage = dict(zip(rtc.BANDS, stack[:, 0], strict=True))["coverage"]
    west, north = ORIGIN
    one = shapely.box(west, north - 3000, west + 6000, north)
    ring = [(0, 0), (350, 0), (350, 120), (0, 120)]
    back = Transformer.from_crs(ZONE_32, "EPSG:32631", always_xy=True)
    other = shapely.Polygon([back.transform(*(corner * point)) for point in ring])
    union = one.union(other)
    cells = [shapely.Polygon(f["geometry"]["coordinates"][0]) for f in cell_polygons(fine)]
    expected = np.array([c.intersection(union).area / c.area for c in cells]).reshape(fine.shape)
    partial = (expected > 0.02) & (expected < 0.98)
    assert partial.sum() > 20
    # Half a pixel along a seam that crosses a cell is 1/20 of it.
    np.testing.assert_allclose(coverage, expected, rtol=0, atol=0.05)
    assert abs(float((coverage - expected).mean())) < 1e-3
    halves = [
        rtc.read_acquisition(acquisition, fine[rows], "raise")
        for rows in (np.s_[:7, :], np.s_[7:, :])
    ]
    np.testing.assert_allclose(np.concatenate(halves, axis=2), stack, rtol=3e-7, atol=1e-6)


def test_single_slices_cost_no_memory(tmp_path: Path) -> None:
    world = World(tmp_path)
    add(world, scene(1), 0, 500, 1)
    (piece,) = found(world).slices
    seams = Seams([piece.footprint])
    seams.begin()
    from xsoilsm.sources.pixels.reading import NativeReader, native_windows

    with NativeReader((piece.vv,)) as reader:
        for patch in native_windows(reader.geobox, COARSE):
            assert seams.held(patch) is None
            seams.keep(patch, np.ones(patch.geobox.shape, dtype=bool))
    assert not any(seams._kept)
