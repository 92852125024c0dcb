"""Step 2 of 7 (find): the frozen models of a catalog's facts.

One model for services, one for bands, and one for each kind of source. Unknown keys are errors.
:mod:`xsoilsm.catalog` reads files into them.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "GROUPS",
    "KINDS",
    "OPTIONAL_GROUPS",
    "Band",
    "DemSource",
    "Era5Source",
    "Exclusion",
    "LandcoverSource",
    "Model",
    "ModisSource",
    "Reliability",
    "Sentinel1GrdSource",
    "Sentinel1RtcSource",
    "Service",
    "SoilSource",
    "Source",
    "WeatherVariable",
]

GROUPS = ("radar", "ndvi", "weather", "terrain", "soil")
"""Groups of cube variables; a catalog names at least one source for each."""

OPTIONAL_GROUPS = ("landcover",)
"""Groups of optional cube variables, which a catalog may name."""


_USERINFO = re.compile(r"^[a-z][a-z0-9+.-]*://[^/?#]*@", re.IGNORECASE)
_AZURE = re.compile(r"^abfss?://[^/?#@:]+@", re.IGNORECASE)  # container@account, no secret


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
    kind : {"stac-api", "stac-static", "zarr"}
        A STAC API, a static catalog of JSON files, or a folder of Zarr stores without any
        catalog, in which the collection of a source is the path of its store.
    href : str
        Address of the root. ``{cache}`` stands for :func:`cache_dir`. Never with a password.
    signing : {"none", "planetary-computer", "netrc"}
        How links are signed, or requests authorised, at the moment when they are read.
        ``netrc`` takes name and token from the user's netrc file (``~/.netrc``, ``$NETRC``).
    rewrite : dict of str to str
        Beginnings of asset links and what replaces them, after signing. A mirror of the data
        is named here.
    missing : str
        What to do where a static catalog on this machine does not exist.
    source : str
        Where these facts were learnt.
    """

    kind: Literal["stac-api", "stac-static", "zarr"]
    href: str
    signing: Literal["none", "planetary-computer", "netrc"] = "none"
    rewrite: dict[str, str] = Field(default_factory=dict)
    missing: str = ""
    source: str

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Service:
        for link in (self.href, *self.rewrite, *self.rewrite.values()):
            if _USERINFO.match(link) and not _AZURE.match(link):
                msg = (
                    "an address holds a name or password before '@'; take it out, put it into "
                    "~/.netrc and set `signing: netrc`"
                )
                raise ValueError(msg)
        return self

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
    latency : float, optional
        Days from the end of what data cover until the provider has them; needed for ``asof``.
    licence, citation : str
        They travel into the attributes of the cube.
    source : str
        Where these facts were learnt.
    """

    service: str
    collection: str
    start: date | None = None
    end: date | None = None
    latency: float | None = Field(default=None, ge=0, le=3650)
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
    """Terrain-flattened gamma nought (linear power) and what makes sigma nought of it.

    Parameters
    ----------
    vv, vh : Band
    grd_collection : str
        Collection of the GRD items whose annotation holds the incidence angle. Needed unless
        `incidence` is given.
    grd_service : str
        Service of `grd_collection`; that of the source where empty.
    grd_asset : str
        Measurement asset of a GRD item; the path of the annotation follows from its link.
    sigma0_from : {"rtc-flat", "rtc-slope", "rtc-area"}
        How sigma nought is obtained: as on flat ground, with the slope in range direction, or
        exactly with the area factor.
    area : Band, optional
        Area factor on the pixels of `vv`: beta nought over gamma nought.
    incidence : Band, optional
        Incidence angle on the ellipsoid in degrees, on the pixels of `vv`.
    mask : Band, optional
        Layover and shadow on the pixels of `vv`.
    mask_valid : tuple of int
        Classes of `mask` that are neither layover nor shadow.
    static_collection : str
        Collection that holds `area`, `incidence` and `mask`; the items themselves where empty.
    static_key : str
        Pattern with one group that tells which static item belongs to an item: both identifiers
        give the same text for the group.
    relative_orbit_key, platform_key : str
        Patterns with one group that tell relative orbit and platform from the identifier of an
        item, where its properties do not.
    border_pixels : int
        Width in pixels by which the outer border of a pass is eroded, because fringes of noise
        lie along it.
    border_before : date, optional
        First day on which the border is clean; open where absent.
    exclude : tuple of Exclusion
    """

    kind: Literal["sentinel1-rtc"]
    vv: Band
    vh: Band
    grd_collection: str = ""
    grd_service: str = ""
    grd_asset: str = "vv"
    sigma0_from: Literal["rtc-flat", "rtc-slope", "rtc-area"] = "rtc-flat"
    area: Band | None = None
    incidence: Band | None = None
    mask: Band | None = None
    mask_valid: tuple[int, ...] = (0,)
    static_collection: str = ""
    static_key: str = ""
    relative_orbit_key: str = ""
    platform_key: str = ""
    border_pixels: int = Field(default=0, ge=0, le=1000)
    border_before: date | None = None
    exclude: tuple[Exclusion, ...] = ()

    @model_validator(mode="after")
    def _can_be_converted(self) -> Sentinel1RtcSource:
        if self.sigma0_from == "rtc-area" and self.area is None:
            msg = "sigma0_from is 'rtc-area', which needs `area`"
            raise ValueError(msg)
        if not self.grd_collection and (self.incidence is None or self.sigma0_from == "rtc-slope"):
            msg = (
                "names no `grd_collection`, whose annotation holds the incidence angle and the "
                "look direction; name one, or `incidence` and another form than 'rtc-slope'"
            )
            raise ValueError(msg)
        if self.static_collection and _groups(self.static_key) != 1:
            msg = "`static_collection` needs a `static_key` with one group"
            raise ValueError(msg)
        for key in (self.relative_orbit_key, self.platform_key):
            if key and _groups(key) != 1:
                msg = f"the pattern {key!r} has to have one group"
                raise ValueError(msg)
        return self


class Sentinel1GrdSource(_Source):
    """Digital numbers in radar geometry, with the annotations beside them.

    Parameters
    ----------
    vv, vh : Band
        Measurements; the paths of annotation, calibration and noise follow from their links.
    resampling : {"bilinear", "nearest"}
        Whether power is interpolated between pixels, or native pixels are taken as they are.
    border_before : date, optional
        First day on which the border is clean of noise; open where absent.
    sigma0_from : {"grd"}
        How sigma nought is obtained.
    exclude : tuple of Exclusion
    """

    kind: Literal["sentinel1-grd"]
    vv: Band
    vh: Band
    resampling: Literal["bilinear", "nearest"] = "bilinear"
    border_before: date | None = None
    sigma0_from: Literal["grd"] = "grd"
    exclude: tuple[Exclusion, ...] = ()


class Reliability(Model):
    """A layer of classes that says which pixels of another one are good.

    Parameters
    ----------
    asset : str
        Key of the asset in an item.
    keep : tuple of int
        Classes that count where a mask is asked for.
    """

    asset: str
    keep: tuple[int, ...]


def _groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error:
        return -1


class ModisSource(_Source):
    """16-day NDVI composites of Terra and Aqua.

    Parameters
    ----------
    ndvi : Band
    reliability : Reliability, optional
        Used only where the user asks for a quality mask.
    crs : str
        Projection, used where an item and its file leave it open.
    """

    kind: Literal["modis-ndvi"]
    ndvi: Band
    reliability: Reliability | None = None
    crs: str = ""


class WeatherVariable(Model):
    """One variable of a Zarr store, which an item describes or the catalog names.

    Parameters
    ----------
    asset : str
        Key of the asset; empty where the catalog names the store itself.
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
    accumulation : {"instant", "hour-ending", "since-midnight"}
        Whether a time stamp names an instant, the end of the hour that was accumulated, or the
        end of what has been accumulated since 00 UTC; there the stamp 00 UTC holds the whole
        of the day before.
    """

    asset: str = ""
    variable: str = ""
    item_kind: str = ""
    units: str
    stored_units: str = ""
    scale: float = 1.0
    offset: float = 0.0
    accumulation: Literal["instant", "hour-ending", "since-midnight"]

    @model_validator(mode="after")
    def _has_a_name(self) -> WeatherVariable:
        if not (self.asset or self.variable):
            msg = "names neither an asset nor a variable"
            raise ValueError(msg)
        return self


class Era5Source(_Source):
    """Hourly reanalysis in Zarr stores.

    A STAC service has one item per month and kind of variable; of a service of kind ``zarr``
    the collection is the path of one store that holds everything.

    Parameters
    ----------
    air_temperature, precipitation : WeatherVariable
    kind_property : str
        Item property that tells the kinds of items apart.
    options : dict of str to object
        Keywords for :func:`xarray.open_dataset`, for stores that no item describes.
    fill_within : float
        Distance in km over which grid points without values (those over the sea) take the
        values of the nearest one with values; 0 leaves them empty.
    """

    kind: Literal["era5-zarr"]
    air_temperature: WeatherVariable
    precipitation: WeatherVariable
    kind_property: str = "era5:kind"
    options: dict[str, Any] = Field(default_factory=dict)
    fill_within: float = Field(default=0.0, ge=0.0, le=500.0)


class DemSource(_Source):
    """Elevation model in tiles on one lattice.

    Parameters
    ----------
    elevation : Band
    datum : str
        Vertical datum: ``"EGM96"``, ``"EGM2008"``, ``"ellipsoid"``, or any other for the record.
    geoid_height : float, optional
        Height in m of the datum above the ellipsoid, where one number is good enough.
    """

    kind: Literal["dem"]
    elevation: Band
    datum: str = ""
    geoid_height: float | None = None


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


class LandcoverSource(_Source):
    """Land cover as numbered classes; of several editions of a tile the latest is used.

    Parameters
    ----------
    cover : Band
    water, built, tree, snow_ice : tuple of int
        Classes that count as open water, built-up, tree cover, snow and ice.
    """

    kind: Literal["worldcover"]
    cover: Band
    water: tuple[int, ...] = (80,)
    built: tuple[int, ...] = (50,)
    tree: tuple[int, ...] = (10,)
    snow_ice: tuple[int, ...] = (70,)


Source: TypeAlias = (
    Sentinel1RtcSource
    | Sentinel1GrdSource
    | ModisSource
    | Era5Source
    | DemSource
    | SoilSource
    | LandcoverSource
)
"""Any kind of source; ``kind`` names the module that reads it."""

KINDS = {
    "radar": {"sentinel1-rtc", "sentinel1-grd"},
    "ndvi": {"modis-ndvi"},
    "weather": {"era5-zarr"},
    "terrain": {"dem"},
    "soil": {"soilgrids"},
    "landcover": {"worldcover"},
}
"""Kinds of sources that give each group."""
