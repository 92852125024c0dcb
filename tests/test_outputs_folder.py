"""All outputs of a folder of tiles in one call, from what the tiles say of themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pytest
import rasterio
import xarray as xr
from output_tiles import (
    ABOUT,
    ASCENDING,
    DESCENDING,
    MOISTURE,
    WEEK,
    pieces_of_two,
    region,
    truth,
)

from xsoilsm.cog import write_cog, write_cogs
from xsoilsm.cube import spatial_coords
from xsoilsm.outputs.folder import composite_end, find_tiles, write_outputs
from xsoilsm.outputs.mosaic import write_mosaics
from xsoilsm.outputs.pieces import Acquisition, Piece


@pytest.fixture
def told() -> Path:
    """Folder of tiles that say their time and orbit, as those of a job do."""
    path = pieces_of_two()[0].path
    assert path is not None
    return path.parents[2]


def test_tiles_say_what_they_are(told: Path) -> None:
    pieces = find_tiles(told)
    wanted = {(p.acquisition.id, p.variable, p.geobox) for p in pieces_of_two()}
    assert {(p.acquisition.id, p.variable, p.geobox) for p in pieces} == wanted
    found = {p.acquisition.id: p.acquisition for p in pieces}
    for acquisition in (DESCENDING, ASCENDING):
        one = found[acquisition.id]
        assert (one.start, one.end, one.period) == (acquisition.start, None, "")
        assert (one.platform, one.orbit_state) == (acquisition.platform, acquisition.orbit_state)
        assert one.relative_orbit == acquisition.relative_orbit
        assert [item.id for item in one.items] == ["S1_75", "S1_76", "common"]


def test_one_call_writes_all_forms(told: Path, tmp_path: Path) -> None:
    pieces = find_tiles(told)
    written = write_outputs(pieces, tmp_path, forms=("cog", "stac", "zarr", "netcdf"))
    assert [len(written[form]) for form in ("cog", "stac", "zarr", "netcdf")] == [6, 1, 1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "catalog.json",
        "mosaics",
        "netcdf",
        "soil-moisture-1km-densesm-e-coarse",
        "soil-moisture-1km.zarr",
    ]
    expected = truth(DESCENDING, region())["soil_moisture"]
    with rasterio.open(written["cog"][0]) as file:
        np.testing.assert_array_equal(file.read(1), expected)
        assert "tile" not in file.tags()
    with xr.open_zarr(written["zarr"][0]) as store:
        np.testing.assert_array_equal(store["soil_moisture"].values[0], expected)
    with xr.open_dataset(written["netcdf"][0]) as file:
        np.testing.assert_array_equal(file["soil_moisture"].values[0], expected)
    assert written["netcdf"][0].stem == written["cog"][0].stem


def test_what_is_there_is_kept_or_refused(told: Path, tmp_path: Path) -> None:
    pieces = find_tiles(told)
    first = write_outputs(pieces, tmp_path)
    times = [path.stat().st_mtime_ns for path in first["cog"]]
    again = write_outputs(pieces, tmp_path)
    assert [path.stat().st_mtime_ns for path in again["cog"]] == times
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_outputs(pieces[:6], tmp_path)
    with pytest.raises(ValueError, match="unknown forms png"):
        write_outputs(pieces, tmp_path, forms=("png",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "period", "end"),
    [
        ("2020-02-28", "P1D", "2020-02-29"),
        ("2020-04-06", "P8D", "2020-04-14"),
        ("2019-12-27", "P8D", "2020-01-01"),
        ("2020-12-01", "P1M", "2021-01-01"),
    ],
)
def test_ends_of_composites(start: str, period: str, end: str) -> None:
    assert composite_end(np.datetime64(start), period) == np.datetime64(end)


def test_composites_are_found(tmp_path: Path) -> None:
    data = xr.DataArray(
        np.zeros((4, 4), np.float32),
        spatial_coords(region((4, 4))),
        ("y", "x"),
        "soil_moisture",
        MOISTURE | ABOUT | {"time_utc": "2020-04-06", "period": "P8D"},
    )
    write_cog(data, tmp_path / "20200406P8D" / "r1c1" / "soil_moisture.tif")
    (piece,) = find_tiles(tmp_path)
    assert piece.acquisition.end == np.datetime64("2020-04-14")
    with pytest.raises(ValueError, match="unknown period 'P3Y'"):
        composite_end(WEEK.start, "P3Y")


def test_odd_folders_are_explained(told: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tiles"):
        find_tiles(tmp_path)
    (tmp_path / "empty" / "r1c1").mkdir(parents=True)
    data = xr.DataArray(np.zeros((4, 4), np.float32), spatial_coords(region((4, 4))), ("y", "x"))
    write_cogs(
        {
            tmp_path / "a" / "t1" / "x.tif": data.assign_attrs(time_utc="2020-01-01T00:00:00"),
            tmp_path / "a" / "t2" / "x.tif": data.assign_attrs(time_utc="2020-01-02T00:00:00"),
        }
    )
    with pytest.raises(ValueError, match="say the times 2020-01-01T00:00:00, 2020-01-02"):
        find_tiles(tmp_path)


def test_scaled_tiles_are_refused(tmp_path: Path) -> None:
    packed = xr.DataArray(
        np.zeros((4, 4), np.int16),
        spatial_coords(region((4, 4))),
        ("y", "x"),
        "soil_moisture",
        {"scale_factor": 1e-4, "_FillValue": np.int16(-1)},
    )
    path = write_cog(packed, tmp_path / "tile.tif")
    acquisition = Acquisition("a", np.datetime64("2020-01-01"))
    piece = Piece(path, region((4, 4)), "soil_moisture", acquisition)
    with pytest.raises(ValueError, match=r"tile\.tif is scaled by 0\.0001"):
        write_mosaics([piece], tmp_path / "out")
