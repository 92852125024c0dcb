"""Outside the seven steps (simulate): hourly weather as Zarr stores and items.

Forms follow `era5-pds` of the Planetary Computer: one store a month and variable, two kinds of
items, latitudes downward, longitudes 0 to 360; a window of the globe. Writes; reads nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm.simulate.climate import Weather
from xsoilsm.simulate.files import write_zarr
from xsoilsm.simulate.items import Catalogue, Json, polygon

__all__ = ["write_weather"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_WEATHER = {
    "an": (
        "air_temperature_at_2_metres",
        "2 metre temperature",
        {
            "units": "K",
            "nameCDM": "2_metre_temperature_surface",
            "long_name": "2 metre temperature",
            "nameECMWF": "2 metre temperature",
            "product_type": "analysis",
            "standard_name": "air_temperature",
            "shortNameECMWF": "2t",
        },
    ),
    "fc": (
        "precipitation_amount_1hour_Accumulation",
        "Total precipitation",
        {
            "units": "m",
            "nameCDM": "Total_precipitation_1hour_Accumulation",
            "long_name": "Total precipitation",
            "nameECMWF": "Total precipitation",
            "product_type": "forecast",
            "standard_name": "precipitation_amount",
            "shortNameECMWF": "tp",
        },
    ),
}
"""Variable, title and attributes of the two kinds of `era5-pds` items."""


def write_weather(
    catalogue: Catalogue,
    weather: Weather,
    first: np.datetime64,
    last: np.datetime64,
    *,
    yearly: bool = False,
) -> None:
    """Write `era5-pds`: hourly Zarr stores and two items a month.

    Parameters
    ----------
    catalogue : Catalogue
    weather : Weather
    first, last : datetime64
        Dates in the first and in the last month, or year.
    yearly : bool, default False
        One store a year instead, from `first` to `last`: far fewer files, in an order that the
        real archive does not have.
    """
    unit = "Y" if yearly else "M"
    for month in np.arange(
        first.astype(f"datetime64[{unit}]"), last.astype(f"datetime64[{unit}]") + 1
    ):
        days = np.arange(month, month + 1, dtype="datetime64[D]")
        days = days[(days >= first) & (days <= last)] if yearly else days
        temperature = np.concatenate([weather.hourly_temperature(day) for day in days])
        precipitation = np.concatenate([weather.hourly_precipitation(day) for day in days])
        for kind, values in (("an", temperature), ("fc", precipitation)):
            _write_store(catalogue, str(month), days, kind, values, weather)


def _write_store(
    catalogue: Catalogue,
    label: str,
    days: npt.NDArray[np.datetime64],
    kind: str,
    values: Float32,
    weather: Weather,
) -> None:
    """Write one store and its item; the label is year and month, or the year."""
    variable, title, attributes = _WEATHER[kind]
    east = np.mod(weather.lon, 360)
    order = np.argsort(east)
    hours = np.arange(days[0], days[-1] + 1, dtype="datetime64[h]")
    time = hours.astype("datetime64[ns]")
    dataset = xr.Dataset(
        {variable: (("time", "lat", "lon"), values[:, :, order], attributes)},
        coords={
            "time": ("time", time, {"standard_name": "time"}),
            "lat": ("lat", weather.lat.astype(np.float32), {"units": "degrees_north"}),
            "lon": ("lon", east[order].astype(np.float32), {"units": "degrees_east"}),
        },
        attrs={"institution": "xsoilsm", "source": "Simulated; not a reanalysis"},
    )
    described: Json = {}
    if kind == "fc":
        bounds = np.stack([time - np.timedelta64(1, "h"), time], axis=1)
        dataset["time1_bounds"] = ("time", "nv"), bounds
        described["time1_bounds"] = {
            "type": "data",
            "attrs": {},
            "shape": [time.size, 2],
            "dimensions": ["time", "nv"],
        }
    described[variable] = {
        "type": "data",
        "unit": attributes["units"],
        "attrs": attributes,
        "shape": list(values.shape),
        "dimensions": ["time", "lat", "lon"],
        "description": title,
    }
    for name in ("time", "time1_bounds"):
        if name in dataset:
            dataset[name].encoding = {"units": f"hours since {days[0]}", "dtype": "int32"}
    folder = catalogue.root.joinpath("data", "era5", "ERA5", *label.split("-"))
    path = folder / f"{variable}.zarr"
    write_zarr(path, dataset)
    begin, end = f"{hours[0]}:00:00Z", f"{hours[-1]}:00:00Z"

    def axis(values: Float64, letter: str, step: float, name: str) -> Json:
        return {
            "axis": letter,
            "step": step,
            "type": "spatial",
            "extent": [float(values.min()), float(values.max())],
            "description": name,
            "reference_system": "epsg:4326",
        }

    half = 0.125
    west, east_edge = float(weather.lon.min()) - half, float(weather.lon.max()) + half
    south, north = float(weather.lat.min()) - half, float(weather.lat.max()) + half
    ring = [
        (east_edge, south),
        (east_edge, north),
        (west, north),
        (west, south),
        (east_edge, south),
    ]
    catalogue.add(
        "era5-pds",
        f"era5-pds-{label}-{kind}",
        geometry=polygon(ring),
        properties={
            "datetime": None,
            "era5:kind": kind,
            "end_datetime": end,
            "cube:variables": described,
            "start_datetime": begin,
            "cube:dimensions": {
                "lat": axis(weather.lat, "y", -0.25, "latitude"),
                "lon": axis(east, "x", 0.25, "longitude"),
                "time": {"step": "P0DT1H0M0S", "type": "temporal", "extent": [begin, end]},
            },
        },
        assets={
            variable: {
                "href": catalogue.href(path),
                "type": "application/vnd+zarr",
                "roles": ["data"],
                "title": title,
                "xarray:open_kwargs": {"chunks": {}, "engine": "zarr", "consolidated": True},
            }
        },
        extensions=("datacube",),
    )
