"""Outside the seven steps (simulate): the Sentinel-1 products of a pass.

Cuts the image of a pass into slices and writes, for each, the `sentinel-1-rtc` files and item and
the `sentinel-1-grd` annotation and item that it is derived from; and, where asked for, the pixels,
calibration and noise of that product too. Writes; reads nothing.
"""

from __future__ import annotations

import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from xsoilsm.simulate.annotation import Slice, annotation_xml, rfi_xml
from xsoilsm.simulate.files import write_cog, write_text
from xsoilsm.simulate.items import Catalogue, grd_item, rtc_item
from xsoilsm.simulate.land import BASE_ELEVATION, Place
from xsoilsm.simulate.measurement import write_measurement
from xsoilsm.simulate.orbit import Overpass, scene_slices
from xsoilsm.simulate.scene import (
    GEOID,
    NODATA,
    Surface,
    cut_slice,
    image_geobox,
    render,
    time_range,
)

Float64 = npt.NDArray[np.float64]

__all__ = ["make_slices", "write_pass"]

_FIRST_SLICE, _TOTAL_SLICES = 5, 12  # of the data take; the region lies in its middle


def make_slices(place: Place, one: Overpass, geobox: GeoBox, *, cut: bool) -> list[Slice]:
    """Slices of a pass that may see a grid.

    Parameters
    ----------
    place : Place
    one : Overpass
    geobox : GeoBox
    cut : bool
        Put a boundary of slices on the middle of the region.

    Returns
    -------
    list of Slice
        In order of time.
    """

    def height(lon: Float64, lat: Float64) -> Float64:
        return place.elevation_at(lat, lon).astype(np.float64) + GEOID

    spans = scene_slices(one.geometry, *time_range(place, one, geobox), cut=cut)
    return [
        Slice(one, begin, end, _FIRST_SLICE + k, _TOTAL_SLICES, height)
        for k, (begin, end) in enumerate(spans)
    ]


def write_pass(
    catalogue: Catalogue,
    place: Place,
    one: Overpass,
    surface: Surface,
    *,
    number: int,
    threads: int = 1,
    grd_pixels: bool = False,
) -> None:
    """Render a pass and write the products of its slices.

    Parameters
    ----------
    catalogue : Catalogue
    place : Place
    one : Overpass
    surface : Surface
        What the radar sees, on `Place.geobox`.
    number : int
        Number of the acquisition: it seeds the speckle, and odd ones are cut in the middle of
        the region.
    threads : int, default 1
        The files do not depend on it.
    grd_pixels : bool, default False
        Write the pixels, calibration and noise of the GRD product.
    """
    geobox = image_geobox(place, one, one.geometry.spacing)
    image = render(place, one, geobox, surface, number=number, threads=threads)
    jobs: list[Future[None]] = []
    finished: list[tuple[Slice, GeoBox, dict[str, Path]]] = []
    with ThreadPoolExecutor(threads) as pool:
        for part in make_slices(place, one, geobox, cut=number % 2 == 1):
            found = cut_slice(image, part)
            if found is None:
                continue
            window, data = found
            grd, rtc = _folders(catalogue, part)
            grd_item(catalogue, part, grd, with_pixels=grd_pixels)
            if grd_pixels:
                jobs.append(pool.submit(write_measurement, grd, place, image, part))
            files: dict[str, Path] = {}
            for key, values in data.items():
                write_text(grd / "annotation" / f"iw-{key}.xml", annotation_xml(part, key))
                write_text(grd / "annotation" / "rfi" / f"rfi-iw-{key}.xml", rfi_xml(part, key))
                files[key] = rtc / "measurement" / f"iw-{key}.rtc.tiff"
                jobs.append(
                    pool.submit(
                        write_cog,
                        files[key],
                        values,
                        window.affine,
                        str(window.crs),
                        nodata=NODATA,
                        predictor="FLOATING_POINT",
                        level=1,
                    )
                )
            finished.append((part, window, files))
        for job in jobs:
            job.result()
    for part, window, files in finished:
        rtc_item(catalogue, part, window, _footprint(part, window), files)


def _folders(catalogue: Catalogue, part: Slice) -> tuple[Path, Path]:
    """Folders of a slice's GRD and RTC products, as in the providers' archives."""
    year, month, day = str(part.overpass.utc(part.start).astype("datetime64[D]")).split("-")
    check = f"{zlib.crc32(part.name.encode()) & 0xFFFF:04X}"
    product = f"GRD/{year}/{int(month)}/{int(day)}/IW/DV/{part.name}_{check}"
    data = catalogue.root / "data"
    return data / "s1-grd" / product, data / "sentinel1-grd-rtc" / product


def _footprint(part: Slice, window: GeoBox) -> list[tuple[float, float]]:
    """Outline of a slice's data within its window, as longitude and latitude, closed."""
    geometry = part.geometry
    time = np.linspace(part.start, part.last, 17)
    pixel = np.linspace(0, geometry.samples - 1, 17)
    edge_time = np.concatenate((time, np.full(17, part.last), time[::-1], np.full(17, part.start)))
    edge_pixel = np.concatenate(
        (np.zeros(17), pixel, np.full(17, geometry.samples - 1), pixel[::-1])
    )
    lon, lat = geometry.ground(edge_time, edge_pixel, BASE_ELEVATION + GEOID)
    to_utm = Transformer.from_crs("EPSG:4326", str(window.crs), always_xy=True)
    image = shapely.Polygon(np.column_stack(to_utm.transform(lon, lat)))
    box = shapely.box(*window.boundingbox.bbox)
    common = image.intersection(box)
    shape = common if isinstance(common, shapely.Polygon) and not common.is_empty else box
    ring = np.asarray(shapely.orient_polygons(shape).exterior.coords)
    back = Transformer.from_crs(str(window.crs), "EPSG:4326", always_xy=True)
    lon, lat = back.transform(ring[:, 0], ring[:, 1])
    return [(float(x), float(y)) for x, y in zip(lon, lat, strict=True)]
