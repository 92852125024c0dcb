"""A small world on disk, in the forms in which the providers serve theirs.

Its values are simple and known, so that what the loader makes of them can be worked out by
other means. Region: 3 km in southern France, UTM zone 31.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
import yaml
from affine import Affine
from pyproj import Transformer

BBOX = (4.99, 43.49, 5.02, 43.51)
"""Region that everything covers, degrees."""

UTM = "EPSG:32631"
SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
HOMOLOSINE = "ESRI:54052"
MODIS_PIXEL = 231.65635826395825
NODATA = -32768.0
LOOKS = 4.4

ORIGIN = (659000.0, 4820700.0)
"""West and north edge in UTM of the radar scenes; they reach 6 km east and 5 km south."""


def incidence(lon: Any, lat: Any) -> Any:
    """Incidence angle of the world, degrees: smooth, steeper in the east."""
    x, y = np.asarray(lon) - 5.0, np.asarray(lat) - 43.5
    return 38.0 - 6.0 * x - 1.2 * y + 0.8 * x**2 + 0.3 * x * y


def write_tiff(
    path: Path,
    data: np.ndarray[Any, Any],
    transform: Affine,
    crs: str,
    nodata: float | None = None,
    **options: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "height": data.shape[0],
        "width": data.shape[1],
        "count": 1,
        "dtype": data.dtype,
        "crs": crs,
        "transform": transform,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **(profile | options)) as file:
        file.write(data, 1)
    return path


def annotation(lon: Iterable[float], lat: Iterable[float]) -> str:
    points = "".join(
        f"<geolocationGridPoint><line>{100 * i}</line><pixel>{100 * j}</pixel>"
        f"<latitude>{la!r}</latitude><longitude>{lo!r}</longitude>"
        f"<height>0.0</height><incidenceAngle>{float(incidence(lo, la))!r}</incidenceAngle>"
        "</geolocationGridPoint>"
        for j, lo in enumerate(map(float, lon))
        for i, la in enumerate(map(float, lat))
    )
    return (
        "<?xml version='1.0'?><product><geolocationGrid><geolocationGridPointList>"
        f"{points}</geolocationGridPointList></geolocationGrid></product>"
    )


class World:
    """Writes a static STAC catalog, collection by collection.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: dict[str, list[dict[str, Any]]] = {}

    # -- items ---------------------------------------------------------------------------

    def add(
        self,
        collection: str,
        name: str,
        bounds: tuple[float, float, float, float],
        properties: Mapping[str, Any],
        assets: Mapping[str, Mapping[str, Any]],
        links: Iterable[Mapping[str, str]] = (),
    ) -> dict[str, Any]:
        west, south, east, north = bounds
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        item = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": collection,
            "bbox": list(bounds),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": dict(properties),
            "assets": {key: dict(asset) for key, asset in assets.items()},
            "links": list(links),
        }
        self.items.setdefault(collection, []).append(item)
        return item

    def write(self) -> Path:
        """Write the catalog's JSON and return its root."""
        for collection, items in self.items.items():
            folder = self.folder / collection
            folder.mkdir(parents=True, exist_ok=True)
            for item in items:
                up = {"rel": "collection", "href": "./collection.json"}
                (folder / f"{item['id']}.json").write_text(
                    json.dumps(item | {"links": [up, *item["links"]]})
                )
            content = {
                "type": "Collection",
                "id": collection,
                "stac_version": "1.0.0",
                "description": collection,
                "license": "other",
                "extent": {
                    "spatial": {"bbox": [[-180, -90, 180, 90]]},
                    "temporal": {"interval": [[None, None]]},
                },
                "links": [{"rel": "item", "href": f"./{item['id']}.json"} for item in items],
            }
            (folder / "collection.json").write_text(json.dumps(content))
        root = self.folder / "catalog.json"
        children = [{"rel": "child", "href": f"./{name}/collection.json"} for name in self.items]
        content = {
            "type": "Catalog",
            "id": "world",
            "stac_version": "1.0.0",
            "description": "test",
            "links": children,
        }
        root.write_text(json.dumps(content))
        return root

    def catalog_file(self, **changes: Any) -> Path:
        """Write a catalog file like the demo's, with its service here."""
        path = Path(__file__).parents[1] / "catalogs" / "demo.yaml"
        content = yaml.safe_load(path.read_text())
        content["name"] = "world"
        content["sources"]["radar"][0]["sigma0_from"] = "rtc-flat"
        if "esa-worldcover" not in self.items:
            content["sources"].pop("landcover", None)
        content["services"]["landscape"]["href"] = str(self.folder / "catalog.json")
        content |= changes
        file = self.folder / "world.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    # -- radar ---------------------------------------------------------------------------

    def radar(
        self,
        when: str,
        orbit: int,
        *,
        rows: tuple[int, int] = (0, 500),
        state: str = "ascending",
        relative: int = 59,
        platform: str = "SENTINEL-1A",
        part: int = 1,
        seed: int = 0,
        level: float = 0.08,
        edit: Any = None,
        **properties: Any,
    ) -> dict[str, Any]:
        """Write one slice: speckled gamma nought in UTM, 600 columns of 10 m.

        Parameters
        ----------
        when : str
            Middle of the slice, UTC.
        orbit : int
        rows : (first, last)
            Rows of the scene that the slice holds.
        edit : callable, optional
            Changes the arrays of VV and VH in place.
        """
        rng = np.random.default_rng([seed, orbit, rows[0]])
        shape = rows[1] - rows[0], 600
        field = level * np.exp(0.6 * np.sin(np.arange(600) / 40.0))[None, :]
        vv = (field * rng.gamma(LOOKS, 1 / LOOKS, shape)).astype(np.float32)
        vh = (0.2 * field * rng.gamma(LOOKS, 1 / LOOKS, shape)).astype(np.float32)
        if edit is not None:
            edit(vv, vh)
        name = f"S1_{orbit:06d}_{part}"
        top = ORIGIN[1] - 10.0 * rows[0]
        transform = Affine(10, 0, ORIGIN[0], 0, -10, top)
        bounds = self._utm_bounds(ORIGIN[0], top - 10 * shape[0], ORIGIN[0] + 6000, top)
        time = datetime.fromisoformat(when)
        stated = {
            "datetime": f"{when}Z",
            "start_datetime": f"{time - timedelta(seconds=12.5)}+00:00",
            "end_datetime": f"{time + timedelta(seconds=12.5)}+00:00",
            "platform": platform,
            "sat:absolute_orbit": orbit,
            "sat:relative_orbit": relative,
            "sat:orbit_state": state,
            "sar:polarizations": ["VV", "VH"],
        } | properties
        data = self.folder / "data" / name
        assets = {
            key: {
                "href": str(write_tiff(data / f"iw-{key}.rtc.tiff", band, transform, UTM, NODATA))
            }
            for key, band in (("vv", vv), ("vh", vh))
        }
        original = f"../sentinel-1-grd/{name}.json"
        self.add(
            "sentinel-1-rtc",
            f"{name}_rtc",
            bounds,
            stated,
            assets,
            [{"rel": "derived_from", "href": original}],
        )
        lon = np.linspace(bounds[0] - 0.5, bounds[2] + 0.5, 21)
        lat = np.linspace(bounds[1] - 0.1, bounds[3] + 0.1, 10)
        file = data / "grd" / "annotation" / "iw-vv.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(annotation(lon, lat))
        grd = {
            "vv": {"href": str(data / "grd" / "measurement" / "iw-vv.tiff")},
            "schema-product-vv": {"href": str(data / "grd" / "annotation" / "rfi" / "rfi-vv.xml")},
        }
        return self.add("sentinel-1-grd", name, bounds, stated, grd)

    @staticmethod
    def _utm_bounds(
        west: float, south: float, east: float, north: float
    ) -> tuple[float, float, float, float]:
        to_lonlat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
        return to_lonlat.transform_bounds(west, south, east, north)

    # -- vegetation ----------------------------------------------------------------------

    def ndvi(
        self,
        start: date,
        value: int | np.ndarray[Any, Any],
        *,
        version: int = 1,
        tile: int = 18,
        columns: tuple[int, int] = (0, 40),
        reliability: int | np.ndarray[Any, Any] | None = None,
        crs: str = SINUSOIDAL,
    ) -> None:
        """Write one composite, 40 x 40 pixels of the true lattice; `value` is stored as it is.

        A tile may hold only some of the columns.
        """
        product = "MOD13Q1" if (start.timetuple().tm_yday - 1) % 16 == 0 else "MYD13Q1"
        name = f"{product}.A{start:%Y%j}.h{tile}v04.061.{version:013d}"
        to_plane = Transformer.from_crs("EPSG:4326", SINUSOIDAL, always_xy=True)
        x, y = to_plane.transform(5.005, 43.5)
        column, row = int(x // MODIS_PIXEL) - 20 + columns[0], int(-y // MODIS_PIXEL) - 20
        transform = Affine(
            MODIS_PIXEL, 0, column * MODIS_PIXEL, 0, -MODIS_PIXEL, -row * MODIS_PIXEL
        )
        data = np.broadcast_to(np.asarray(value, dtype=np.int16), (40, 40))
        data = data[:, slice(*columns)].copy()
        file = write_tiff(self.folder / "data" / f"{name}.tif", data, transform, crs)
        assets = {"250m_16_days_NDVI": {"href": str(file)}}
        if reliability is not None:
            classes = np.broadcast_to(np.asarray(reliability, dtype=np.int8), (40, 40))
            classes = classes[:, slice(*columns)].copy()
            place = self.folder / "data" / f"{name}_reliability.tif"
            write_tiff(place, classes, transform, crs, nodata=-1)
            assets["250m_16_days_pixel_reliability"] = {"href": str(place)}
        self.add(
            "modis-13Q1-061",
            name,
            (4.8, 43.3, 5.2, 43.7),
            {
                "datetime": None,
                "start_datetime": f"{start}T00:00:00Z",
                "end_datetime": f"{start + timedelta(15)}T23:59:59Z",
                "platform": "",
                "proj:epsg": None,
                "modis:horizontal-tile": tile,
                "modis:vertical-tile": 4,
            },
            assets,
        )

    # -- weather -------------------------------------------------------------------------

    def weather(self, month: str, temperature: Any, rain: Any, *, hours: int | None = None) -> None:
        """Write the stores of one month on 0.25 degrees around the region.

        Parameters
        ----------
        month : str
            For instance ``"2020-06"``.
        temperature, rain : callable
            Of the stamps (hour,) datetime64, lat and lon; K and m per hour.
        hours : int, optional
            Stamps to keep; the item claims the whole month all the same.
        """
        first = np.datetime64(month, "M")
        stamps = np.arange(
            first.astype("datetime64[h]"), (first + 1).astype("datetime64[h]")
        ).astype("datetime64[ns]")
        last = stamps[-1]
        kept = stamps[:hours]
        lat, lon = np.arange(44.5, 42.4, -0.25), np.arange(4.0, 6.1, 0.25)
        coords = {"time": kept, "lat": lat.astype("f4"), "lon": lon.astype("f4")}
        shape = kept.size, lat.size, lon.size
        for kind, variable, units, function in (
            ("an", "air_temperature_at_2_metres", "K", temperature),
            ("fc", "precipitation_amount_1hour_Accumulation", "m", rain),
        ):
            values = function(kept[:, None, None], lat[None, :, None], lon[None, None, :])
            values = np.broadcast_to(values, shape).astype(np.float32)
            data = xr.Dataset(
                {variable: (("time", "lat", "lon"), values, {"units": units})}, coords
            )
            folder = self.folder / "data" / "era5" / month / f"{variable}.zarr"
            data.to_zarr(folder, consolidated=True, zarr_format=2)
            self.add(
                "era5-pds",
                f"era5-pds-{month}-{kind}",
                (-180, -90, 180, 90),
                {
                    "datetime": None,
                    "start_datetime": f"{stamps[0].astype('datetime64[s]')}Z",
                    "end_datetime": f"{last.astype('datetime64[s]')}Z",
                    "era5:kind": kind,
                },
                {
                    variable: {
                        "href": str(folder),
                        "xarray:open_kwargs": {
                            "chunks": {},
                            "engine": "zarr",
                            "consolidated": True,
                        },
                    }
                },
            )

    def land_weather(
        self,
        first: date,
        last: date,
        temperature: Any,
        rain: Any,
        *,
        sea: Any = None,
        name: str = "era5-land-v0.zarr",
        bounds: tuple[float, float, float, float] = (4.5, 43.0, 5.5, 44.0),
    ) -> Path:
        """Write one store of 0.1 degrees in the form of ERA5-Land on the Earth Data Hub.

        Parameters
        ----------
        first, last : date
            Days of which the store holds all hours from 00 to 23 UTC.
        temperature, rain : callable
            As for :meth:`weather`; the rain is stored as it accumulates from 00 UTC on.
        sea : callable, optional
            Of lat and lon: where the store has no values.
        bounds : (west, south, east, north)
            Outermost points of the grid.
        """
        stamps = np.arange(
            np.datetime64(first, "h"), np.datetime64(last, "h") + 24, dtype="datetime64[h]"
        ).astype("datetime64[ns]")
        west, south, east, north = bounds
        lat = np.round(np.arange(north, south - 0.05, -0.1), 1)
        lon = np.round(np.arange(west, east + 0.05, 0.1), 1)
        mesh = stamps[:, None, None], lat[None, :, None], lon[None, None, :]
        shape = stamps.size, lat.size, lon.size
        warm = np.broadcast_to(temperature(*mesh), shape).astype(np.float32)
        fallen = np.broadcast_to(rain(*mesh), shape).astype(np.float64)
        total = np.zeros(shape)
        hour = stamps.astype("datetime64[h]").astype(int) % 24
        for k in range(stamps.size):
            total[k] = fallen[k] if hour[k] == 1 or k == 0 else total[k - 1] + fallen[k]
        if sea is not None:
            wet = np.broadcast_to(sea(lat[:, None], lon[None, :]), shape[1:])
            warm[:, wet] = np.nan
            total[:, wet] = np.nan
        dims = ("valid_time", "latitude", "longitude")
        data = xr.Dataset(
            {
                "t2m": (dims, warm, {"units": "K"}),
                "tp": (dims, total.astype(np.float32), {"units": "m"}),
            },
            {
                "valid_time": stamps,
                "latitude": lat,
                "longitude": lon % 360,
                "number": 0,
            },
        )
        path = self.folder / "data" / name
        chunks = {"chunks": (360, 6, 6)}
        with warnings.catch_warnings():
            # Zarr 3 has consolidated metadata in practice, not yet on paper.
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            encoding = {"t2m": chunks, "tp": chunks}
            data.to_zarr(path, zarr_format=3, consolidated=True, encoding=encoding)
        return path

    # -- ground --------------------------------------------------------------------------

    def dem(
        self,
        heights: Any,
        bounds: tuple[float, float, float, float] | None = None,
        *,
        collection: str = "nasadem",
        asset: str = "elevation",
        width: float = 1.0,
    ) -> None:
        """Write a tile; `heights` is a function of lon and lat in degrees.

        Pixels are 1 arc second high and `width` arc seconds wide.
        """
        west, south, east, north = bounds or (4.9, 43.4, 5.1, 43.6)
        step, across = 1 / 3600, width / 3600
        columns, rows = round((east - west) / across) + 1, round((north - south) / step) + 1
        transform = Affine(across, 0, west - across / 2, 0, -step, north + step / 2)
        lon = west + across * np.arange(columns)
        lat = north - step * np.arange(rows)
        data = np.asarray(heights(lon[None, :], lat[:, None]), dtype=np.float32)
        data = np.broadcast_to(data, (rows, columns)).copy()
        name = f"dem_{len(self.items.get(collection, ()))}"
        if collection != "nasadem":
            name = f"{collection}_{name}"
        file = write_tiff(self.folder / "data" / f"{name}.tif", data, transform, "EPSG:4326")
        self.add(
            collection,
            name,
            (west, south, east, north),
            {"datetime": "2000-02-20T00:00:00Z"},
            {asset: {"href": str(file)}},
        )

    def cover(
        self,
        classes: Any,
        bounds: tuple[float, float, float, float] = (4.9, 43.4, 5.1, 43.6),
        *,
        year: int = 2021,
        name: str = "",
        pixels_per_degree: int = 3000,
    ) -> None:
        """Write a tile of land cover; `classes` gives the array (y, x) of a shape."""
        west, south, east, north = bounds
        step = 1 / pixels_per_degree
        shape = round((north - south) / step), round((east - west) / step)
        data = np.ascontiguousarray(classes(shape), dtype=np.uint8)
        transform = Affine(step, 0, west, 0, -step, north)
        name = name or f"cover_{year}_{len(self.items.get('esa-worldcover', ()))}"
        file = write_tiff(self.folder / "data" / f"{name}.tif", data, transform, "EPSG:4326", 0)
        self.add(
            "esa-worldcover",
            name,
            bounds,
            {
                "datetime": None,
                "start_datetime": f"{year}-01-01T00:00:00Z",
                "end_datetime": f"{year}-12-31T23:59:59Z",
            },
            {"map": {"href": str(file)}},
        )

    def soil(self, sand: Any = 412, clay: Any = 233, density: Any = 131) -> None:
        """Write the three layers, 60 x 60 pixels of 250 m; values are stored as they are."""
        to_plane = Transformer.from_crs("EPSG:4326", HOMOLOSINE, always_xy=True)
        x, y = to_plane.transform(5.005, 43.5)
        transform = Affine(250, 0, (x // 250 - 30) * 250, 0, -250, (y // 250 + 30) * 250)
        assets = {}
        for key, value in (("sand", sand), ("clay", clay), ("bdod", density)):
            data = np.broadcast_to(np.asarray(value, dtype=np.int16), (60, 60)).copy()
            name = f"{key}_0-5cm_mean"
            file = self.folder / "data" / f"{name}.tif"
            assets[key] = {"href": str(write_tiff(file, data, transform, HOMOLOSINE, NODATA))}
        self.add(
            "soilgrids-2.0",
            "soilgrids",
            (4.8, 43.3, 5.2, 43.7),
            {"datetime": "2020-05-04T00:00:00Z"},
            assets,
        )

    # -- all of it -----------------------------------------------------------------------

    def fill(self, first: date = date(2019, 6, 1), last: date = date(2020, 6, 30)) -> None:
        """Write everything but radar, for all days of the months from `first` to `last`."""
        from xsoilsm import periods

        for start in periods.period_starts(str(first), str(last)).tolist():
            self.ndvi(start, ndvi_of(start))
        month, end = np.datetime64(first, "M"), np.datetime64(last, "M")
        while month <= end:
            self.weather(str(month), temperature_of, rain_of)
            month += 1
        self.dem(height_of)
        self.soil()


def ndvi_of(start: date) -> int:
    """Store NDVI of a period as an integer: a cosine over the year."""
    return round(4000 - 2000 * np.cos(2 * np.pi * start.timetuple().tm_yday / 365))


def temperature_of(stamp: Any, lat: Any, lon: Any) -> Any:
    """Temperature in K: 12 degC, warmer by day, a kelvin colder per degree north."""
    hour = stamp.astype("datetime64[h]").astype(int) % 24
    return 285.15 + 4 * np.sin(2 * np.pi * (hour - 9) / 24) - (lat - 43.5) + 0 * lon


def rain_of(stamp: Any, lat: Any, lon: Any) -> Any:
    """Rain in m of the hour that ends at the stamp: 1 mm at 00 UTC, so of the day before."""
    hour = stamp.astype("datetime64[h]").astype(int) % 24
    return np.where(hour == 0, 1e-3, 0.0) + 0 * lat + 0 * lon


def height_of(lon: Any, lat: Any) -> Any:
    """Elevation in m: a plane that rises to the east."""
    return 100 + 3000 * (lon - 5.0) + 0 * lat


def cell_polygons(geobox: Any, crs: str = UTM) -> list[dict[str, Any]]:
    """Cells as polygons in another projection, with points along their edges."""
    to_plane = Transformer.from_crs("EPSG:6933", crs, always_xy=True)
    affine = geobox.affine
    t = np.linspace(0, 1, 41)
    sides = [(t, 0 * t), (1 + 0 * t, t), (1 - t, 1 + 0 * t), (0 * t, 1 - t)]
    ring = np.concatenate([np.stack(side, axis=1)[:-1] for side in sides])
    features = []
    for i in range(geobox.shape[0]):
        for j in range(geobox.shape[1]):
            x, y = to_plane.transform(
                affine.c + affine.a * (j + ring[:, 0]), affine.f + affine.e * (i + ring[:, 1])
            )
            corners = [*zip(x.tolist(), y.tolist(), strict=True), (float(x[0]), float(y[0]))]
            geometry = {"type": "Polygon", "coordinates": [corners]}
            features.append({"type": "Feature", "properties": {}, "geometry": geometry})
    return features
