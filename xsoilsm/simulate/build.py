"""Outside the seven steps (simulate): make a landscape, whole or not at all.

The one place where the parts of the package meet: place and weather, soil water, radar passes,
and the files and items of every collection. Writes; reads nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from xsoilsm.catalog import cache_dir
from xsoilsm.periods import period_starts
from xsoilsm.simulate.annotation import SIMULATED
from xsoilsm.simulate.bucket import daily_soil_moisture
from xsoilsm.simulate.climate import CLIMATES, MEDITERRANEAN, Climate, Weather, make_weather
from xsoilsm.simulate.composites import write_vegetation
from xsoilsm.simulate.files import write_text
from xsoilsm.simulate.ground import write_cover, write_soil, write_terrain, write_truth
from xsoilsm.simulate.items import Catalogue, Json
from xsoilsm.simulate.land import BASE_ELEVATION, Place, make_land, ndvi
from xsoilsm.simulate.orbit import Overpass, overpasses
from xsoilsm.simulate.radar import write_pass
from xsoilsm.simulate.reanalysis import write_weather
from xsoilsm.simulate.scene import make_surface

__all__ = ["FORMAT", "draw_weather", "landscape_folder", "simulate_landscape"]

FORMAT = 2
"""Raised whenever the same parameters give another landscape."""

LANDS = {"100m": "100 m", "500m": "500 m", "1km": "1 km"}
"""Grids on which the land may be simulated, and how they are spelt; the first is the usual one."""

Progress = Callable[[float | str], object]

_SPIN_UP = np.timedelta64(120, "D")
_AFTER = np.timedelta64(16, "D")
_LAST_WEATHER = np.datetime64("2020-12-31")  # where the real collection era5-pds ends


def landscape_folder() -> Path:
    """Return the folder of the landscape that the catalog ``demo`` leads to."""
    return cache_dir() / "landscapes" / "demo"


def simulate_landscape(
    path: str | os.PathLike[str],
    *,
    centre: tuple[float, float] = (-5.4, 41.3),
    size_km: float = 30.0,
    acquisitions: int = 3,
    start: str = "2020-04-01",
    seed: int = 0,
    spacing: float = 10.0,
    climate: Climate | str = MEDITERRANEAN,
    grd_pixels: bool = False,
    land: str = "100m",
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate a small world and write what data providers would serve of it.

    Computes.

    Parameters
    ----------
    path : path
        Folder of the landscape. It appears under this name only when it is complete.
    centre : (float, float), default (-5.4, 41.3)
        Longitude and latitude in degrees, WGS 84.
    size_km : float, default 30
        Side of the square region in km.
    acquisitions : int, default 3
        Number of Sentinel-1 passes, ascending and descending by turns.
    start : str, default "2020-04-01"
        First day (UTC) of passes, as year-month-day. Weather and vegetation begin with the year
        before.
    seed : int, default 0
        The same seed gives the same bytes.
    spacing : float, default 10
        Side of a radar pixel in m.
    climate : Climate or str, default MEDITERRANEAN
        Or the name of one of `CLIMATES`.
    grd_pixels : bool, default False
        Write the pixels, calibration and noise of `sentinel-1-grd` too.
    land : {"100m", "500m", "1km"}, default "100m"
        Grid of the cells on which soils, plants and water are simulated, and of the truth. Coarser
        ones save most of the time and memory that a large region takes; terrain and pixels stay
        as they are.
    progress : callable, optional
        Called with a text when a step begins, and with the share of work that is done.
    overwrite : bool, default False
        Replace a landscape that was made with other parameters.

    Returns
    -------
    Path
        ``catalog.json``, a static STAC catalog. A landscape that lies there already, made with
        the same parameters, is returned at once.

    Raises
    ------
    ValueError
        When a parameter is out of bounds.
    FileExistsError
        When the folder holds anything else.

    Notes
    -----
    Nothing in it is an observation, and every collection, item and annotation says so. Between
    the first pass and the second it rains, so that soil moisture changes.
    """
    chosen = _check_climate(climate)
    _check(centre, size_km, acquisitions, seed, spacing)
    if land not in LANDS:
        msg = f"land is {land!r}, expected the name of a grid: {', '.join(LANDS)}"
        raise ValueError(msg)
    begin = _check_start(start)
    configuration: Json = {
        "format": FORMAT,
        "centre": [float(v) for v in centre],
        "size_km": float(size_km),
        "acquisitions": acquisitions,
        "start": str(begin),
        "seed": seed,
        "spacing": float(spacing),
        "climate": asdict(chosen),
        **({"grd_pixels": True} if grd_pixels else {}),
        **({"land": land} if land != next(iter(LANDS)) else {}),
    }
    target = Path(path)
    if (finished := _existing(target, configuration, overwrite=overwrite)) is not None:
        return finished
    at = float(centre[0]), float(centre[1])
    place = Place(at, float(size_km), seed, chosen, res=land)
    passes = overpasses(place.centre, begin, acquisitions, float(spacing))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", suffix=".partial", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        whole = Path(scratch) / "landscape"
        whole.mkdir()
        _write(whole, place, passes, configuration, progress or (lambda _: None))
        _move(whole, target, Path(scratch) / "replaced", configuration, overwrite=overwrite)
    return target / "catalog.json"


def _check_climate(climate: Climate | str) -> Climate:
    if isinstance(climate, Climate):
        return climate
    if climate not in CLIMATES:
        msg = f"unknown climate {climate!r}; expected one of {', '.join(CLIMATES)} or a Climate"
        raise ValueError(msg)
    return CLIMATES[climate]


def _check(
    centre: tuple[float, float], size_km: float, acquisitions: int, seed: int, spacing: float
) -> None:
    """Refuse parameters for which there is no landscape."""
    lon, lat = centre
    if not (-178 <= lon <= 178 and -55 <= lat <= 60):
        msg = (
            f"centre {centre} is not (longitude, latitude) within 178 W-178 E and 55 S-60 N, "
            "where the terrain model exists"
        )
        raise ValueError(msg)
    for name, value, low, high in (
        ("size_km", size_km, 1, 400),
        ("acquisitions", acquisitions, 1, 1000),
        ("spacing", spacing, 5, 200),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            msg = f"{name} is {value}, expected {low} to {high}"
            raise ValueError(msg)


def _check_start(start: str) -> np.datetime64:
    try:
        begin = np.datetime64(start, "D")
    except ValueError:
        msg = f"start {start!r} is not a date, expected year-month-day such as 2020-04-01"
        raise ValueError(msg) from None
    if np.isnat(begin):
        msg = "start is not a date, expected year-month-day such as 2020-04-01"
        raise ValueError(msg)
    return begin


def _configuration_of(target: Path) -> object:
    """Read what a landscape was made from; None where there is no landscape."""
    try:
        content = json.loads((target / "catalog.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("xsoilsm:configuration") if isinstance(content, dict) else None


def _existing(target: Path, configuration: Json, *, overwrite: bool) -> Path | None:
    """Find a landscape that need not be made again; refuse a folder in the way."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    found = _configuration_of(target)
    if found == configuration and not overwrite:
        return target / "catalog.json"
    if found is None:
        msg = f"{target} exists and is not a virtual landscape; choose another folder"
        raise FileExistsError(msg)
    if not overwrite:
        known: Json = dict(found)  # type: ignore[call-overload]
        other = [k for k in {**known, **configuration} if known.get(k) != configuration.get(k)]
        msg = (
            f"{target} holds a virtual landscape that differs in {', '.join(other) or 'nothing'}; "
            "pass overwrite=True to replace it, or choose another folder"
        )
        raise FileExistsError(msg)
    return None


def _move(whole: Path, target: Path, aside: Path, configuration: Json, *, overwrite: bool) -> None:
    """Give a complete landscape its name."""
    if (made := _existing(target, configuration, overwrite=overwrite)) is not None:
        del made  # by another process, in the meantime: the same bytes
        return
    if target.exists():
        target.rename(aside)
    whole.rename(target)
    if aside.exists():
        shutil.rmtree(aside, ignore_errors=True)


def draw_weather(place: Place, passes: list[Overpass], last: np.datetime64) -> Weather:
    """Weather of a landscape: from some months before the year before the first pass.

    Parameters
    ----------
    place : Place
    passes : list of Overpass
        It is dry before the first, and rains before the second.
    last : datetime64
        A date in the last month.

    Returns
    -------
    Weather
        At the nodes of the 0.25 degree grid around the land, whole months.
    """
    dates = [one.time.astype("datetime64[D]") for one in passes]
    first = (dates[0].astype("datetime64[Y]") - 1).astype("datetime64[D]") - _SPIN_UP
    end = (last.astype("datetime64[M]") + 1).astype("datetime64[D]")
    west, south, east, north = place.box(margin_km=4.0)
    step = 0.25
    lat = np.arange(np.ceil(north / step) + 1, np.floor(south / step) - 2, -1) * step
    lon = np.arange(np.floor(west / step) - 1, np.ceil(east / step) + 2) * step
    storms = [max(dates[1] - 2, dates[0] + 1)] if len(dates) > 1 else []
    return make_weather(
        place.climate,
        np.arange(first, end),
        lat,
        lon,
        place.elevation(lat, lon, 4).astype(np.float64),
        place.frame(lat, lon),
        seed=place.seed,
        base_elevation=BASE_ELEVATION,
        dry=np.arange(dates[0] - 4, dates[0] + 1),
        storms=np.array(storms, dtype="datetime64[D]"),
    )


def _write(
    root: Path, place: Place, passes: list[Overpass], configuration: Json, progress: Progress
) -> None:
    """Write a whole landscape into an empty folder."""
    threads = max(min(os.cpu_count() or 1, 4), 1)
    dates = [one.time.astype("datetime64[D]") for one in passes]
    first = (dates[0].astype("datetime64[Y]") - 1).astype("datetime64[D]")
    last = dates[-1] + _AFTER
    if last > _LAST_WEATHER:
        msg = (
            f"{len(passes)} acquisitions from {configuration['start']} need weather to {last}, the "
            f"collection era5-pds ends on {_LAST_WEATHER}; start earlier or take fewer"
        )
        raise ValueError(msg)
    catalogue = Catalogue(root)
    progress("terrain")
    write_terrain(catalogue, place)
    progress(0.05)
    progress("land and soil")
    land = make_land(place, *place.axes)
    write_soil(catalogue, place, land)
    write_cover(catalogue, place, land)
    progress("weather")
    weather = draw_weather(place, passes, last)
    write_weather(catalogue, weather, first, last)
    progress(0.12)
    progress("vegetation")
    write_vegetation(catalogue, place, land, period_starts(first, last), threads=threads)
    progress(0.2)
    progress("soil moisture")
    moisture = daily_soil_moisture(
        place, land, weather, dates, threads=threads, progress=lambda f: progress(0.2 + 0.15 * f)
    )
    for number, (one, date) in enumerate(zip(passes, dates, strict=True)):
        progress(f"Sentinel-1{one.platform} {one.orbit_state} {date}")
        write_truth(catalogue, place, moisture[date], one.time)
        surface = make_surface(land, moisture[date], ndvi(land, date))
        write_pass(
            catalogue,
            place,
            one,
            surface,
            number=number,
            threads=threads,
            grd_pixels=bool(configuration.get("grd_pixels")),
        )
        progress(0.35 + 0.65 * (number + 1) / len(passes))
    catalogue.finish("Virtual landscape (simulated)", configuration)
    write_text(root / "README.md", _readme(configuration))


def _readme(configuration: Json) -> str:
    """Text for people who find the folder."""
    climate = configuration["climate"]["name"]
    cells = LANDS[configuration.get("land", "100m")]
    west_east, south_north = configuration["centre"]
    grd = (
        "in radar geometry, without\n  overviews"
        if configuration.get("grd_pixels")
        else "annotation only: measurement,\n  calibration and noise files are named in the items "
        "but not written"
    )
    return f"""# Virtual landscape (simulated)

{SIMULATED} Every number in this folder was computed from random fields and published models.

Centre {west_east} E, {south_north} N; {configuration["size_km"]} km wide; {climate} climate;
{configuration["acquisitions"]} passes from {configuration["start"]}; radar pixels of
{configuration["spacing"]} m; seed {configuration["seed"]}.

* `catalog.json`: a static STAC catalog; collections and items lie in `stac/`, files in `data/`.
* Collections as at the providers: sentinel-1-rtc, sentinel-1-grd ({grd}), modis-13Q1-061, era5-pds,
  nasadem, soilgrids-2.0, esa-worldcover (pixels of 28 m instead of 10 m). Files hold windows of
  the real tiles.
* `truth/` and the collection simulated-truth: daily mean soil moisture of the top 5 cm in m3 m-3
  on the {cells} EASE-Grid 2.0, on the dates of the passes; NaN on open water.
"""
