from __future__ import annotations

import pickle
import shutil
from collections import Counter
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.array.optimization import optimize
from dask.core import flatten
from sources_world import BBOX, World, height_of, ndvi_of

from xsoilsm import periods
from xsoilsm.catalog import Catalog, CatalogError, open_catalog
from xsoilsm.checks import check_cube
from xsoilsm.cube import REQUIRED, VARIABLES, InputFlag, SourceFlag
from xsoilsm.grid import ease2_geobox, grid_of
from xsoilsm.loading import load_cube

SHAPE = (3, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.fill()
    made.radar("2020-06-03T17:40:00", 33000, rows=(0, 260))
    made.radar("2020-06-03T17:40:25", 33000, rows=(240, 500), part=2)
    made.radar("2020-06-09T05:40:00", 33080, state="descending", relative=139)
    made.radar("2020-06-15T17:40:00", 33175, rows=(0, 500))
    made.radar("2020-06-21T17:40:00", 33262, **{"sar:polarizations": ["VV"]})
    made.write()
    return made


@pytest.fixture
def catalog(world: World) -> Catalog:
    return open_catalog(world.catalog_file())


@pytest.fixture(scope="module")
def loaded(world: World) -> xr.Dataset:
    return load_cube(BBOX, "2020-06", "1km", world.catalog_file()).compute()


def test_the_cube_passes_its_own_check(loaded: xr.Dataset) -> None:
    check_cube(loaded)
    assert set(REQUIRED) <= set(loaded.data_vars)
    for name, data in loaded.data_vars.items():
        variable = VARIABLES[str(name)]
        assert data.dims == variable.dims
        assert data.attrs["units"] == variable.units
        assert data.attrs["grid_mapping"] == "spatial_ref"
        assert data.attrs["items"] or name == "inputs_failed"
        whole = name in ("source_flags", "ndvi_filled", "inputs_failed")
        expected = np.uint8 if whole else np.float32
        assert data.dtype == expected


def test_coordinates(loaded: xr.Dataset) -> None:
    geobox = ease2_geobox(BBOX, "1km")
    cells, rows, columns = grid_of(geobox)
    np.testing.assert_array_equal(loaded.x, cells.centre(0, np.arange(*columns))[0])
    np.testing.assert_array_equal(loaded.y, cells.centre(np.arange(*rows), 0)[1])
    assert loaded.spatial_ref.attrs["crs_wkt"]
    expected = ["2020-06-03T17:40:12.5", "2020-06-09T05:40:00", "2020-06-15T17:40:00"]
    np.testing.assert_array_equal(loaded.time, np.array(expected, "M8[ns]"))
    assert loaded.time.dtype == loaded.period.dtype == np.dtype("M8[ns]")
    assert loaded.orbit_state.values.tolist() == ["ascending", "descending", "ascending"]
    assert loaded.relative_orbit.values.tolist() == [59, 139, 59]
    assert set(loaded.platform.values.tolist()) == {"SENTINEL-1A"}
    starts = loaded.period.values.astype("M8[D]")
    assert str(starts[0]) == "2019-06-10"
    assert str(starts[-1]) == "2020-06-09"
    ends = periods.window_end(starts, loaded.time.values)
    assert ends[0] == periods.PERIODS_PER_YEAR - 1


def test_values(loaded: xr.Dataset) -> None:
    starts = loaded.period.values.astype("M8[D]").tolist()
    expected = np.array([ndvi_of(start) for start in starts]) * 1e-4
    np.testing.assert_allclose(loaded.ndvi.mean(("y", "x")), expected, rtol=1e-5)
    np.testing.assert_allclose(loaded.air_temperature, 12.0, atol=1e-3)
    np.testing.assert_allclose(loaded.precipitation, 8e-3, rtol=1e-5)
    np.testing.assert_allclose(loaded.sand, 41.2, rtol=1e-5)
    np.testing.assert_allclose(loaded.clay, 23.3, rtol=1e-5)
    np.testing.assert_allclose(loaded.bulk_density, 1.31, rtol=1e-5)
    np.testing.assert_allclose(loaded.aspect_sin, -1, atol=1e-4)
    np.testing.assert_allclose(loaded.elevation.mean(), height_of(5.005, 43.5), atol=5)
    assert loaded.sigma0_vv.min() > -20
    assert loaded.sigma0_vv.max() < -5
    assert not loaded.ndvi_filled.any()
    assert not loaded.inputs_failed.any()


def test_provenance(loaded: xr.Dataset) -> None:
    assert loaded.sigma0_vv.attrs["sigma0_from"] == "rtc-flat"
    assert loaded.sigma0_vv.attrs["averaging"] == "dB"
    assert loaded.sigma0_vv.attrs["items"].split()[:2] == ["S1_033000_1_rtc", "S1_033000_2_rtc"]
    assert "era5-pds-2019-06-an" in loaded.air_temperature.attrs["items"]
    assert "era5-pds-2019-06-fc" not in loaded.air_temperature.attrs["items"]
    assert "not VV and VH" in loaded.attrs["excluded_items"]
    for collection in ("sentinel-1-rtc", "modis-13Q1-061", "era5-pds", "nasadem", "soilgrids-2.0"):
        assert f"{collection}: simulated" in loaded.attrs["licence"]
    assert loaded.attrs["citation"] == "simulated by xsoilsm"


def test_the_cube_goes_to_disk_and_back(loaded: xr.Dataset, tmp_path: Path) -> None:
    loaded.to_zarr(tmp_path / "cube.zarr", zarr_format=2, consolidated=True)
    with xr.open_zarr(tmp_path / "cube.zarr") as stored:
        check_cube(stored.compute())


def test_nothing_is_read_before_it_is_asked(world: World, tmp_path: Path) -> None:
    """Without a single file of pixels the cube can be set up, and only computing fails."""
    copy = World(tmp_path / "copy")
    copy.items = {
        name: [
            {**item, "assets": _moved(item["assets"], world.folder, copy.folder)} for item in items
        ]
        for name, items in world.items.items()
    }
    copy.folder.mkdir()
    copy.write()
    cube = load_cube(BBOX, "2020-06", "1km", copy.catalog_file(), on_error="raise")
    assert all(data.chunks is not None for data in cube.data_vars.values())
    for name in ("sigma0_vv", "ndvi", "precipitation", "slope", "sand"):
        with pytest.raises(OSError, match="failed"):
            cube[name].compute()
    flagged = load_cube(BBOX, "2020-06", "1km", copy.catalog_file())
    flags = flagged.source_flags.compute()
    assert ((flags & SourceFlag.READ_FAILED) > 0).all()
    shutil.copytree(world.folder / "data", copy.folder / "data")
    assert np.isfinite(cube.sigma0_vv[0].compute()).any()


@pytest.mark.parametrize(
    ("group", "pattern", "names"),
    [
        ("weather", "era5/2020-03/air*/**/0.*", ["air_temperature"]),
        ("terrain", "dem_0.tif", ["elevation", "slope", "aspect_sin"]),
        ("soil", "clay_*.tif", ["clay"]),
        ("ndvi", "MOD13Q1.A2020081*.tif", []),
    ],
)
def test_a_failed_read_tells_its_group(
    world: World, tmp_path: Path, loaded: xr.Dataset, group: str, pattern: str, names: list[str]
) -> None:
    copy = World(tmp_path / "copy")
    copy.items = {
        name: [
            {**item, "assets": _moved(item["assets"], world.folder, copy.folder)} for item in items
        ]
        for name, items in world.items.items()
    }
    shutil.copytree(world.folder / "data", copy.folder / "data")
    copy.write()
    files = [f for f in (copy.folder / "data").glob(pattern) if f.is_file()]
    assert files
    for file in files:
        file.write_bytes(b"broken")
    cube = load_cube(BBOX, "2020-06", "1km", copy.catalog_file()).compute()
    flags = cube.inputs_failed
    meanings = dict(zip(flags.flag_meanings.split(), flags.flag_masks.tolist(), strict=True))
    assert meanings[group] == getattr(InputFlag, group.upper())
    assert (flags == meanings[group]).all()
    for name in names:
        assert np.isnan(cube[name]).any()
    # Radar has its own flags, and no other group suffers.
    np.testing.assert_array_equal(cube.source_flags, loaded.source_flags)
    assert (cube.ndvi_filled.any("period") == (group == "ndvi")).all()
    with pytest.raises(OSError, match=pattern.split("*")[0].split("/")[0][:8]):
        load_cube(BBOX, "2020-06", "1km", copy.catalog_file(), on_error="raise").compute()


def test_failed_inputs_survive_coarser_cells(loaded: xr.Dataset) -> None:
    from xsoilsm.cube import aggregate

    flags = loaded.inputs_failed.copy()
    flags[1, 1] = InputFlag.SOIL
    flags[2, 2] = InputFlag.WEATHER
    coarse = aggregate(loaded.assign(inputs_failed=flags), "9km").inputs_failed
    assert coarse.dtype == np.uint8
    assert int(np.bitwise_or.reduce(coarse.values.ravel())) == InputFlag.SOIL | InputFlag.WEATHER


def _moved(assets: Any, old: Path, new: Path) -> Any:
    return {
        key: {**asset, "href": asset["href"].replace(str(old), str(new))}
        for key, asset in assets.items()
    }


def _combined(*blocks: Any) -> Any:
    return sum(block.mean() for block in blocks) + np.zeros(blocks[0].shape, np.float32)


def test_tasks_per_chunk_and_acquisition(catalog: Catalog) -> None:
    """One task reads; what uses the cube swallows the tasks that take its bands apart."""
    cube = load_cube(BBOX, "2020-06", "1km", catalog, chunks=1)
    chunks, acquisitions = 9, 3
    assert cube.sigma0_vv.data.numblocks == (acquisitions, 3, 3)
    radar = ("sigma0_vv", "sigma0_vh", "incidence_angle", "coverage", "source_flags")
    static = ("sand", "clay", "bulk_density", "elevation", "slope", "aspect_sin", "aspect_cos")
    pairs: list[Any] = []
    for name in radar:
        pairs += [cube[name].data, "tyx"]
    for name in static:
        pairs += [cube[name].data, "yx"]
    result = da.blockwise(
        _combined, "tyx", *pairs, concatenate=True, dtype=np.float32, meta=np.empty((0, 0, 0))
    )
    graph = dict(optimize(result.__dask_graph__(), list(flatten(result.__dask_keys__()))))
    names = Counter(str(key[0]).split("-")[0] for key in graph)
    assert names["sentinel1"] == chunks * acquisitions
    assert names["combined"] == chunks * acquisitions
    assert names["terrain"] == names["soil"] == chunks
    # The slope is taken out once more for the flags, per chunk.
    assert len(graph) <= 2 * chunks * acquisitions + 3 * chunks
    assert len(pickle.dumps(graph)) < 4000 * len(graph)


def test_series_and_static_layers_are_one_task_a_chunk(catalog: Catalog) -> None:
    cube = load_cube(BBOX, "2020-06", "1km", catalog, chunks=1)
    months = 13
    for name, label, shared in (
        ("ndvi", "modis", 0),
        ("precipitation", "era5", 2 * months + 1),
        ("elevation", "terrain", 0),
        ("sand", "soil", 0),
    ):
        data = cube[name].data
        graph = dict(optimize(data.__dask_graph__(), list(flatten(data.__dask_keys__()))))
        tasks = [key for key, node in graph.items() if type(node).__name__ != "Alias"]
        assert len(tasks) == 9 + shared
        assert sum(label in str(key) and isinstance(key, tuple) for key in tasks) >= 9


def test_one_read_serves_all_bands(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    from xsoilsm.sources.sentinel1 import rtc

    calls: list[Any] = []
    original = rtc.read_acquisition

    def counted(acquisition: Any, *rest: Any) -> Any:
        calls.append(acquisition.absolute_orbit)
        return original(acquisition, *rest)

    monkeypatch.setattr(rtc, "read_acquisition", counted)
    cube = load_cube(BBOX, "2020-06", "1km", catalog)
    cube[["sigma0_vv", "sigma0_vh", "incidence_angle", "coverage", "source_flags"]].compute()
    assert sorted(calls) == [33000, 33080, 33175]
    calls.clear()
    cube.sigma0_vv[1].compute()
    assert calls == [33080]


def test_graphs_are_the_same_every_time(catalog: Catalog) -> None:
    first, second = (load_cube(BBOX, "2020-06", "1km", catalog) for _ in range(2))
    for name in first.data_vars:
        assert first[name].data.name == second[name].data.name
    other = load_cube(BBOX, "2020-06", "1km", catalog, on_error="raise")
    assert other.sigma0_vv.data.name != first.sigma0_vv.data.name
    uncached = load_cube(BBOX, "2020-06", "1km", catalog, cache=False)
    assert uncached.sand.data.name != first.sand.data.name
    assert uncached.ndvi.data.name == first.ndvi.data.name


def test_chunks_do_not_matter(catalog: Catalog, loaded: xr.Dataset) -> None:
    cube = load_cube(BBOX, "2020-06", "1km", catalog, chunks={"y": 2, "x": 1}).compute()
    for name, data in loaded.data_vars.items():
        np.testing.assert_allclose(cube[name], data, rtol=3e-6, atol=1e-6)


def test_fine_cells_average_to_coarse_ones(catalog: Catalog) -> None:
    from xsoilsm.cube import aggregate

    region = ease2_geobox(BBOX, "1km")[1:2, 1:2]
    cells, rows, columns = grid_of(region)
    assert cells.name == "1km"
    fine = ease2_geobox((0, 0, 1, 1), "100m")  # the same cell on the grid of 100 m
    grid_100m = grid_of(fine)[0]
    geobox = grid_100m.geobox((rows[0] * 10, rows[1] * 10), (columns[0] * 10, columns[1] * 10))
    coarse = load_cube(region, "2020-06-09", catalog=catalog).compute()
    cube = load_cube(geobox, "2020-06-09", catalog=catalog).compute()
    assert cube.sizes["x"] == 10
    again = aggregate(cube, "1km")
    for name in ("sigma0_vv", "sigma0_vh", "incidence_angle", "elevation", "sand", "ndvi"):
        np.testing.assert_allclose(again[name], coarse[name], rtol=1e-4, atol=1e-3)


def test_steep_ground_is_flagged_as_approximate(world: World, tmp_path: Path) -> None:
    steep = World(tmp_path)
    steep.items = {name: list(items) for name, items in world.items.items()}
    del steep.items["nasadem"]
    steep.dem(lambda lon, lat: 100 + 20000 * np.maximum(lon - 5.007, 0) + 0 * lat)
    steep.write()
    cube = load_cube(BBOX, "2020-06-09", "1km", steep.catalog_file()).compute()
    flagged = (cube.source_flags[0] & SourceFlag.APPROXIMATE_SIGMA0) > 0
    np.testing.assert_array_equal(flagged, (cube.slope > 5) & (cube.coverage[0] > 0))
    assert flagged.any()
    assert not flagged.all()


def test_missing_composites_are_filled_and_marked(world: World, tmp_path: Path) -> None:
    holes = World(tmp_path)
    holes.items = {name: list(items) for name, items in world.items.items()}
    composites = holes.items["modis-13Q1-061"]
    del composites[10:12]
    holes.write()
    cube = load_cube(BBOX, "2020-06", "1km", holes.catalog_file()).compute()
    marked = np.flatnonzero(cube.ndvi_filled[:, 0, 0])
    assert marked.size == 2
    assert np.isfinite(cube.ndvi).all()
    around = cube.ndvi[:, 0, 0].values
    left, right = marked[0] - 1, marked[-1] + 1
    assert min(around[left], around[right]) <= around[marked[0]] <= max(around[left], around[right])


def test_no_acquisition_tells_what_exists_near(catalog: Catalog) -> None:
    with pytest.raises(CatalogError) as caught:
        load_cube(BBOX, "2020-07-01/2020-07-05", catalog=catalog)
    text = str(caught.value)
    assert "2020-07-01 to 2020-07-05" in text
    assert "'sentinel-1-rtc'" in text
    assert "the nearest are of 2020-06-21" in text
    with pytest.raises(CatalogError, match="2020-06-09 and 2020-06-15"):
        load_cube(BBOX, "2020-06-12", catalog=catalog)
    with pytest.raises(CatalogError, match="none within a year of that either"):
        load_cube((20.0, 40.0, 20.1, 40.1), "2020-06", catalog=catalog)
    with pytest.raises(
        CatalogError, match=r"left out, for instance S1_033262_1_rtc.*not VV and VH"
    ):
        load_cube(BBOX, "2020-06-21", catalog=catalog)


@pytest.mark.parametrize(
    ("collection", "message"),
    [
        ("modis-13Q1-061", r"no ndvi for 2019-06-10 to 2020-06-16 over"),
        ("era5-pds", r"air_temperature: 'era5-pds' lacks 2019-06-10"),
        ("nasadem", r"no terrain for any time over"),
        ("soilgrids-2.0", r"no soil for any time over.*'soilgrids-2\.0'"),
    ],
)
def test_a_source_without_items_is_named(
    world: World, tmp_path: Path, collection: str, message: str
) -> None:
    poor = World(tmp_path)
    poor.items = {**world.items, collection: []}
    poor.write()
    with pytest.raises(CatalogError, match=message):
        load_cube(BBOX, "2020-06", catalog=poor.catalog_file())


def test_weather_beyond_the_sources_dates(catalog: Catalog) -> None:
    (source,) = catalog.sources["weather"]
    ended = source.model_copy(update={"end": date(2020, 6, 5)})
    cut = catalog.model_copy(update={"sources": {**catalog.sources, "weather": (ended,)}})
    with pytest.raises(CatalogError, match=r"no weather for .*'era5-pds' \(.* to 2020-06-05\)"):
        load_cube(BBOX, "2020-06", catalog=cut)
    early = load_cube(BBOX, "2020-06-03", catalog=cut)
    assert early.sizes["time"] == 1


def test_bad_arguments(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="is empty: it ends on 2020-06-01"):
        load_cube(BBOX, "2020-06-30/2020-06-01", catalog=catalog)
    with pytest.raises(ValueError, match="cannot tell a day"):
        load_cube(BBOX, "june", catalog=catalog)
    with pytest.raises(ValueError, match="unknown resolution '2km'"):
        load_cube(BBOX, "2020-06", "2km", catalog=catalog)
    with pytest.raises(ValueError, match="has west > east"):
        load_cube((5.0, 43.0, 4.0, 42.0), "2020-06", catalog=catalog)
    with pytest.raises(ValueError, match="on_error 'ignore' is unknown"):
        load_cube(BBOX, "2020-06", catalog=catalog, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunks name time"):
        load_cube(BBOX, "2020-06", catalog=catalog, chunks={"time": 1})
    with pytest.raises(ValueError, match="are not positive"):
        load_cube(BBOX, "2020-06", catalog=catalog, chunks=0)
    with pytest.raises(CatalogError, match="no catalog is named 'demi'"):
        load_cube(BBOX, "2020-06", catalog="demi")


def test_a_geobox_decides_the_grid(catalog: Catalog) -> None:
    cube = load_cube(ease2_geobox(BBOX, "500m"), "2020-06-09", catalog=catalog)
    assert float(cube.x[1] - cube.x[0]) == pytest.approx(500, rel=1e-2)
    off = ease2_geobox(BBOX, "1km").pad(1).zoom_out(2)
    with pytest.raises(ValueError, match="not on an EASE-Grid"):
        load_cube(off, "2020-06-09", catalog=catalog)


def test_processes_give_the_same_numbers(catalog: Catalog, loaded: xr.Dataset) -> None:
    """Graph and records travel to other processes, as they do on a cluster."""
    cube = load_cube(BBOX, "2020-06", "1km", catalog, chunks=2)
    names = ["sigma0_vv", "source_flags", "ndvi", "precipitation", "slope", "clay"]
    with dask.config.set({"multiprocessing.context": "forkserver"}):
        there = cube[names].compute(scheduler="processes", num_workers=1)
    for name in names:
        np.testing.assert_allclose(there[name], loaded[name], rtol=3e-6, atol=1e-6)


def test_partial_objects_are_tokenised_by_content(catalog: Catalog) -> None:
    from dask.base import tokenize

    (source,) = catalog.sources["radar"]
    assert tokenize(partial(print, source)) == tokenize(partial(print, source.model_copy()))


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from xsoilsm.simulate import simulate_landscape

    folder = tmp_path_factory.mktemp("cache") / "landscapes" / "demo"
    simulate_landscape(folder, size_km=3, acquisitions=2)
    return folder


def test_the_virtual_landscape_loads_as_the_demo(
    landscape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(landscape.parents[1]))
    west, south, east, north = -5.41, 41.29, -5.39, 41.31
    cube = load_cube((west, south, east, north), "2020-04", "100m", "demo").compute()
    check_cube(cube)
    assert cube.sizes["time"] == 2
    assert set(cube.orbit_state.values.tolist()) == {"ascending", "descending"}
    for name in REQUIRED:
        assert np.isfinite(cube[name]).all(), name
    assert (cube.coverage > 0.999).all()
    assert -25 < float(cube.sigma0_vv.median()) < -5
    assert float((cube.sigma0_vv - cube.sigma0_vh).median()) > 3
    assert 29 < float(cube.incidence_angle.min()) <= float(cube.incidence_angle.max()) < 46
    assert float(cube.incidence_angle.std(("y", "x")).max()) < 0.3
    assert 0 < float(cube.precipitation.mean()) < 0.05
    assert -15 < float(cube.air_temperature.min()) < float(cube.air_temperature.max()) < 35
