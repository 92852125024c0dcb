"""Mosaics of tiles: every pixel in its place, the same bytes whatever the order of tiles."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from output_tiles import (
    ASCENDING,
    DESCENDING,
    MOISTURE,
    WEEK,
    pieces_of_two,
    region,
    truth,
    write_tiles,
)

from xsoilsm.cog import verify_cog, write_cog
from xsoilsm.cube import spatial_coords
from xsoilsm.grid import get_grid
from xsoilsm.outputs.dataset import open_tiles
from xsoilsm.outputs.mosaic import NODATA, Packing, write_mosaics
from xsoilsm.outputs.pieces import Acquisition, Piece
from xsoilsm.quality import QualityFlag


@pytest.fixture
def pieces() -> list[Piece]:
    return list(pieces_of_two())


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        pixels: np.ndarray = file.read(1)
    return pixels


def test_every_cell_is_in_its_place(pieces: list[Piece], tmp_path: Path) -> None:
    files = write_mosaics(pieces, tmp_path)
    assert [(f.acquisition, f.variable) for f in files] == [
        (acquisition, variable)
        for acquisition in (DESCENDING, ASCENDING)
        for variable in ("soil_moisture", "soil_moisture_std", "quality_flag")
    ]
    for file in files:
        verify_cog(file.path)
        expected = truth(file.acquisition, region())[file.variable]
        np.testing.assert_array_equal(read(file.path), expected)
        with rasterio.open(file.path) as raster:
            assert raster.transform == region().affine
            assert raster.crs.to_epsg() == 6933
            assert raster.descriptions == (file.variable,)
            assert raster.tags()["ensemble_digest"] == "d" * 64
    assert {path.name for path in tmp_path.iterdir()} == {file.path.name for file in files}


def test_names_tell_what_is_in_a_file(pieces: list[Piece], tmp_path: Path) -> None:
    names = [f.path.name for f in write_mosaics(pieces, tmp_path)]
    assert names[0] == ("soil_moisture_1km_20200405T062004_S1A_D052_densesm-e-coarse_v0.1.0.tif")
    assert names[5] == "quality_flag_1km_20200406T181002_S1B_A074_densesm-e-coarse_v0.1.0.tif"
    week = write_tiles(tmp_path / "week", (WEEK,), region((10, 10)))
    named = write_mosaics(week, tmp_path / "week" / "out")[0].path.name
    assert named == "soil_moisture_1km_20200401P8D_densesm-e-coarse_v0.1.0.tif"


def test_bytes_do_not_depend_on_the_order_of_tiles(pieces: list[Piece], tmp_path: Path) -> None:
    wanted = write_mosaics(pieces, tmp_path / "a", numbers="int16")
    shuffled = random.Random(3).sample(pieces, len(pieces))
    found = write_mosaics(shuffled, tmp_path / "b", numbers="int16")
    assert [f.path.name for f in found] == [f.path.name for f in wanted]
    assert [f.path.read_bytes() for f in found] == [f.path.read_bytes() for f in wanted]


def test_tags_say_time_orbit_and_inputs(pieces: list[Piece], tmp_path: Path) -> None:
    descending, *_, ascending = write_mosaics(pieces, tmp_path)
    with rasterio.open(descending.path) as file:
        tags = file.tags()
        assert file.units == ("m3 m-3",)
    assert tags["time_utc"] == "2020-04-05T06:20:04"
    assert (tags["platform"], tags["relative_orbit"]) == ("sentinel-1a", "52")
    assert tags["input_items"] == "S1A_scene MOD13Q1_a"
    assert tags["standard_name"] == MOISTURE["standard_name"]
    with rasterio.open(ascending.path) as file:  # its acquisition names no items, its tiles do
        assert file.tags()["input_items"] == "S1_75 S1_76 common"


def test_scaled_integers_are_half_a_step_off_at_most(pieces: list[Piece], tmp_path: Path) -> None:
    moisture, spread, flags = write_mosaics(pieces, tmp_path, numbers="int16")[:3]
    for file in (moisture, spread):
        with rasterio.open(file.path) as raster:
            assert raster.dtypes == ("int16",)
            assert (raster.scales, raster.offsets) == ((1e-4,), (0.0,))
            assert raster.nodata == NODATA
            assert raster.units == ("m3 m-3",)
        expected = truth(DESCENDING, region())[file.variable]
        stored = read(file.path)
        np.testing.assert_array_equal(stored == NODATA, np.isnan(expected))
        values = np.where(stored == NODATA, np.nan, stored * 1e-4)
        assert np.nanmax(np.abs(values - expected)) <= 0.5e-4 + 1e-8
    np.testing.assert_array_equal(read(flags.path), truth(DESCENDING, region())["quality_flag"])


def test_gdal_unscales_on_its_own(pieces: list[Piece], tmp_path: Path) -> None:
    file = write_mosaics(pieces, tmp_path, numbers="int16")[0]
    with xr.open_dataset(file.path, engine="rasterio") as opened:
        values = opened["band_data"].values[0]
    expected = truth(DESCENDING, region())["soil_moisture"]
    np.testing.assert_allclose(values, expected, atol=0.51e-4)


@settings(max_examples=40)
@given(st.lists(st.floats(-3.25, 3.25, width=32) | st.just(float("nan")), min_size=1, max_size=20))
def test_packing_keeps_what_is_missing_and_rounds_to_the_nearest(values: list[float]) -> None:
    packing = Packing.of("soil_moisture", "float32", "int16")
    given_values = np.array(values, np.float32)
    packed = packing.pack(given_values)
    assert packed.dtype == np.int16
    np.testing.assert_array_equal(packed == NODATA, np.isnan(given_values))
    known = ~np.isnan(given_values)
    assert np.all(np.abs(packed[known] * packing.scale - given_values[known]) <= 0.5001e-4)


def test_values_out_of_range_are_not_wrapped() -> None:
    packing = Packing.of("soil_moisture", "float32", "int16")
    with pytest.raises(ValueError, match=r"4\.5.*float32"):
        packing.pack(np.array([0.2, 4.5], np.float32))
    with pytest.raises(ValueError, match="to inf do not fit"):
        packing.pack(np.array([0.2, np.inf], np.float32))


def test_cells_without_a_tile_are_no_scene(pieces: list[Piece], tmp_path: Path) -> None:
    lost = {pieces[0].geobox, pieces[-1].geobox}
    left = [p for p in pieces if p.geobox not in lost and p.acquisition == DESCENDING]
    moisture, _, flags = write_mosaics(left, tmp_path, geobox=region())
    found = open_tiles(left, geobox=region())
    hole = np.ones(region().shape, bool)
    for piece in left:
        rows, columns = region().overlap_roi(piece.geobox)
        hole[rows, columns] = False
    assert 0 < hole.sum() < hole.size / 2
    assert np.isnan(read(moisture.path)[hole]).all()
    assert (read(flags.path)[hole] == QualityFlag.NO_SCENE).all()
    expected = truth(DESCENDING, region())
    np.testing.assert_array_equal(read(flags.path)[~hole], expected["quality_flag"][~hole])
    np.testing.assert_array_equal(found["quality_flag"].values[0], read(flags.path))


def test_a_tile_that_failed_says_why(pieces: list[Piece], tmp_path: Path) -> None:
    one = pieces[0].geobox
    failed = [
        dataclasses.replace(p, path=None, flag=int(QualityFlag.READ_FAILED))
        if p.geobox == one and p.acquisition == DESCENDING
        else p
        for p in pieces
    ]
    moisture, spread, flags = write_mosaics(failed, tmp_path)[:3]
    rows, columns = region().overlap_roi(one)
    assert (read(flags.path)[rows, columns] == QualityFlag.READ_FAILED).all()
    assert np.isnan(read(moisture.path)[rows, columns]).all()
    assert np.isnan(read(spread.path)[rows, columns]).all()
    assert (read(flags.path) == QualityFlag.READ_FAILED).sum() == one.shape[0] * one.shape[1]


def test_a_mosaic_of_nothing_but_failures_can_be_written(tmp_path: Path) -> None:
    pieces = [Piece(None, region((5, 6)), v, WEEK) for v in ("soil_moisture", "quality_flag")]
    moisture, flags = write_mosaics(pieces, tmp_path, numbers="int16")
    assert (read(moisture.path) == NODATA).all()
    assert (read(flags.path) == QualityFlag.READ_FAILED).all()


def test_a_second_call_writes_only_what_has_changed(pieces: list[Piece], tmp_path: Path) -> None:
    files = write_mosaics(pieces, tmp_path)
    before = {f.path: f.path.stat().st_mtime_ns for f in files}
    files[4].path.unlink()
    again = write_mosaics(pieces, tmp_path)
    after = {f.path: f.path.stat().st_mtime_ns for f in again}
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {files[4].path}
    # A damaged mosaic, and one of other tiles, are not taken for good.
    content = bytearray(files[0].path.read_bytes())
    content[-200] ^= 0xFF
    files[0].path.write_bytes(content)
    with pytest.raises(FileExistsError, match="damaged or made of other tiles"):
        write_mosaics(pieces, tmp_path)
    mended = write_mosaics(pieces, tmp_path, overwrite=True)
    verify_cog(mended[0].path)
    with pytest.raises(FileExistsError, match="other tiles"):
        write_mosaics([p for p in pieces if p.geobox != pieces[0].geobox], tmp_path)


def test_overviews_average_moisture_and_keep_flags(tmp_path: Path) -> None:
    box = region((600, 520))
    pieces = write_tiles(tmp_path, (DESCENDING,), box, size=512)
    moisture, _, flags = write_mosaics(pieces, tmp_path / "out", numbers="int16")
    whole = truth(DESCENDING, box)
    with rasterio.open(moisture.path, overview_level=0) as file:
        found = file.read(1).astype(float) * 1e-4
        assert file.shape == (300, 260)
    with np.errstate(invalid="ignore"):
        four = whole["soil_moisture"].reshape(300, 2, 260, 2)
        expected = np.nansum(four, (1, 3)) / np.isfinite(four).sum((1, 3))
    known = np.isfinite(expected)
    np.testing.assert_allclose(found[known], expected[known], atol=2.1e-4)
    with rasterio.open(flags.path, overview_level=0) as file:
        assert set(np.unique(file.read(1))) <= {0, 4, 8, 32, 40}  # nothing is averaged


def test_what_does_not_fit_together_is_refused(pieces: list[Piece], tmp_path: Path) -> None:
    other = Piece(None, get_grid("100m").geobox((0, 5), (0, 5)), "soil_moisture", DESCENDING)
    with pytest.raises(ValueError, match="grids 100m, 1km"):
        write_mosaics([*pieces, other], tmp_path)
    with pytest.raises(ValueError, match="overlaps"):
        write_mosaics([*pieces, pieces[3]], tmp_path)
    with pytest.raises(ValueError, match="no tiles"):
        write_mosaics([], tmp_path)
    twin = dataclasses.replace(pieces[0], acquisition=dataclasses.replace(DESCENDING, platform=""))
    with pytest.raises(ValueError, match="different things"):
        write_mosaics([*pieces[1:], twin], tmp_path)
    same = dataclasses.replace(DESCENDING, id="another")
    twins = [
        dataclasses.replace(p, acquisition=same) for p in pieces if p.acquisition == DESCENDING
    ]
    with pytest.raises(ValueError, match="two mosaics would be called"):
        write_mosaics([*pieces, *twins], tmp_path)
    with pytest.raises(ValueError, match="float32"):
        write_mosaics(pieces, tmp_path, numbers="uint8")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_missing_and_wrong_tiles_are_named(pieces: list[Piece], tmp_path: Path) -> None:
    gone = dataclasses.replace(pieces[0], path=tmp_path / "gone.tif")
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        write_mosaics([gone, *pieces[1:]], tmp_path / "out")
    other = write_cog(
        xr.DataArray(np.zeros((4, 4), np.float32), spatial_coords(region((4, 4))), ("y", "x")),
        tmp_path / "other.tif",
    )
    wrong = dataclasses.replace(pieces[0], path=other)
    with pytest.raises(OSError, match=r"other\.tif has 1 bands of \(4, 4\)"):
        write_mosaics([wrong, *pieces[1:]], tmp_path / "out")
    assert pieces[0].path is not None
    content = pieces[0].path.read_bytes()
    for size in (700, len(content) - 2000):
        cut = tmp_path / f"cut-{size}.tif"
        cut.write_bytes(content[:size])
        with pytest.raises(OSError, match=rf"cut-{size}.*map (it|this tile) again"):
            write_mosaics([dataclasses.replace(pieces[0], path=cut), *pieces[1:]], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "key",
    [
        (0, 3, 4),
        (slice(None), 69, slice(None)),
        (-1, slice(20, 60, 7), slice(60, 10, -9)),
        (slice(0, 0), slice(None), 3),
        (slice(None, None, -1), slice(-5, None), slice(31, 33)),
    ],
)
def test_the_dataset_of_all_tiles_reads_any_part(pieces: list[Piece], key: tuple[object]) -> None:
    opened = open_tiles(pieces)
    expected = np.stack([truth(a, region())["soil_moisture"] for a in (DESCENDING, ASCENDING)])
    np.testing.assert_array_equal(opened["soil_moisture"][key].values, expected[key])
    assert opened.odc.geobox == region()
    assert list(opened["platform"].values) == ["sentinel-1a", "sentinel-1b"]


def test_acquisitions_are_checked() -> None:
    with pytest.raises(ValueError, match="given together"):
        Acquisition("a", np.datetime64("2020-01-01"), period="P8D")
    with pytest.raises(ValueError, match="not after its start"):
        Acquisition("a", np.datetime64("2020-01-01"), np.datetime64("2020-01-01"), "P1D")
    with pytest.raises(ValueError, match="needs an id"):
        Acquisition("", np.datetime64("2020-01-01"))
