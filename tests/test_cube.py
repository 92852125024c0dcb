import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import as_samples, map_cube, sample_cube

import xsoilsm
from xsoilsm import checks, grid
from xsoilsm.cube import CubeError, SourceFlag, cube_geobox, spatial_coords, to_db


def violations(cube):
    return checks.violation_table(checks.find_violations(cube))


def test_good_cubes_pass_in_both_forms_eager_and_lazy():
    for cube in (map_cube(), map_cube().chunk(y=3), sample_cube(), as_samples(map_cube())):
        xsoilsm.check_cube(cube)
        assert cube.sm.check().empty


@pytest.mark.parametrize(
    ("break_it", "variable", "found", "remedy"),
    [
        (lambda c: c.drop_vars("clay"), "clay", "is missing", "load_cube"),
        (
            lambda c: c.rename(sigma0_vv="gamma0_vv"),
            "sigma0_vv",
            "is missing",
            "`gamma0_vv` looks like the source",
        ),
        (
            lambda c: c.assign(sigma0_vv=(10 ** (c.sigma0_vv / 10)).assign_attrs(units="1")),
            "sigma0_vv",
            "units '1'",
            "to_db",
        ),
        (
            lambda c: c.assign(sigma0_vh=(10 ** (c.sigma0_vh / 10)).assign_attrs(units="dB")),
            "sigma0_vh",
            "look like linear power",
            "to_db",
        ),
        (
            lambda c: c.assign(sigma0_vv=c.sigma0_vv.assign_attrs(sigma0_from="gamma0")),
            "sigma0_vv",
            "gamma0",
            "cos",
        ),
        (
            lambda c: c.assign(sigma0_vv=c.sigma0_vv.assign_attrs(averaging="power")),
            "sigma0_vv",
            "averaged as power",
            "area_mean",
        ),
        (
            lambda c: c.assign(ndvi=(c.ndvi * 1e4).astype("int16").assign_attrs(units="1")),
            "ndvi",
            "raw integers",
            "0.0001",
        ),
        (
            lambda c: c.assign(ndvi=(c.ndvi * 1e4).assign_attrs(units="1")),
            "ndvi",
            "raw integers",
            "0.0001",
        ),
        (
            lambda c: c.assign(
                air_temperature=(c.air_temperature + 273.15).assign_attrs(units="K")
            ),
            "air_temperature",
            "units 'K'",
            "273.15",
        ),
        (
            lambda c: c.assign(
                air_temperature=(c.air_temperature + 273.15).assign_attrs(units="degC")
            ),
            "air_temperature",
            "kelvin",
            "273.15",
        ),
        (
            lambda c: c.assign(precipitation=(c.precipitation * 1e3).assign_attrs(units="mm")),
            "precipitation",
            "units 'mm'",
            "1000",
        ),
        (
            lambda c: c.assign(precipitation=(c.precipitation * 1e3).assign_attrs(units="m")),
            "precipitation",
            "millimetres",
            "1000",
        ),
        (
            lambda c: c.assign(precipitation=(c.precipitation / 8).assign_attrs(units="m d-1")),
            "precipitation",
            "units 'm d-1'",
            "daily mean",
        ),
        (
            lambda c: c.assign(
                precipitation=c.precipitation.assign_attrs(cell_methods="time: mean")
            ),
            "precipitation",
            "a mean",
            "multiply daily means by 8",
        ),
        (
            lambda c: c.assign(sand=c.sand.expand_dims(time=c.time)),
            "sand",
            "has dims ('time', 'y', 'x')",
            "dimensions",
        ),
        (
            lambda c: c.assign(sand=(c.sand * 10).assign_attrs(units="percent")),
            "sand",
            "above 100",
            "10",
        ),
        (
            lambda c: c.assign(elevation=c.elevation.assign_attrs(units=None).drop_attrs()),
            "elevation",
            "no attribute 'units'",
            "'m'",
        ),
        (lambda c: c.assign_coords(x=c.x + 10), "x", "off the grid", "EASE-Grid"),
        (lambda c: c.drop_vars("spatial_ref"), "spatial_ref", "is missing", "spatial_coords"),
        (lambda c: c.isel(period=slice(5, None)), "period", "only 4", "year"),
        (lambda c: c.isel(period=slice(None, 46)), "period", "before the acquisition", "extend"),
        (
            lambda c: c.isel(period=[i for i in range(c.sizes["period"]) if i != 20]),
            "period",
            "not consecutive",
            "reindex",
        ),
        (lambda c: c.isel(time=slice(None, None, -1)), "time", "not ascending", "sort"),
    ],
)
def test_each_violation_is_found_and_named(break_it, variable, found, remedy):
    cube = break_it(map_cube())
    table = violations(cube)
    hit = table[table.variable == variable]
    assert len(hit) >= 1, table.to_string()
    text = " ".join(hit.iloc[0])
    assert found in text
    assert remedy in text
    with pytest.raises(CubeError, match="expected"):
        xsoilsm.check_cube(cube)


def test_another_crs_is_named():
    cube = map_cube()
    from pyproj import CRS

    cube["spatial_ref"] = cube.spatial_ref.assign_attrs(CRS.from_epsg(32630).to_cf())
    cube.spatial_ref.attrs["spatial_ref"] = cube.spatial_ref.attrs["crs_wkt"]
    table = violations(cube)
    assert "UTM zone 30N" in table[table.variable == "spatial_ref"].found.item()


def test_all_violations_are_told_at_once():
    cube = map_cube().drop_vars(["clay", "sand"])
    cube["air_temperature"] = (cube.air_temperature + 273.15).assign_attrs(units="K")
    cube = cube.assign_coords(x=cube.x + 10)
    with pytest.raises(CubeError) as caught:
        xsoilsm.check_cube(cube)
    for word in ("4 violation(s)", "`clay`", "`sand`", "`air_temperature`", "`x`"):
        assert word in str(caught.value)


def test_lazy_values_are_not_read_by_the_check():
    import dask.array as da

    def never(*_args, **_kwargs):
        pytest.fail("the check computed a Dask array")

    cube = map_cube()
    lazy = da.map_blocks(
        never, da.zeros(cube.ndvi.shape), dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    cube["ndvi"] = (cube.ndvi.dims, lazy, cube.ndvi.attrs)
    assert cube.sm.check().empty


def test_something_else_than_a_dataset_is_refused():
    with pytest.raises(CubeError, match="DataArray"):
        xsoilsm.check_cube(map_cube().ndvi)


def test_samples_need_46_steps_and_coordinates():
    cube = sample_cube()
    assert "46" in violations(cube.isel(step=slice(40))).to_string()
    assert "lat" in violations(cube.drop_vars("lat")).variable.tolist()


def test_coordinates_give_the_geobox_back_even_for_one_cell():
    for res in grid.GRIDS:
        for shape in ((1, 1), (1, 3), (4, 5)):
            geobox = grid.get_grid(res).geobox((900, 900 + shape[0]), (2700, 2700 + shape[1]))
            assert cube_geobox(xr.Dataset(coords=spatial_coords(geobox))) == geobox


def test_coordinates_are_understood_by_odc_geo():
    import odc.geo.xr  # noqa: F401

    cube = map_cube()
    assert cube.odc.geobox == cube_geobox(cube)


def test_decibels_of_power_are_marked_as_such():
    power = xr.DataArray([1.0, 0.1, 0.0, -1.0, np.nan], dims="x", attrs={"units": "1"})
    decibels = to_db(power)
    np.testing.assert_allclose(decibels, [0, -10, np.nan, np.nan, np.nan])
    assert decibels.attrs == {"units": "dB", "averaging": "power"}


# ---- aggregation


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.booleans())
@settings(max_examples=12)
def test_aggregation_is_the_mean_over_the_nested_cells(height, width, seed, lazy):
    cube = map_cube((height, width), res="500m", seed=seed)
    rng = np.random.default_rng(seed)
    cube["sigma0_vv"] = cube.sigma0_vv.where(rng.random(cube.sigma0_vv.shape) > 0.2)
    chunked = cube.chunk(y=4, x=5, time=1) if lazy else cube
    coarse = xsoilsm.aggregate(chunked, "1km")
    assert (coarse.sigma0_vv.chunks is not None) == lazy
    cells = grid.get_grid("1km")
    rows = cells.index(0.0, cube.y.values)[0]
    columns = cells.index(cube.x.values, 0.0)[1]
    for name in ("sigma0_vv", "elevation", "ndvi"):
        for i, r in enumerate(np.unique(rows)):
            for j, c in enumerate(np.unique(columns)):
                block = cube[name].values[..., rows == r, :][..., columns == c]
                with np.errstate(invalid="ignore"):
                    count = np.isfinite(block).sum(axis=(-1, -2))
                    expected = np.where(count, np.nansum(block, axis=(-1, -2)) / count, np.nan)
                np.testing.assert_allclose(
                    coarse[name].values[..., i, j], expected, rtol=2e-5, atol=1e-6
                )
    valid = np.isfinite(cube.sigma0_vv.values) & np.isfinite(cube.sigma0_vh.values)
    assert float(coarse.coverage.sum()) * 4 == pytest.approx(valid.sum(), abs=1e-3)
    assert coarse.sm.check().empty


def test_aggregation_weighs_radar_by_coverage_and_merges_flags():
    cube = map_cube((2, 2), res="500m", times=("2020-04-02T06:20",))
    row, column = (int(v[0]) for v in grid.cells_of(cube.x.values, cube.y.values)[1:])
    start = (row // 2 + 1) * 2, (column // 2 + 1) * 2
    geobox = grid.get_grid("500m").geobox((start[0], start[0] + 2), (start[1], start[1] + 2))
    cube = cube.assign_coords(spatial_coords(geobox))
    dims = ("time", "y", "x")
    cube["sigma0_vv"] = (dims, [[[-10.0, -12.0], [-14.0, np.nan]]], cube.sigma0_vv.attrs)
    cube["coverage"] = (
        dims,
        np.array(
            [
                [
                    [
                        1.0,
                        0.5,
                    ],
                    [0.5, 0.0],
                ]
            ],
            np.float32,
        ),
        {"units": "1"},
    )
    bits = [[[0, SourceFlag.BORDER], [0, SourceFlag.NO_SCENE]]]
    cube["source_flags"] = (dims, np.array(bits, np.uint8), {"units": "1"})
    coarse = xsoilsm.aggregate(cube, "1km")
    assert coarse.sigma0_vv.shape == (1, 1, 1)
    assert coarse.sigma0_vv.item() == pytest.approx((-10 - 6 - 7) / 2)
    assert coarse.coverage.item() == pytest.approx(0.5)
    assert coarse.source_flags.item() == SourceFlag.BORDER


def test_aggregation_refuses_finer_grids_and_samples():
    with pytest.raises(ValueError, match="1km cannot be aggregated to 100m"):
        xsoilsm.aggregate(map_cube(), "100m")
    with pytest.raises(CubeError, match="sample form"):
        xsoilsm.aggregate(sample_cube(), "1km")
    cube = map_cube()
    assert xsoilsm.aggregate(cube, "1km") is cube
