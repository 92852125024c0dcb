from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from grd_scene import real_files
from range_doppler import LIGHT, TO_EARTH, RangeDoppler

from xsoilsm.sources.access.links import Access
from xsoilsm.sources.sentinel1.geocode import RadarImage, geoid_grid, scene_offset
from xsoilsm.sources.sentinel1.heights import height_source
from xsoilsm.sources.sentinel1.incidence import (
    Orbit,
    incidence_angle,
    track_surfaces,
)
from xsoilsm.sources.sentinel1.tracks import read_track, track_incidence, write_track


@pytest.fixture(scope="module")
def annotation(shared: Path) -> Path:
    return real_files(shared)["iw-vv.xml"]


@pytest.fixture(scope="module")
def root(annotation: Path) -> ET.Element:
    return ET.parse(annotation).getroot()


@pytest.fixture(scope="module")
def image(root: ET.Element) -> RadarImage:
    return RadarImage.parse(root)


@pytest.fixture(scope="module")
def targets(annotation: Path) -> tuple[Any, ...]:
    """Ground points all over the scene, with heights of 0 to 1845 m, inside the image."""
    judge = RangeDoppler(annotation)
    rng = np.random.default_rng(7)
    lon, lat = rng.uniform(1.5, 5.2, 12000), rng.uniform(44.5, 46.5, 12000)
    height = rng.uniform(0, 1845, 12000)
    line, pixel, angle = judge.locate(lon, lat, height)
    inside = (line >= 0) & (line < judge.shape[0]) & (pixel >= 0) & (pixel < judge.shape[1])
    assert inside.sum() > 5000
    return tuple(values[inside] for values in (lon, lat, height, line, pixel, angle))


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(values) ** 2)))


def test_targets_on_relief_against_range_doppler(
    image: RadarImage, targets: tuple[Any, ...]
) -> None:
    lon, lat, height, line, pixel, _ = targets
    found_line, found_pixel = image.locate(lon, lat, height)
    # Wanted are 2 pixels.
    assert rms(found_pixel - pixel) < 0.06
    assert np.abs(found_pixel - pixel).max() < 0.2
    assert rms(found_line - line) < 0.15
    assert np.abs(found_line - line).max() < 0.35
    # Heights matter: without them targets are far off.
    _, flat = image.locate(lon, lat, 0.0)
    assert rms(flat - pixel) > 100


def test_targets_on_relief_against_sarsen(
    shared: Path, image: RadarImage, targets: tuple[Any, ...]
) -> None:
    reason = "sarsen, an independent geocoder, is an extra of the development"
    sarsen = pytest.importorskip("sarsen", reason=reason)
    del sarsen
    import warnings

    import xarray as xr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        import xarray_sentinel
        from sarsen import geocoding, orbit

        (safe,) = (shared / "data" / "s1_annotation").glob("*.SAFE")
        states, conversion = (
            xarray_sentinel.open_sentinel1_dataset(str(safe), group=f"IW/VV/{group}")
            for group in ("orbit", "coordinate_conversion")
        )
        lon, lat, height = (values[:1000] for values in targets[:3])
        points = np.stack(TO_EARTH.transform(lon, lat, height), axis=-1)
        dem = xr.DataArray(points[None], dims=("y", "x", "axis"), coords={"axis": [0, 1, 2]})
        track = orbit.OrbitPolyfitInterpolator.from_position(states.position)
        seen = geocoding.backward_geocode(dem, track)
        delay = 2 * np.sqrt((seen.dem_distance**2).sum("axis")) / LIGHT
        ground = xarray_sentinel.slant_range_time_to_ground_range(
            seen.azimuth_time, delay, conversion
        )
    first = np.datetime64("2021-08-09T17:39:53.153776", "ns")
    seconds = (seen.azimuth_time.values[0] - first) / np.timedelta64(1, "ns") * 1e-9
    found_line, found_pixel = image.locate(lon, lat, height)
    assert rms(found_pixel - ground.values[0] / 10) < 0.06
    assert rms(found_line - seconds / image.line_interval) < 0.15


def test_its_own_points_are_found(image: RadarImage) -> None:
    points = image.grid
    line, pixel = image.locate(points.lon, points.lat, points.height)
    # Time drifts from line by up to 0.2 in the annotation itself; and its points follow the
    # nearest update of the ground range instead of interpolating, which is up to 0.4 pixels.
    assert np.abs(line - points.line).max() < 0.4
    assert np.abs(pixel - points.pixel).max() < 0.5


def test_height_moves_pixels_towards_the_radar(image: RadarImage) -> None:
    lon, lat = 3.3, 45.4
    (line, far), (same, near) = image.locate(lon, lat, 100.0), image.locate(lon, lat, 200.0)
    _, _, cosine = image.reference(lon, lat)
    theta = np.arccos(cosine)
    assert far - near == pytest.approx(100 / np.tan(theta) / 10, rel=0.01)
    assert line == same


def test_far_points_have_no_place(image: RadarImage) -> None:
    for lon, lat in ((3.3, 40.0), (20.0, 45.0), (-176.7, -45.4), (3.3, -45.4)):
        assert np.isnan(image.locate(lon, lat, 0.0)[1])
    line, pixel = image.locate(3.3, 46.35, 300.0)
    assert np.isfinite(pixel)
    assert not 0 <= line <= image.shape[0]


def test_the_antimeridian_is_no_edge(annotation: Path, image: RadarImage) -> None:
    root = ET.parse(annotation).getroot()
    for point in root.iter("longitude"):
        point.text = repr((float(str(point.text)) + 176.7 + 180) % 360 - 180)
    moved = RadarImage.parse(root)
    lon, lat = np.array([2.9, 3.2, 3.4, 4.0]), np.array([45.1, 45.4, 45.6, 46.0])
    east = (lon + 176.7 + 180) % 360 - 180
    assert np.sign(east).min() < np.sign(east).max()
    np.testing.assert_allclose(
        moved.locate(east, lat, 400.0), image.locate(lon, lat, 400.0), atol=1e-3
    )


@pytest.mark.parametrize("kept", [("0", "16675"), ("0",)])
def test_short_slices(annotation: Path, kept: tuple[str, ...]) -> None:
    root = ET.parse(annotation).getroot()
    (points,) = root.iter("geolocationGridPointList")
    for point in list(points):
        if point.findtext("line") not in kept:
            points.remove(point)
    if len(kept) == 1:
        with pytest.raises(OSError, match="on 1 lines"):
            RadarImage.parse(root)
        return
    image = RadarImage.parse(root)
    judge = RangeDoppler(annotation)
    line, pixel, _ = judge.locate(3.3, 45.4, 500.0)
    found_line, found_pixel = image.locate(3.3, 45.4, 500.0)
    # Two lines of points tell nothing of the bend between them.
    assert abs(float(found_pixel - pixel)) < 60
    assert abs(float(found_line - line)) < 60


@pytest.mark.parametrize(
    ("tag", "text", "message"),
    [
        ("azimuthTimeInterval", None, "azimuthTimeInterval"),
        ("geolocationGridPointList", None, "geolocation grid has 0 points"),
        ("coordinateConversionList", None, "no coordinateConversion"),
        ("slantRangeTime", "5.5e-3", "leave a smooth surface"),
    ],
)
def test_damaged_annotations_are_refused(
    annotation: Path, tag: str, text: str | None, message: str
) -> None:
    root = ET.parse(annotation).getroot()
    for parent in root.iter():
        for child in list(parent):
            if child.tag == tag and text is None:
                parent.remove(child)
            elif child.tag == tag and parent.tag == "geolocationGridPoint":
                child.text = text if parent.findtext("pixel") == "3924" else child.text
    with pytest.raises(OSError, match=message):
        RadarImage.parse(root)


# -- geoid ---------------------------------------------------------------------------------------


def test_the_geoid_of_a_scene(image: RadarImage) -> None:
    points = image.grid
    lookup = {(x, y): h for x, y, h in zip(points.lon, points.lat, points.height, strict=True)}

    def model(lon: Any, lat: Any) -> Any:
        heights = np.array([lookup[p] for p in zip(lon, lat, strict=True)]) - 48.5
        heights[::3] += np.random.default_rng(0).normal(0, 30, heights[::3].size)  # rough ground
        heights[::10] = np.nan  # no tile
        return heights

    offset, count = scene_offset(points, model)
    assert offset == pytest.approx(48.5, abs=0.5)
    assert count == 189


def test_the_geoid_over_the_sea(image: RadarImage) -> None:
    points = image.grid
    island = points.lon > 5.0
    assert 0 < island.sum() < 10
    heights = np.where(island, 400.0, 47.0) + np.random.default_rng(1).normal(0, 1, island.size)
    sea = replace(points, height=heights)

    def model(lon: Any, lat: Any) -> Any:
        return np.where(lon > 5.0, 350.0, np.nan)  # no tile at sea

    offset, count = scene_offset(sea, model)
    assert count == island.sum()
    assert offset == pytest.approx(47.0, abs=0.5)
    high = replace(points, height=points.height + 1000)
    assert scene_offset(high, lambda lon, lat: lon * np.nan) == (0.0, 0)


def test_ballpark_transformations_are_refused() -> None:
    # No grid is installed here, and PROJ would offer to leave heights as they are.
    from pyproj import Transformer

    silent = Transformer.from_crs("EPSG:4326+5773", "EPSG:4979", always_xy=True)
    assert silent.transform(3.3, 45.4, 100.0)[2] == 100.0
    assert geoid_grid("EGM96") is None
    assert geoid_grid("EGM2008") is None
    assert geoid_grid("NAVD88") is None
    source = height_source((), "EGM96")
    assert source.geoid == "scene"
    assert "of the scene" in source.record
    assert height_source((), "ellipsoid").geoid == "constant"
    constant = height_source((), "EGM96", 48.0)
    assert constant.offset(None) == 48  # type: ignore[arg-type]
    assert "48 m" in constant.record


WITH_GRID = """
import struct, sys
import numpy as np
from pathlib import Path
from pyproj import datadir
folder = Path(sys.argv[1])
rows, columns = 37, 72
values = np.full((rows, columns), 51.25, dtype=">f4")
header = struct.pack(">4d2i", -90.0, -180.0, 5.0, 5.0, rows, columns)
(folder / "egm96_15.gtx").write_bytes(header + values.tobytes())
datadir.append_data_dir(str(folder))
from xsoilsm.sources.sentinel1.geocode import geoid_grid
from xsoilsm.sources.sentinel1.heights import HeightSource, height_source
source = height_source((), "EGM96")
assert source.geoid == "grid", source
assert "PROJ grid" in source.record
assert source.offset(None) == 0
heights = source.heights(np.array([3.3, 4.0]), np.array([45.4, 45.0]), 0.0)
assert np.allclose(heights, 51.25), heights
"""


def test_an_installed_geoid_grid_is_used(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITH_GRID, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


# -- incidence angle -----------------------------------------------------------------------------


def test_angles_from_geometry_equal_the_annotation(root: ET.Element, image: RadarImage) -> None:
    points = image.grid
    angle = Orbit.parse(root).incidence(points.lon, points.lat, points.height)
    np.testing.assert_allclose(angle, points.incidence, rtol=0, atol=1e-6)


def test_the_triangle_of_the_angle() -> None:
    # Straight down, and along the horizon.
    assert float(incidence_angle(np.array(7e6), np.array(0.6e6), np.array(6.4e6))) == 0
    horizon = np.sqrt(7.0e6**2 - 6.4e6**2)
    assert float(incidence_angle(np.array(7e6), horizon, np.array(6.4e6))) == pytest.approx(90)


def test_angles_from_the_surface_of_a_track(
    root: ET.Element,
    image: RadarImage,
    targets: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path))
    assert not read_track(59, "ascending").surfaces
    surfaces = track_surfaces(root)
    assert [surface.segment for surface in surfaces] == [48, 49, 50]
    files = write_track(59, "ascending", surfaces)
    assert [file.name for file in files] == ["048.json", "049.json", "050.json"]
    assert not list(files[0].parent.glob(".*"))  # nothing half-written is left
    track = read_track(59, "ascending")
    assert track.surfaces == tuple(surfaces)
    points = image.grid
    # Wanted are 0.05 degrees.
    with_height = track(points.lon, points.lat, points.height)
    np.testing.assert_allclose(with_height, points.incidence, rtol=0, atol=0.005)
    without = track(points.lon, points.lat)
    np.testing.assert_allclose(without, points.incidence, rtol=0, atol=0.05)
    assert np.std(without - points.incidence) < 0.015
    # Between the points, by range-Doppler.
    lon, lat, height, _, _, angle = targets
    np.testing.assert_allclose(track(lon, lat, height), angle, rtol=0, atol=0.01)
    assert np.isnan(track(3.3, 40.0))
    assert not read_track(59, "descending").surfaces
    files[0].write_text("{}")
    files[1].write_text(files[1].read_text()[:100])
    assert read_track(59, "ascending").surfaces == (surfaces[2],)


def test_a_track_is_read_once(
    annotation: Path, image: RadarImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shapely

    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    points = image.grid
    footprint = shapely.MultiPoint(np.stack([points.lon, points.lat], axis=1)).convex_hull.wkb
    region = (3.2, 45.3, 3.4, 45.5)
    with pytest.raises(OSError, match=r"relative orbit 59 .* is not known yet"):
        track_incidence(59, "ascending", region, footprint)
    copy = tmp_path / "iw-vv.xml"
    copy.write_bytes(annotation.read_bytes())
    made = track_incidence(59, "ascending", region, footprint, [(str(copy), Access())])
    copy.unlink()
    again = track_incidence(59, "ascending", region, footprint, [(str(copy), Access())])
    assert again.surfaces == made.surfaces
    # What lies beside the footprint is not asked for; what lies on it beyond the track is.
    wide = (-2.0, 45.3, 3.4, 45.5)
    assert track_incidence(59, "ascending", wide, footprint).surfaces == made.surfaces
    with pytest.raises(OSError, match="not known yet"):
        track_incidence(59, "ascending", wide, shapely.box(-2, 45, 4, 46).wkb)


def test_an_orbit_that_is_cut_short_is_refused(annotation: Path) -> None:
    root = ET.parse(annotation).getroot()
    (states,) = root.iter("orbitList")
    for state in list(states)[1:]:
        states.remove(state)
    with pytest.raises(OSError, match="1 state vectors"):
        Orbit.parse(root)
