"""The parts of the twin experiment: land, radar and errors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from xsoilsm.simulate.land import CROP, Land, make_land, ndvi
from xsoilsm.simulate.noise import generator
from xsoilsm.simulate.orbit import overpasses
from xsoilsm.simulate.scene import NODATA, make_surface
from xsoilsm.simulate.twin import _each
from xsoilsm.simulate.twin_land import Seasons, map_soil, report_weather
from xsoilsm.simulate.twin_plan import REGIONS, SIZES, Block, make_place
from xsoilsm.simulate.twin_radar import Track
from xsoilsm.simulate.twin_region import _Writer
from xsoilsm.simulate.twin_truth import (
    FOOTPRINT_KM,
    REPRESENTATIVENESS,
    _measured_days,
    _readings,
    _representativeness,
    footprint_weights,
)

PLACE = make_place(REGIONS[0], SIZES["small"], 5)


@lru_cache
def land() -> Land:
    return make_land(PLACE, *PLACE.axes)


def test_radar_answers_to_water_and_carries_little_noise() -> None:
    one = overpasses(PLACE.centre, np.datetime64("2019-06-01"), 1, 250.0)[0]
    track = Track(PLACE, land(), one)
    shape = PLACE.geobox.shape
    images = []
    for water in (0.1, 0.3):
        moisture = np.full(shape, water, np.float32)
        surface = make_surface(land(), moisture, ndvi(land(), np.datetime64("2019-06-01")))
        images.append(track.image(surface, 7))
    assert 29 < track.incidence.min() < track.incidence.max() < 46
    inside = ~track.outside
    for key in ("vv", "vh"):
        dry, wet = (image[key] for image in images)
        assert (dry[~inside] == NODATA).all()
        assert (dry[inside] > 0).all()
        # The same number draws the same speckle, so the difference is that of the soil alone.
        rise = 10 * np.log10(wet[inside] / dry[inside])
        assert rise.min() > -1e-2
        assert (0.5 if key == "vv" else 0.1) < np.median(rise) < 4
    surface = make_surface(land(), np.full(shape, 0.2, np.float32), np.full(shape, 0.3, np.float32))
    first, second = (track.image(surface, number)["vv"][inside] for number in (1, 2))
    ratio = 10 * np.log10(first / second)
    assert 0.1 < ratio.std() < 0.4  # two images of 625 looks
    assert abs(ratio.mean()) < 1.0  # their calibration


def test_images_lie_where_the_land_lies() -> None:
    """A field that tells its row and column comes back at the pixels of these cells."""
    one = overpasses(PLACE.centre, np.datetime64("2019-06-01"), 1, 250.0)[0]
    track = Track(PLACE, land(), one)
    height, width = PLACE.geobox.shape
    affine = PLACE.geobox.affine
    x = affine.c + affine.a * (np.arange(width) + 0.5)
    field = np.broadcast_to(x, (height, width))
    found = track.sample(np.asarray(field / 1e6, dtype=np.float64))
    from pyproj import Transformer

    pixels = track.geobox.affine
    there = Transformer.from_crs(str(track.geobox.crs), "EPSG:6933", always_xy=True)
    rows, columns = track.geobox.shape
    i, j = rows // 2, columns // 3
    east, _ = there.transform(pixels.c + pixels.a * (j + 0.5), pixels.f + pixels.e * (i + 0.5))
    assert found[i, j] * 1e6 == pytest.approx(east, abs=1.0)


def test_a_soil_map_is_smoother_than_the_soil_and_wrong() -> None:
    told = map_soil(PLACE, land())
    error = told.sand - land().sand
    assert 5 < error.std() < 18
    assert np.abs(np.diff(told.sand)).mean() < 0.5 * np.abs(np.diff(land().sand)).mean()
    assert np.corrcoef(told.sand.ravel(), land().sand.ravel())[0, 1] > 0.5
    assert (told.sand + told.clay <= 100).all()
    assert told.clay.min() > 0
    assert (told.cover == land().cover).all()


def test_reported_weather_keeps_means_and_dry_days() -> None:
    size = replace(SIZES["small"], first="2018-01-01", last="2019-12-31")
    weather = _Writer(None, REGIONS[0], size, PLACE)._weather(  # type: ignore[arg-type]
        np.datetime64("2018-01-01"), np.datetime64("2019-12-31")
    )
    told = report_weather(weather, PLACE.seed)
    assert ((told.precipitation > 0) == (weather.precipitation > 0)).all()
    assert told.precipitation.mean() == pytest.approx(weather.precipitation.mean(), rel=0.25)
    shift = told.temperature - weather.temperature
    assert 0.6 < shift.std() < 1.0
    assert 0.05 < np.corrcoef(told.precipitation[:, 0, 0], weather.precipitation[:, 0, 0])[0, 1] < 1


def test_years_differ_and_days_of_one_year_agree() -> None:
    seasons = Seasons(PLACE, land())
    days = [np.datetime64(f"{year}-05-01") for year in (2018, 2019)]
    one, other = (seasons.greenness(day) for day in days)
    assert 0.01 < np.abs(one - other).mean() < 0.2
    np.testing.assert_array_equal(one, seasons.greenness(days[0]))
    assert one.min() >= -0.2
    assert one.max() <= 1
    tilled = [seasons.roughness(np.datetime64(f"2018-{month:02d}-10")) for month in (2, 5, 9)]
    crop = land().cover == CROP
    np.testing.assert_array_equal(tilled[0], tilled[1])
    assert (tilled[0] != tilled[2])[crop].mean() > 0.99
    np.testing.assert_array_equal(tilled[0][~crop], tilled[2][~crop])


# --------------------------------------------------------------------------- errors


def test_representativeness_is_as_stated_and_half_of_it_lasts() -> None:
    drawn = np.stack([_representativeness(generator(1, "x", k), 400) for k in range(400)])
    assert drawn.std() == pytest.approx(REPRESENTATIVENESS, rel=0.08)
    lasting = drawn.mean(axis=1).std() / REPRESENTATIVENESS
    assert 0.65 < lasting < 0.85  # sqrt(1/2), and what is left of the weeks' part
    assert abs(drawn.mean()) < 0.003


def test_stations_have_gaps_but_work_mostly() -> None:
    shares = [_measured_days(generator(2, "x", k), 2000).mean() for k in range(200)]
    assert 0.75 < np.mean(shares) < 0.95
    assert min(shares) > 0.3


def test_readings_of_frozen_ground_and_spikes_are_flagged() -> None:
    days = np.arange(np.datetime64("2020-01-01"), np.datetime64("2021-01-01"))
    level = np.full(days.size, 0.2)
    air = np.where(np.arange(days.size) < 50, -5.0, 10.0)
    time, values, flags = _readings(generator(3, "x"), days, level, air, 6)
    assert time.size == 4 * days.size
    assert set(flags[:200]) == {"D01,D02"}
    good = flags == "G"
    assert good[200:].mean() > 0.95
    assert "D06" in set(flags)
    assert values[good].std() < 0.02
    assert abs(values[good].mean() - 0.2) < 0.06
    by_day = np.where(good, values, np.nan).reshape(-1, 4)[50:]
    assert np.nanmean(by_day[:, 2]) > np.nanmean(by_day[:, 0])  # the warmth of the day


@pytest.mark.parametrize("workers", [1, 2])
def test_results_of_jobs_keep_their_order(workers: int) -> None:
    told: list[float] = []
    jobs = [(divmod, (number, 3)) for number in (7, 8, 9)]
    assert _each(jobs, workers, told.append) == [(2, 1), (2, 2), (3, 0)]
    assert told[0] == 0
    assert told[-1] == 1
    with pytest.raises(ZeroDivisionError):
        _each([*jobs, (divmod, (1, 0))], workers, told.append)


def test_the_footprint_is_that_of_the_radiometer() -> None:
    row, column, count = Block((0.0, 0.0), 90, 0, block=(500, 1900, 12)).block
    rows, columns = np.meshgrid(np.arange(row, row + count), np.arange(column, column + count))
    cells = np.stack([rows.ravel(), columns.ravel()], axis=1)
    weights = footprint_weights(cells)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    middle = int(np.flatnonzero((cells == [505, 1905]).all(axis=1))[0])
    assert weights[middle].argmax() == middle
    # East of the middle the weight has halved at half of the width.
    row_of = np.flatnonzero(cells[:, 0] == 505)
    from xsoilsm.grid import get_grid, xy_to_lonlat

    lon, lat = xy_to_lonlat(*get_grid("9km").centre(cells[row_of, 0], cells[row_of, 1]))
    km = np.deg2rad(lon - lon[cells[row_of, 1] == 1905]) * 6371.0088 * np.cos(np.deg2rad(lat[0]))
    share = weights[middle, row_of] / weights[middle, middle]
    assert np.interp(FOOTPRINT_KM / 2, km[km >= 0], share[km >= 0]) == pytest.approx(0.5, abs=0.03)
