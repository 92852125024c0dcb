"""Step 7 of 7 (write): all tiles of a map as one lazy Dataset, in words of the CF conventions.

The Zarr store and the NetCDF file are both written from it, so that they say the same.

Conventions: CF-1.11, chapters 4 (coordinates), 5.6 and appendix F (grid mapping), 7 (cells),
8.1 (packed data), 3.4 and 3.5 (ancillary data and flags).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from xarray.core import indexing

from xsoilsm import grid
from xsoilsm.cube import spatial_coords
from xsoilsm.outputs.mosaic import Mosaic, Numbers, Packing, Windows, about_all
from xsoilsm.outputs.pieces import Acquisition, Piece, Place, by_acquisition, region_of
from xsoilsm.outputs.wording import global_attributes, strings, variable_attributes

__all__ = ["TIME_ENCODING", "Layout", "open_tiles"]

TIME_ENCODING = {"units": "seconds since 1970-01-01 00:00:00", "calendar": "standard"}
"""How times are stored; without a zone, which is UTC."""


@dataclass(frozen=True)
class Layout:
    """Acquisitions, variables and cells of an output, with the mosaics that fill it.

    Reads the heads of all tiles, no pixel.

    Parameters
    ----------
    acquisitions : tuple of Acquisition
        By time.
    place : Place
    mosaics : dict of str to list of Mosaic or None
        By variable, one per acquisition; None where an acquisition lacks the variable.
    attributes : dict of str to str
        Of the whole.
    """

    acquisitions: tuple[Acquisition, ...]
    place: Place
    mosaics: dict[str, list[Mosaic | None]]
    attributes: dict[str, str]

    @classmethod
    def of(
        cls,
        pieces: Iterable[Piece],
        geobox: GeoBox | None = None,
        numbers: Numbers = "float32",
        attributes: Mapping[str, str] | None = None,
    ) -> Layout:
        """Lay out pieces.

        Raises
        ------
        ValueError
            When two acquisitions have one time, or the pieces do not fit together.
        OSError
            When a tile is missing or damaged.
        """
        groups = by_acquisition(pieces)
        place = region_of((p for g in groups.values() for ps in g.values() for p in ps), geobox)
        acquisitions = tuple(groups)
        for one, other in pairwise(acquisitions):
            if one.start == other.start:
                msg = (
                    f"{one.id} and {other.id} have the same time {one.start}, but times have to "
                    "differ along an axis; write them to two files"
                )
                raise ValueError(msg)
        if len({acquisition.end is None for acquisition in acquisitions}) > 1:
            msg = "acquisitions and composites were given together; write them to two files"
            raise ValueError(msg)
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        mosaics: dict[str, list[Mosaic | None]] = {
            name: [
                Mosaic(group[name], place, numbers) if name in group else None
                for group in groups.values()
            ]
            for name in names
        }
        for name, layers in mosaics.items():
            found = sorted({str(m.packing.dtype) for m in layers if m is not None})
            if len(found) > 1:
                msg = f"{name} is {' and '.join(found)} in different acquisitions; expected one"
                raise ValueError(msg)
        told = [
            about_all(layers[index] for layers in mosaics.values()) for index in range(len(groups))
        ]
        shared = dict(sorted(set.intersection(*(set(said.items()) for said in told))))
        about = shared if attributes is None else strings(attributes)
        return cls(acquisitions, place, mosaics, global_attributes(about))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of acquisitions, of rows and of columns."""
        return len(self.acquisitions), *self.place.shape

    def packing(self, name: str) -> Packing:
        """How a variable is stored."""
        return next(mosaic for mosaic in self.mosaics[name] if mosaic is not None).packing

    def windows(self, name: str) -> Windows:
        """Give the stored numbers (time, y, x) of a variable. Lazy: reads nothing."""
        return Windows(self.mosaics[name])

    def variable_attributes(self, name: str) -> dict[str, Any]:
        """CF attributes of a variable, without those of its packing."""
        first = next(mosaic for mosaic in self.mosaics[name] if mosaic is not None)
        attributes = variable_attributes(name, first.told)
        others = [n for n in attributes.pop("ancillary_variables", "").split() if n in self.mosaics]
        if others:
            attributes["ancillary_variables"] = " ".join(others)
        if self.packing(name).masked:
            composite = self.acquisitions[0].end is not None
            attributes["cell_methods"] = f"time: {'mean' if composite else 'point'} area: mean"
        for masks in ("flag_masks", "flag_values"):
            if masks in attributes:
                attributes[masks] = np.asarray(attributes[masks], self.packing(name).dtype)
        packed = self.packing(name).attributes.get("quantization_comment")
        if packed:
            attributes["comment"] = "; ".join(filter(None, (attributes.get("comment"), packed)))
        return attributes

    def coords(self) -> dict[str, xr.Variable]:
        """Coordinates of cells and times, as they are and not encoded."""
        spatial = spatial_coords(self.place.geobox)
        for name in ("x", "y"):
            spatial[name].attrs |= {"axis": name.upper(), "long_name": f"{name} of cell centres"}
            del spatial[name].attrs["crs"]
        lon, _ = grid.xy_to_lonlat(spatial["x"].values, np.zeros(spatial["x"].size))
        _, lat = grid.xy_to_lonlat(np.zeros(spatial["y"].size), spatial["y"].values)
        return {
            "time": xr.Variable(
                "time",
                np.array([a.start for a in self.acquisitions], "datetime64[ns]"),
                {"standard_name": "time", "long_name": self._time_name(), "axis": "T"},
            ),
            **spatial,
            "lat": xr.Variable(
                "y",
                lat,
                {
                    "standard_name": "latitude",
                    "long_name": "latitude of cell centres",
                    "units": "degrees_north",
                },
            ),
            "lon": xr.Variable(
                "x",
                lon,
                {
                    "standard_name": "longitude",
                    "long_name": "longitude of cell centres",
                    "units": "degrees_east",
                },
            ),
            **self._acquisition_coords(),
        }

    def _time_name(self) -> str:
        composite = self.acquisitions[0].end is not None
        return "start of the composite, UTC" if composite else "time of the acquisition, UTC"

    def _acquisition_coords(self) -> dict[str, xr.Variable]:
        """Coordinates along time that say what an acquisition is, where that is known."""
        chosen = self.acquisitions
        said: dict[str, tuple[list[Any], dict[str, Any]]] = {
            "acquisition": ([a.id for a in chosen], {"long_name": "identifier of the acquisition"}),
            "platform": (
                [a.platform for a in chosen],
                {"standard_name": "platform_name", "long_name": "satellite"},
            ),
            "orbit_state": ([a.orbit_state for a in chosen], {"long_name": "direction of flight"}),
            "relative_orbit": (
                [np.int32(a.relative_orbit or 0) for a in chosen],
                {"long_name": "relative orbit number, 0 where unknown", "units": "1"},
            ),
        }
        return {
            name: xr.Variable(
                "time", np.array(values, object if name != "relative_orbit" else None), attrs
            )
            for name, (values, attrs) in said.items()
            if any(values)
        }

    def time_bounds(self) -> xr.Variable | None:
        """Bounds (time, bounds) of composites; None for acquisitions."""
        if self.acquisitions[0].end is None:
            return None
        spans = [(a.start, a.end) for a in self.acquisitions]
        return xr.Variable(("time", "bounds"), np.array(spans, "datetime64[ns]"))


def open_tiles(
    pieces: Iterable[Piece],
    *,
    geobox: GeoBox | None = None,
    attributes: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Open all tiles of a map as one Dataset.

    Lazy: reads the heads of all tiles, and pixels where they are asked for.

    Parameters
    ----------
    pieces : iterable of Piece
        Tiles of any number of acquisitions and variables, in any order.
    geobox : GeoBox, optional
        Cells of the Dataset. By default the smallest block that holds all pieces.
    attributes : mapping of str to str, optional
        Attributes of the result; by default what all tiles say in common.

    Returns
    -------
    Dataset
        Variables (time, y, x) in physical units, with ``platform`` and the like along time. Cells
        without a tile are missing values with the flag ``no_scene``.

    Raises
    ------
    OSError
        When a tile is missing or damaged.
    ValueError
        When tiles overlap or do not fit together.
    """
    layout = Layout.of(pieces, geobox, "float32", attributes)
    coords = layout.coords()
    data = {
        name: xr.Variable(
            ("time", "y", "x"),
            indexing.LazilyIndexedArray(layout.windows(name)),
            layout.variable_attributes(name),
            {"grid_mapping": "spatial_ref"},
        )
        for name in layout.mosaics
    }
    bounds = layout.time_bounds()
    if bounds is not None:
        coords["time_bounds"] = bounds
        coords["time"].attrs["bounds"] = "time_bounds"
    return xr.Dataset(data, coords, layout.attributes)
