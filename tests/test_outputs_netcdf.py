"""The NetCDF file: passes a CF checker, and says the same as the tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pyproj
import pytest
import xarray as xr
from output_tiles import ASCENDING, DESCENDING, WEEK, pieces_of_two, region, truth, write_tiles

from xsoilsm.outputs import netcdf
from xsoilsm.outputs.netcdf import netcdf_name, write_netcdf
from xsoilsm.outputs.pieces import Piece


@pytest.fixture
def pieces() -> list[Piece]:
    return list(pieces_of_two())


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the CF checker on a file; gives all that it finds, recommendations included."""
    # compliance_checker sits in the dev extra, as all that the tests need.
    from compliance_checker.base import BaseCheck
    from compliance_checker.cf import appendix_f
    from compliance_checker.runner import CheckSuite

    name = "lambert_cylindrical_equal_area"
    for table in (appendix_f.grid_mapping_dict16, appendix_f.grid_mapping_dict17):
        if isinstance(table[name][0], str):
            # Meant is a tuple of one attribute; of a string the checker asks for its letters.
            monkeypatch.setitem(table, name, [(table[name][0],), *table[name][1:]])

    def run(path: Path) -> list[str]:
        suite = CheckSuite()
        suite.load_all_available_checkers()
        dataset = suite.load_dataset(str(path))
        try:
            results, errors = suite.run_all(dataset, ["cf:1.11"])["cf:1.11"]
        finally:
            dataset.close()
        assert not errors
        assert len(results) > 30
        assert {BaseCheck.HIGH, BaseCheck.MEDIUM} <= {result.weight for result in results}
        return [m for result in results for m in _messages(result)]

    return run


def _messages(result: Any) -> list[str]:
    good = result.value is True or (isinstance(result.value, tuple) and len(set(result.value)) == 1)
    found = [] if good else [f"{result.name}: {message}" for message in result.msgs]
    return found + [m for child in result.children or [] for m in _messages(child)]


@pytest.mark.filterwarnings("ignore")  # those of the checker
@pytest.mark.parametrize("numbers", ["float32", "int16"])
def test_it_passes_the_cf_checker(
    pieces: list[Piece], tmp_path: Path, faults: Any, numbers: Any
) -> None:
    about = {"institution": "Example", "source": "xsoilsm 0.1.0, ensemble e", "references": "Zhu"}
    path = write_netcdf(pieces, tmp_path / "map.nc", numbers=numbers, attributes=about)
    assert faults(path) == []


@pytest.mark.filterwarnings("ignore")
def test_composites_pass_the_cf_checker(tmp_path: Path, faults: Any) -> None:
    pieces = write_tiles(tmp_path, (WEEK,), region((20, 20)))
    about = {"institution": "Example", "references": "Zhu"}
    path = write_netcdf(pieces, tmp_path / "week.nc", attributes=about)
    assert faults(path) == []
    with xr.open_dataset(path) as opened:
        bounds = opened["time_bounds"].values.astype("datetime64[D]")
        assert bounds.tolist() == [[WEEK.start.item(), np.datetime64("2020-04-09").item()]]


@pytest.mark.filterwarnings("ignore")
def test_the_checker_finds_what_is_wrong(pieces: list[Piece], tmp_path: Path, faults: Any) -> None:
    path = write_netcdf(pieces, tmp_path / "map.nc")
    with netCDF4.Dataset(path, "a") as file:
        file["soil_moisture"].standard_name = "no_such_name"
        file["spatial_ref"].delncattr("longitude_of_central_meridian")
    found = " ".join(faults(path))
    assert "no_such_name" in found
    assert "longitude_of_central_meridian is a required attribute" in found


def test_it_holds_what_the_tiles_hold(pieces: list[Piece], tmp_path: Path) -> None:
    path = write_netcdf(pieces, tmp_path / "map.nc")
    with xr.open_dataset(path, decode_coords="all") as opened:
        for index, acquisition in enumerate((DESCENDING, ASCENDING)):
            for name, pixels in truth(acquisition, region()).items():
                np.testing.assert_array_equal(opened[name].values[index], pixels)
                assert opened[name].dtype == pixels.dtype
        times = opened["time"].values.astype("datetime64[s]").tolist()
        assert times == [DESCENDING.start.item(), ASCENDING.start.item()]
        assert opened["platform"].values.tolist() == ["sentinel-1a", "sentinel-1b"]
        assert opened["orbit_state"].values.tolist() == ["descending", "ascending"]
        assert opened.odc.geobox == region()
        lon, lat = float(opened["lon"][0]), float(opened["lat"][0])
        x, y = float(opened["x"][0]), float(opened["y"][0])
        there = pyproj.Transformer.from_crs(6933, 4326, always_xy=True).transform(x, y)
        assert (lon, lat) == pytest.approx(there)
        assert opened.attrs["license"].startswith("sentinel-1-rtc: CC-BY-4.0")
    assert [p.name for p in tmp_path.iterdir()] == ["map.nc"]


def test_grid_mapping_is_that_of_the_grid(pieces: list[Piece], tmp_path: Path) -> None:
    path = write_netcdf(pieces, tmp_path / "map.nc")
    with netCDF4.Dataset(path) as file:
        mapping = file["spatial_ref"].__dict__
        assert file["soil_moisture"].grid_mapping == "spatial_ref"
        assert set(file["soil_moisture"].coordinates.split()) >= {"lat", "lon", "acquisition"}
        assert file["soil_moisture"].filters()["fletcher32"]
    assert mapping["grid_mapping_name"] == "lambert_cylindrical_equal_area"
    assert mapping["standard_parallel"] == 30
    without_text = {k: v for k, v in mapping.items() if k not in ("crs_wkt", "spatial_ref")}
    rebuilt = pyproj.CRS.from_cf(without_text)
    x, y = pyproj.Transformer.from_crs(4326, rebuilt, always_xy=True).transform(10.0, 45.0)
    assert (x, y) == pytest.approx(
        pyproj.Transformer.from_crs(4326, 6933, always_xy=True).transform(10.0, 45.0), abs=1e-6
    )


def test_bytes_do_not_depend_on_the_order_of_tiles(pieces: list[Piece], tmp_path: Path) -> None:
    one = write_netcdf(pieces, tmp_path / "a.nc", numbers="int16")
    other = write_netcdf(pieces[::-1], tmp_path / "b.nc", numbers="int16")
    assert one.read_bytes() == other.read_bytes()
    with xr.open_dataset(one) as opened:
        expected = truth(DESCENDING, region())["soil_moisture"]
        assert opened["soil_moisture"].dtype == np.float32
        np.testing.assert_allclose(opened["soil_moisture"].values[0], expected, atol=0.501e-4)


def test_names_are_those_of_the_mosaics(pieces: list[Piece]) -> None:
    one = [p for p in pieces if p.acquisition == DESCENDING]
    assert netcdf_name(one) == (
        "soil_moisture_1km_20200405T062004_S1A_D052_densesm-e-coarse_v0.1.0.nc"
    )
    with pytest.raises(ValueError, match="2 acquisitions"):
        netcdf_name(pieces)


def test_what_fails_leaves_nothing_behind(
    pieces: list[Piece], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_netcdf(pieces, tmp_path / "map.nc")
    before = old.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        write_netcdf(pieces, old)
    read = netcdf._write

    def damaged(*arguments: Any) -> Any:
        sums = read(*arguments)
        sums["soil_moisture"][1] ^= 1
        return sums

    monkeypatch.setattr(netcdf, "_write", damaged)
    with pytest.raises(OSError, match="soil_moisture reads back differently"):
        write_netcdf(pieces, old, overwrite=True)
    assert old.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["map.nc"]
