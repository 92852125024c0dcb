"""Step 2 of 7 (find): the frozen models of a catalog's facts.

One model for services, one for bands, and one for each kind of source. Unknown keys are errors.
:mod:`xsoilsm.catalog` reads files into them.
"""

from __future__ import annotations

from datetime import date
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "GROUPS",
    "KINDS",
    "Band",
    "DemSource",
    "Era5Source",
    "Exclusion",
    "Model",
    "ModisSource",
    "Sentinel1RtcSource",
    "Service",
    "SoilSource",
    "Source",
    "WeatherVariable",
]

GROUPS = ("radar", "ndvi", "weather", "terrain", "soil")
"""Groups of cube variables; a catalog names at least one source for each."""


class Model(BaseModel):
    """Frozen, strict about unknown keys, and with a token that Dask can rely on."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def __dask_tokenize__(self) -> tuple[str, str]:
        """Token of the content: equal catalogs give equal graphs."""
        return type(self).__name__, self.model_dump_json()


class Service(Model):
    """Where items are searched and how their links are made readable.

    Parameters
    ----------
    kind : {"stac-api", "stac-static"}
        A STAC API, or a static catalog of JSON files.
    href : str
        Address of the API's or catalog's root. ``{cache}`` stands for :func:`cache_dir`.
    signing : {"none", "planetary-computer"}
        How links are signed, at the moment when they are read.
    rewrite : dict of str to str
        Beginnings of asset links and what replaces them, after signing. A mirror of the data
        is named here.
    missing : str
        What to do where a static catalog on this machine does not exist.
    source : str
        Where these facts were learnt.
    """

    kind: Literal["stac-api", "stac-static"]
    href: str
    signing: Literal["none", "planetary-computer"] = "none"
    rewrite: dict[str, str] = Field(default_factory=dict)
    missing: str = ""
    source: str

    @property
    def is_local(self) -> bool:
        """Whether the root is a file on this machine."""
        return "://" not in self.href


class Band(Model):
    """One asset and how its stored numbers become physical ones.

    Parameters
    ----------
    asset : str
        Key of the asset in an item.
    units : str
        Units after scaling: ``stored * scale + offset``.
    scale, offset : float
    nodata : float, optional
        Stored number that means "no value", besides what the file itself declares.
    valid : (float, float), optional
        Bounds of valid stored numbers.
    """

    asset: str
    units: str
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    valid: tuple[float, float] | None = None


class Exclusion(Model):
    """Acquisitions that are known to be wrong.

    Parameters
    ----------
    start, end : date
        First and last day, UTC.
    reason : str
    platform : str
        For instance ``"SENTINEL-1B"``; empty for all.
    """

    start: date
    end: date
    reason: str
    platform: str = ""

    def matches(self, day: date, platform: str) -> bool:
        """Whether an acquisition of `platform` on `day` is excluded."""
        same = not self.platform or self.platform.lower() == platform.lower()
        return same and self.start <= day <= self.end


class _Source(Model):
    """What all kinds of sources say about themselves.

    Parameters
    ----------
    service : str
        Name of a service of the same catalog.
    collection : str
        Identifier of the STAC collection.
    start, end : date, optional
        First and last day (UTC) on which the source has data; open where absent.
    licence, citation : str
        They travel into the attributes of the cube.
    source : str
        Where these facts were learnt.
    """

    service: str
    collection: str
    start: date | None = None
    end: date | None = None
    licence: str
    citation: str
    source: str

    def covers(self, day: date) -> bool:
        """Whether the source claims data on `day`."""
        return (self.start is None or self.start <= day) and (self.end is None or day <= self.end)

    @property
    def span(self) -> str:
        """Range of dates in words."""
        return f"{self.start or 'the beginning'} to {self.end or 'today'}"


class Sentinel1RtcSource(_Source):
    """Terrain-flattened gamma nought (linear power) with the GRD items it was made from.

    Parameters
    ----------
    vv, vh : Band
    grd_collection : str
        Collection of the GRD items whose annotation holds the incidence angle.
    grd_asset : str
        Measurement asset of a GRD item; the path of the annotation follows from its link.
    sigma0_from : {"rtc-flat"}
        How sigma nought is obtained.
    exclude : tuple of Exclusion
    """

    kind: Literal["sentinel1-rtc"]
    vv: Band
    vh: Band
    grd_collection: str
    grd_asset: str = "vv"
    sigma0_from: Literal["rtc-flat"] = "rtc-flat"
    exclude: tuple[Exclusion, ...] = ()


class ModisSource(_Source):
    """16-day NDVI composites of Terra and Aqua.

    Parameters
    ----------
    ndvi : Band
    crs : str
        Projection, used where an item and its file leave it open.
    """

    kind: Literal["modis-ndvi"]
    ndvi: Band
    crs: str = ""


class WeatherVariable(Model):
    """One variable of a Zarr store that an item describes.

    Parameters
    ----------
    asset : str
        Key of the asset.
    variable : str
        Name in the store; the asset's key where empty.
    item_kind : str
        Value of the item property `kind_property` of the source.
    units : str
        Units after scaling.
    stored_units : str
        Units that the store has to declare, where it declares any.
    scale, offset : float
        ``stored * scale + offset`` is in `units`.
    accumulation : {"instant", "hour-ending"}
        Whether a time stamp names an instant or the end of the hour that was accumulated.
    """

    asset: str
    variable: str = ""
    item_kind: str = ""
    units: str
    stored_units: str = ""
    scale: float = 1.0
    offset: float = 0.0
    accumulation: Literal["instant", "hour-ending"]


class Era5Source(_Source):
    """Hourly reanalysis as Zarr stores, one STAC item per month and kind of variable.

    Parameters
    ----------
    air_temperature, precipitation : WeatherVariable
    kind_property : str
        Item property that tells the kinds of items apart.
    """

    kind: Literal["era5-zarr"]
    air_temperature: WeatherVariable
    precipitation: WeatherVariable
    kind_property: str = "era5:kind"


class DemSource(_Source):
    """Elevation model in tiles on one lattice.

    Parameters
    ----------
    elevation : Band
    datum : str
        Vertical datum, for the record.
    """

    kind: Literal["dem"]
    elevation: Band
    datum: str = ""


class SoilSource(_Source):
    """Soil layers on one grid.

    Parameters
    ----------
    sand, clay, bulk_density : Band
    """

    kind: Literal["soilgrids"]
    sand: Band
    clay: Band
    bulk_density: Band


Source: TypeAlias = Sentinel1RtcSource | ModisSource | Era5Source | DemSource | SoilSource
"""Any kind of source; ``kind`` names the module that reads it."""

KINDS = {
    "radar": {"sentinel1-rtc"},
    "ndvi": {"modis-ndvi"},
    "weather": {"era5-zarr"},
    "terrain": {"dem"},
    "soil": {"soilgrids"},
}
"""Kinds of sources that give each group."""
