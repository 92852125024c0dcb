"""A cube of what had come by a moment, end to end."""

import numpy as np
import pytest
from sources_world import BBOX, World, ndvi_of

from xsoilsm.catalog import CatalogError, open_catalog
from xsoilsm.checks import check_cube
from xsoilsm.loading import load_cube

LATENCIES = {"radar": 1.0, "ndvi": 6.0, "weather": 7.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    made.fill()
    made.radar("2020-06-03T17:40:00", 33000, rows=(0, 500))
    made.radar("2020-06-09T05:40:00", 33080, state="descending", relative=139)
    made.radar("2020-06-15T17:40:00", 33175, rows=(0, 500))
    made.write()
    return made


@pytest.fixture(scope="module")
def catalog(world):
    """Catalog of the world whose sources say their latencies."""
    plain = open_catalog(world.catalog_file())
    sources = {
        group: tuple(s.model_copy(update={"latency": LATENCIES.get(group)}) for s in found)
        for group, found in plain.sources.items()
    }
    return plain.model_copy(update={"sources": sources})


@pytest.fixture(scope="module")
def archive(catalog):
    return load_cube(BBOX, "2020-06", "1km", catalog).compute()


def test_the_archive_is_the_default(archive):
    assert "asof" not in archive.attrs
    assert archive.attrs["availability"].startswith("archive")
    assert archive.sizes["time"] == 3


def test_only_what_had_come_is_used(catalog, archive):
    cube = load_cube(BBOX, "2020-06", "1km", catalog, asof="2020-06-11").compute()
    check_cube(cube)
    assert cube.attrs["asof"] == "2020-06-12T00:00:00Z"
    assert "sentinel-1-rtc 1 d; modis-13Q1-061 6 d; era5-pds 7 d" in cube.attrs["availability"]
    # The acquisition of the 15th lies ahead.
    assert cube.time.values.astype("M8[D]").astype(str).tolist() == ["2020-06-03", "2020-06-09"]
    # Composites that began up to 20 May were complete and delivered; the last one is held.
    starts = cube.period.values.astype("M8[D]")
    held = starts + 16 + 6 <= np.datetime64("2020-06-12")
    assert starts[~held].astype(str).tolist() == ["2020-05-24", "2020-06-01", "2020-06-09"]
    filled = np.broadcast_to(~held[:, None, None], cube.ndvi_filled.shape)
    assert np.array_equal(cube.ndvi_filled, filled)
    expected = [ndvi_of(start) for start in np.where(held, starts, starts[held][-1]).tolist()]
    np.testing.assert_allclose(cube.ndvi.mean(("y", "x")), np.multiply(expected, 1e-4), rtol=1e-5)
    assert "2020-05-24" in cube.ndvi.attrs["periods_without_composite"]
    # The weather of this world is steady, so that stand-ins equal what they stand for.
    for name in ("air_temperature", "precipitation"):
        np.testing.assert_allclose(cube[name], archive[name], rtol=1e-4)
    np.testing.assert_array_equal(cube.sigma0_vv, archive.sigma0_vv[:2])


def test_weather_ends_with_its_latency(catalog, monkeypatch):
    from xsoilsm.sources.series import weather

    seen = []
    monkeypatch.setattr(
        weather, "complete_latest", lambda *a, total: seen.append((a[1].copy(), total))
    )
    cube = load_cube(BBOX, "2020-06", "1km", catalog, asof="2020-06-11")
    cube[["air_temperature", "precipitation"]].compute(scheduler="synchronous")
    assert [total for _, total in seen] == [False, True]
    for days, _ in seen:
        # 4 June is the last day, the fourth of its period.
        assert days[-3:].tolist() == [8, 4, 0]


def test_chunks_make_no_difference(catalog):
    whole = load_cube(BBOX, "2020-06", "1km", catalog, asof="2020-06-11").compute()
    parts = load_cube(BBOX, "2020-06", "1km", catalog, asof="2020-06-11", chunks=2).compute()
    for name in ("ndvi", "air_temperature", "precipitation", "ndvi_filled"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)


def test_late_enough_it_is_the_archive(catalog, archive):
    late = load_cube(BBOX, "2020-06", "1km", catalog, asof="2020-12-31").compute()
    for name in archive.data_vars:
        np.testing.assert_array_equal(late[name], archive[name])


def test_what_cannot_be_is_named(catalog):
    with pytest.raises(CatalogError, match=r"none of the 3 acquisitions .* had come by 2020-06-02"):
        load_cube(BBOX, "2020-06", "1km", catalog, asof="2020-06-01")
    silent = tuple(s.model_copy(update={"latency": None}) for s in catalog.sources["ndvi"])
    unsaid = catalog.model_copy(update={"sources": catalog.sources | {"ndvi": silent}})
    with pytest.raises(CatalogError, match="latency of 'modis-13Q1-061', and the catalog gives"):
        load_cube(BBOX, "2020-06", "1km", unsaid, asof="2020-06-11")
    with pytest.raises(ValueError, match="cannot tell a moment"):
        load_cube(BBOX, "2020-06", "1km", catalog, asof="June")


def test_catalogs_of_the_package_say_their_latencies():
    catalog = open_catalog("planetary-computer")
    for group in ("radar", "ndvi", "weather"):
        assert all(source.latency is not None for source in catalog.sources[group])
