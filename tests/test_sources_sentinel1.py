from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import xarray as xr
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from pyproj import Transformer
from sources_world import BBOX, NODATA, ORIGIN, UTM, World, cell_polygons, incidence

from xsoilsm.catalog import CatalogError, Segment, open_catalog
from xsoilsm.cube import SourceFlag
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.access.search import cell_lonlat
from xsoilsm.sources.sentinel1 import rtc
from xsoilsm.sources.sentinel1.acquisitions import Acquisition, Excluded, find_acquisitions
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface, annotation_href, read_incidence

GEOBOX = ease2_geobox(BBOX, "1km")
FINE = ease2_geobox((5.0, 43.49, 5.008, 43.497), "100m")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def find(world: World, **changes: Any) -> tuple[list[Acquisition], list[Excluded]]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    source = catalog.sources["radar"][0].model_copy(update=changes)
    catalog = catalog.model_copy(update={"sources": {**catalog.sources, "radar": (source,)}})
    segment = Segment(source=source, start=date(2015, 1, 1), end=date(2022, 1, 1))
    return find_acquisitions(catalog, segment, BBOX)


def read(acquisition: Acquisition, geobox: Any = GEOBOX, on_error: str = "raise") -> dict[str, Any]:
    # Over a graph the records travel pickled.
    stack = rtc.read_acquisition(pickle.loads(pickle.dumps(acquisition)), geobox, on_error)
    assert stack.shape == (5, 1, *geobox.shape)
    assert stack.dtype == np.float32
    return dict(zip(rtc.BANDS, stack[:, 0], strict=True))


def exact_mean(values: Any, geobox: Any) -> Any:
    """Area means of a whole scene by an independent library."""
    rows, columns = values.shape
    west, north = ORIGIN
    source = NumPyRasterSource(
        values.astype(np.float64),
        xmin=west,
        ymin=north - 10 * rows,
        xmax=west + 10 * columns,
        ymax=north,
        nodata=np.nan,
    )
    found = exact_extract(source, cell_polygons(geobox), ["mean"])
    means = [np.nan if f["properties"]["mean"] is None else f["properties"]["mean"] for f in found]
    return np.array(means, dtype=np.float64).reshape(geobox.shape)


def pixel_angles(shape: tuple[int, int]) -> Any:
    to_lonlat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    x = ORIGIN[0] + 10 * (np.arange(shape[1]) + 0.5)
    y = ORIGIN[1] - 10 * (np.arange(shape[0]) + 0.5)
    return incidence(*to_lonlat.transform(*np.meshgrid(x, y)))


@pytest.mark.parametrize(("geobox", "bound"), [(GEOBOX, 2e-4), (FINE, 2e-3)])
def test_cells_hold_the_mean_of_decibels(world: World, geobox: Any, bound: float) -> None:
    kept: list[Any] = []
    world.radar("2020-06-03T17:40:00", 33000, edit=lambda vv, vh: kept.extend([vv, vh]))
    (acquisition,), _ = find(world)
    result = read(acquisition, geobox)
    cosine = np.cos(np.deg2rad(pixel_angles(kept[0].shape)))
    whole = result["coverage"] > 0.999
    assert whole.sum() >= 6
    for name, power in (("sigma0_vv", kept[0]), ("sigma0_vh", kept[1])):
        sigma0 = power.astype(np.float64) * cosine
        expected = exact_mean(10 * np.log10(sigma0), geobox)
        np.testing.assert_allclose(result[name][whole], expected[whole], rtol=0, atol=bound)
        # What an average of power would give instead is wrong by this much.
        power_first = 10 * np.log10(exact_mean(sigma0, geobox))
        bias = (power_first - expected)[whole]
        assert (bias > 0.25).all()
        assert 0.5 < bias.mean() < 1.6


def test_heterogeneous_cells_are_biased_more(world: World) -> None:
    kept: list[Any] = []

    def fields(vv: Any, vh: Any) -> None:
        vv[:, ::60] *= 30  # bright objects
        vh[:, ::60] *= 30
        kept.append(vv)

    world.radar("2020-06-03T17:40:00", 33000, edit=fields)
    (acquisition,), _ = find(world)
    result = read(acquisition)
    cosine = np.cos(np.deg2rad(pixel_angles(kept[0].shape)))
    power_first = 10 * np.log10(exact_mean(kept[0] * cosine, GEOBOX))
    bias = power_first - result["sigma0_vv"]
    assert 1.0 < bias[result["coverage"] > 0.999].mean() < 2.5


def test_sigma0_is_gamma0_times_the_cosine(world: World) -> None:
    def constant(vv: Any, vh: Any) -> None:
        vv[:], vh[:] = 0.1, 0.02

    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    (acquisition,), _ = find(world)
    assert acquisition.sigma0_from == "rtc-flat"
    result = read(acquisition)
    lon, lat = np.meshgrid(*cell_lonlat(GEOBOX))
    loss = 10 * np.log10(np.cos(np.deg2rad(incidence(lon, lat))))
    seen = result["coverage"] > 0.999
    np.testing.assert_allclose(result["sigma0_vv"][seen], (-10 + loss)[seen], atol=2e-3)
    np.testing.assert_allclose(
        result["sigma0_vv"][seen] - result["sigma0_vh"][seen], 10 * np.log10(5), atol=1e-4
    )


def test_incidence_angle_of_cells(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    (acquisition,), _ = find(world)
    lon, lat = np.meshgrid(*cell_lonlat(FINE))
    angle = read(acquisition, FINE)["incidence_angle"]
    np.testing.assert_allclose(angle, incidence(lon, lat), rtol=0, atol=2e-3)


def test_slices_of_a_pass_make_one_acquisition(world: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    scene = rng.gamma(4.4, 0.02, (2, 500, 600)).astype(np.float32)

    def part(first: int, last: int) -> Any:
        def edit(vv: Any, vh: Any) -> None:
            vv[:], vh[:] = scene[0, first:last], scene[1, first:last]

        return edit

    world.radar("2020-06-03T17:40:00", 33000, rows=(0, 217), edit=part(0, 217))
    world.radar("2020-06-03T17:40:24", 33000, rows=(217, 500), part=2, edit=part(217, 500))
    (merged,), _ = find(world)
    assert len(merged.slices) == 2
    assert merged.time == np.datetime64("2020-06-03T17:40:12", "ns")
    alone = World(tmp_path / "alone")
    alone.radar("2020-06-03T17:40:00", 33000, edit=part(0, 500))
    (single,), _ = find(alone)
    one, two = read(single), read(merged)
    for name in ("sigma0_vv", "sigma0_vh", "coverage"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(two["source_flags"], one["source_flags"])


def test_a_zero_never_wins(world: World) -> None:
    def fringe(vv: Any, vh: Any) -> None:
        vv[:40] = 0
        vh[:40] = 0

    world.radar("2020-06-03T17:40:00", 33000, rows=(0, 260), seed=1)
    world.radar("2020-06-03T17:40:25", 33000, rows=(220, 500), part=2, seed=2, edit=fringe)
    (with_zeros,), _ = find(world)
    result = read(with_zeros)
    # Where only zeros overlap the first slice, its pixels alone count: no step, no hole.
    assert np.isfinite(result["sigma0_vv"]).all()
    assert (result["coverage"][:2] > 0.999).all()
    assert not result["source_flags"][:2].any()
    world.radar("2020-06-09T17:40:00", 33090, rows=(0, 260), seed=1)
    passes, _ = find(world)
    again = read(passes[1])
    top = again["coverage"] > 0.999
    assert top.any()
    # The seed of a slice holds its orbit, so compare levels, not pixels.
    np.testing.assert_allclose(result["sigma0_vv"][top], again["sigma0_vv"][top], atol=0.1)


def test_negative_and_single_band_nodata_do_not_count(world: World) -> None:
    def holes(vv: Any, vh: Any) -> None:
        vv[::2] = -1e-3
        vh[1::2, ::2] = NODATA

    kept: list[Any] = []
    world.radar(
        "2020-06-03T17:40:00",
        33000,
        edit=lambda vv, vh: (kept.extend([vv, vh]), holes(vv, vh)),
    )
    (acquisition,), _ = find(world)
    result = read(acquisition)
    seen = result["coverage"]
    # VV and VH of a cell come from the same pixels: the quarter in which both are valid.
    assert 0.24 < seen.max() < 0.26
    cosine = np.cos(np.deg2rad(pixel_angles(kept[0].shape)))
    both = (kept[0] > 0) & (kept[1] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        decibels = np.where(both, 10 * np.log10(kept[0] * cosine), np.nan)
    inside = seen > 0.2
    np.testing.assert_allclose(
        result["sigma0_vv"][inside], exact_mean(decibels, GEOBOX)[inside], atol=1e-3
    )


def test_a_scene_of_zeros_is_told_from_no_scene(world: World) -> None:
    def nothing(vv: Any, vh: Any) -> None:
        vv[:], vh[:] = 0, 0

    world.radar("2020-06-03T17:40:00", 33000, rows=(0, 200), edit=nothing)
    (acquisition,), _ = find(world)
    result = read(acquisition)
    assert np.isnan(result["sigma0_vv"]).all()
    assert (result["coverage"] == 0).all()
    flags = result["source_flags"].astype(int)
    assert (flags[0] & SourceFlag.ZERO_FILLED > 0).all()
    assert (flags[-1] == SourceFlag.NO_SCENE).all()


def test_passes_are_never_mixed(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, level=0.2)
    world.radar("2020-06-03T05:40:00", 33000, state="descending", relative=139, part=2, level=0.02)
    world.radar(
        "2020-06-03T17:41:00", 33000, platform="SENTINEL-1B", relative=59, part=3, level=0.002
    )
    found, _ = find(world)
    assert [a.orbit_state for a in found] == ["descending", "ascending", "ascending"]
    assert [a.relative_orbit for a in found] == [139, 59, 59]
    assert [a.platform for a in found] == ["SENTINEL-1A", "SENTINEL-1A", "SENTINEL-1B"]
    levels = [float(np.nanmean(read(a)["sigma0_vv"])) for a in found]
    np.testing.assert_allclose(np.diff(levels), [10, -20], atol=0.3)


def test_some_items_are_left_out_with_a_reason(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, **{"sar:polarizations": ["VV"]})
    world.radar("2016-10-12T17:40:00", 2500, platform="SENTINEL-1B")
    world.radar("2016-10-14T17:40:00", 2530, platform="SENTINEL-1B")
    rules = open_catalog("planetary-computer").sources["radar"][0].exclude
    found, excluded = find(world, exclude=rules)
    assert [a.absolute_orbit for a in found] == [2530]
    reasons = {x.id: x.reason for x in excluded}
    assert "not VV and VH" in reasons["S1_033000_1_rtc"]
    assert "displaced" in reasons["S1_002500_1_rtc"]


def test_real_items_are_one_pass(shared: Path, tmp_path: Path) -> None:
    import json

    world = World(tmp_path)
    for item in json.loads((shared / "data" / "stac" / "sentinel-1-rtc-pc.json").read_text()):
        link = next(x for x in item["links"] if x["rel"] == "derived_from")
        name = link["href"].rsplit("/", 1)[-1]
        world.items.setdefault("sentinel-1-rtc", []).append({**item, "links": [link]})
        asset = {"vv": {"href": f"https://host/{name}/measurement/iw-vv.tiff"}}
        world.add("sentinel-1-grd", name, (13, 29, 18, 36), item["properties"], asset)
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["radar"]
    segment = Segment(source=source, start=date(2024, 4, 1), end=date(2024, 4, 30))
    (found,), _ = find_acquisitions(catalog, segment, (15.0, 30.5, 16.0, 33.0))
    assert len(found.slices) == 3  # the fourth does not touch the region
    assert (found.relative_orbit, found.orbit_state) == (51, "descending")
    assert found.time.astype("datetime64[m]") == np.datetime64("2024-04-19T04:58")
    assert found.slices[0].annotation.endswith("/annotation/iw-vv.xml")
    assert len(pickle.dumps(found)) < 6000


@pytest.mark.parametrize("how", ["no item", "other pass", "no measurement"])
def test_without_an_annotation_the_item_is_named(world: World, how: str) -> None:
    original = world.radar("2020-06-03T17:40:00", 33000)
    item = world.items["sentinel-1-rtc"][0]
    if how == "no item":
        world.items["sentinel-1-grd"] = []
    elif how == "other pass":
        item["links"] = []
        original["properties"]["sat:orbit_state"] = "descending"
    else:
        del original["assets"]["vv"]
    with pytest.raises(
        CatalogError, match=r"'S1_033000_1_rtc' has no matching item in 'sentinel-1-"
    ):
        find(world)


def test_without_a_link_the_annotation_is_that_of_the_same_time(world: World) -> None:
    for part, second in enumerate(("00", "25", "50"), start=1):
        world.radar(f"2020-06-03T17:40:{second}", 33000, part=part)
    for item in world.items["sentinel-1-rtc"]:
        item["links"] = []
        del item["properties"]["sat:absolute_orbit"]
    (found,), _ = find(world)
    for piece in found.slices:
        assert f"/{piece.id.removesuffix('_rtc')}/grd/annotation/" in piece.annotation


def test_annotations_may_lie_at_another_service(world: World, tmp_path: Path) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    other = World(tmp_path / "other")
    other.items["sentinel-1-grd"] = world.items.pop("sentinel-1-grd")
    world.items["sentinel-1-rtc"][0]["links"] = []
    other.write()
    world.write()
    catalog = open_catalog(world.catalog_file())
    here = catalog.services["landscape"]
    there = here.model_copy(
        update={"href": str(other.folder / "catalog.json"), "rewrite": {"/old": "/new"}}
    )
    source = catalog.sources["radar"][0].model_copy(update={"grd_service": "elsewhere"})
    catalog = catalog.model_copy(update={"services": {"landscape": here, "elsewhere": there}})
    segment = Segment(source=source, start=date(2015, 1, 1), end=date(2022, 1, 1))
    (found,), _ = find_acquisitions(catalog, segment, BBOX)
    assert found.slices[0].annotation.endswith("/annotation/iw-vv.xml")
    assert found.slices[0].annotation_access.rewrite == (("/old", "/new"),)
    assert found.slices[0].vv.access.rewrite == ()


def test_without_any_orbit_slices_cannot_be_merged(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    stated = world.items["sentinel-1-rtc"][0]["properties"]
    del stated["sat:absolute_orbit"], stated["sat:relative_orbit"]
    with pytest.raises(CatalogError, match=r"'S1_033000_1_rtc' has no sat:absolute_orbit"):
        find(world)


def test_without_absolute_orbits_minutes_tell_passes_apart(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    world.radar("2020-06-03T17:40:25", 33000, part=2)
    world.radar("2020-06-15T17:40:00", 33175)
    world.radar("2020-06-15T05:40:00", 33168, state="descending")
    for item in world.items["sentinel-1-rtc"]:
        del item["properties"]["sat:absolute_orbit"]
    found, _ = find(world)
    assert [len(a.slices) for a in found] == [2, 1, 1]
    assert [a.orbit_state for a in found] == ["ascending", "descending", "ascending"]
    assert {a.absolute_orbit for a in found} == {0}


@pytest.mark.parametrize("fault", ["missing", "half", "annotation"])
def test_a_failed_read_is_flagged_and_other_cells_go_on(world: World, fault: str) -> None:
    world.radar("2020-06-03T17:40:00", 33000, rows=(0, 250))
    world.radar("2020-06-03T17:40:25", 33000, rows=(250, 500), part=2)
    (acquisition,), _ = find(world)
    before = read(acquisition)
    broken = acquisition.slices[1]
    if fault == "missing":
        Path(broken.vh.href).unlink()
    elif fault == "half":
        content = Path(broken.vh.href).read_bytes()
        Path(broken.vh.href).write_bytes(content[: len(content) // 2])
    else:
        Path(broken.annotation).write_text("<product/>")
        read_incidence.cache_clear()
    with pytest.raises(OSError, match=r"S1_033000_2|annotation"):
        read(acquisition)
    result = read(acquisition, on_error="flag")
    flags = result["source_flags"].astype(int)
    failed = (flags & SourceFlag.READ_FAILED) > 0
    assert failed.any()
    assert not failed[0].any()
    assert np.isnan(result["sigma0_vv"][failed]).all()
    assert (result["coverage"][failed] == 0).all()
    for name in ("sigma0_vv", "incidence_angle", "coverage"):
        np.testing.assert_array_equal(result[name][~failed], before[name][~failed])


def test_bands_of_an_item_must_share_their_grid(world: World) -> None:
    from affine import Affine
    from sources_world import write_tiff

    world.radar("2020-06-03T17:40:00", 33000)
    (acquisition,), _ = find(world)
    data = np.ones((10, 10), np.float32)
    write_tiff(Path(acquisition.slices[0].vh.href), data, Affine(10, 0, 0, 0, -10, 0), UTM)
    with pytest.raises(OSError, match=r"grids of .* differ"):
        read(acquisition)


def test_the_annotation_follows_from_the_measurement() -> None:
    href = "https://host/GRD/S1A_X/measurement/iw-vv.tiff"
    assert annotation_href(href) == "https://host/GRD/S1A_X/annotation/iw-vv.xml"
    with pytest.raises(ValueError, match=r"cannot tell where the annotation"):
        annotation_href("https://host/GRD/S1A_X/iw-vv.tiff")


def real_annotation(shared: Path) -> Path:
    (file,) = (shared / "data" / "s1_annotation").glob("*.SAFE/annotation/s1a-iw-grd-vv*.xml")
    return file


def grid_points(file: Path) -> list[Any]:
    points = list(ET.parse(file).getroot().iterfind(".//geolocationGridPoint"))
    return [
        np.array([float(str(p.findtext(name))) for p in points])
        for name in ("longitude", "latitude", "incidenceAngle")
    ]


def test_angle_of_the_real_annotation(shared: Path) -> None:
    file = real_annotation(shared)
    lon, lat, angle = grid_points(file)
    surface = read_incidence(str(file), Access())
    error = surface(lon, lat) - angle
    assert np.abs(error).max() < 0.03
    # Points that are left out of the fit, one after the other, inside and at the rim.
    for k in range(0, angle.size, 7):
        kept = np.arange(angle.size) != k
        fitted = IncidenceSurface.fit(lon[kept], lat[kept], angle[kept])
        assert abs(float(fitted(lon[k], lat[k])) - angle[k]) < 0.05


def test_angles_on_a_grid_are_those_at_its_points() -> None:
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(178, 182, 60), rng.uniform(60, 62, 60)
    surface = IncidenceSurface.fit(lon, lat, 35 + np.sin(lon) + np.cos(lat) * (lon - 180))
    west, north = np.array([178.5, 179.9, -179.2]), np.array([61.5, 60.2])
    wanted = surface(*np.meshgrid(west, north))
    np.testing.assert_allclose(surface.on_grid(west, north), wanted, rtol=0, atol=1e-9)


def test_angles_across_the_antimeridian() -> None:
    lon, lat = (a.ravel() for a in np.meshgrid(np.linspace(178, 182, 9), np.linspace(60, 62, 5)))
    angle = 35 + 2 * (lon - 180) + 0.1 * (lat - 61) ** 2
    surface = IncidenceSurface.fit((lon + 180) % 360 - 180, lat, angle)
    np.testing.assert_allclose(surface(-179.5, 61.0), 36.0, atol=1e-9)
    np.testing.assert_allclose(surface(179.5, 61.0), 34.0, atol=1e-9)


def test_reading_depends_little_on_chunks(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    (acquisition,), _ = find(world)
    whole = read(acquisition, FINE)
    parts = [read(acquisition, FINE[rows]) for rows in (np.s_[:3, :], np.s_[3:, :])]
    for name in ("sigma0_vv", "sigma0_vh", "incidence_angle"):
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=3e-7, atol=0)


def test_flags_fit_the_schema() -> None:
    bits = [value for name, value in vars(SourceFlag).items() if name.isupper()]
    assert len(set(bits)) == len(bits)
    assert max(bits) < 128  # the last bit is used on the way
    assert xr.DataArray(np.float32(31)).astype(np.uint8) == 31
