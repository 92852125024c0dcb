from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
import xarray as xr
from grd_scene import real_files

from xsoilsm import load_cube, open_catalog
from xsoilsm.catalog import Catalog, CatalogError
from xsoilsm.simulate import simulate_landscape
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.sentinel1.annotation import read_look
from xsoilsm.sources.sentinel1.geocode import GeolocationGrid
from xsoilsm.sources.sentinel1.incidence import track_surfaces
from xsoilsm.sources.sentinel1.tracks import Track

REGION = (-5.41, 41.29, -5.39, 41.31)
RADAR = ["sigma0_vv", "sigma0_vh", "incidence_angle", "coverage", "source_flags"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three passes: descending, ascending and, 12 days after the first, descending."""
    folder = tmp_path_factory.mktemp("tracks") / "landscape"
    simulate_landscape(folder, size_km=3, spacing=50)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "incidence"


def catalog_of(folder: Path) -> Catalog:
    return open_catalog("demo", endpoints={"landscape": str(folder / "catalog.json")})


def grd_days(folder: Path) -> list[str]:
    return [str(grd_item(link, folder)["properties"]["datetime"])[:10] for link in links(folder)]


def links(folder: Path) -> list[str]:
    collection = json.loads((folder / "stac/sentinel-1-grd/collection.json").read_text())
    return [link["href"] for link in collection["links"] if link["rel"] == "item"]


def grd_item(link: str, folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "stac/sentinel-1-grd" / link).read_text())
    return content


def without(whole: Path, folder: Path, *days: str) -> Path:
    """Copy a landscape and take the GRD items of some days out of it."""
    shutil.copytree(whole, folder)
    path = folder / "stac/sentinel-1-grd/collection.json"
    collection = json.loads(path.read_text())
    for link in links(folder):
        if str(grd_item(link, folder)["properties"]["datetime"])[:10] in days:
            collection["links"] = [x for x in collection["links"] if x["href"] != link]
            (path.parent / link).unlink()
    path.write_text(json.dumps(collection))
    return folder


def load(folder: Path, time: str) -> xr.Dataset:
    cube = load_cube(REGION, time, catalog=catalog_of(folder))
    return pickle.loads(pickle.dumps(cube))[RADAR].compute()  # as it travels to a worker


def assert_near(got: xr.Dataset, wanted: xr.Dataset) -> None:
    assert np.isfinite(wanted.incidence_angle).any()
    np.testing.assert_allclose(got.incidence_angle, wanted.incidence_angle, rtol=0, atol=0.05)
    for name in ("sigma0_vv", "sigma0_vh"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=0.02)
    for name in ("coverage", "source_flags"):
        np.testing.assert_array_equal(got[name], wanted[name])


def test_another_pass_stands_in_for_a_missing_annotation(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    full = load(whole, "2020-04")
    assert full.incidence_from.values.tolist() == ["annotation"] * 3
    assert not cache.exists()
    poor = without(whole, tmp_path / "poor", "2020-04-05")
    assert len(grd_days(poor)) == len(grd_days(whole)) - 1
    got = load(poor, "2020-04")
    assert got.incidence_from.values.tolist() == ["track", "annotation", "annotation"]
    assert_near(got, full)
    assert list(cache.glob("descending-*/*.json"))
    assert not list(cache.glob("ascending-*"))


def test_passes_before_and_after_the_time_are_asked_for(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    poor = without(whole, tmp_path / "poor", "2020-04-05")
    got = load(poor, "2020-04-05")
    assert got.incidence_from.values.tolist() == ["track"]
    assert_near(got, load(whole, "2020-04-05"))


def test_what_is_kept_of_a_track_serves_without_any_item(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    bare = without(whole, tmp_path / "bare", "2020-04-05", "2020-04-17")
    with pytest.raises(CatalogError, match="no other pass of its track is there within 24 days"):
        load(bare, "2020-04-05")
    load(without(whole, tmp_path / "poor", "2020-04-05"), "2020-04-05")
    # The graph holds what is known here: a worker need not share the folder.
    cube = load_cube(REGION, "2020-04-05", catalog=catalog_of(bare))
    shutil.rmtree(cache)
    assert_near(cube[RADAR].compute(), load(whole, "2020-04-05"))


def test_a_track_that_cannot_be_read_is_a_failed_read(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    poor = without(whole, tmp_path / "poor", "2020-04-05")
    for file in poor.glob("data/s1-grd/**/annotation/iw-vv.xml"):
        file.write_text("<product/>")
    got = load(poor, "2020-04-05")
    assert np.isnan(got.sigma0_vv).all()
    assert ((got.source_flags & 2) > 0).any()
    cube = load_cube(REGION, "2020-04-05", catalog=catalog_of(poor), on_error="raise")
    with pytest.raises(OSError, match="orbit"):
        cube.sigma0_vv.compute()


@pytest.mark.parametrize("kept", [False, True])
def test_angles_of_a_track_against_the_real_annotation(
    shared: Path, cache: Path, *, kept: bool
) -> None:
    file = real_files(shared)["iw-vv.xml"]
    root = ET.parse(file).getroot()
    points = GeolocationGrid.parse(root)
    lon, lat = points.lon, points.lat
    bounds = float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())
    outline = shapely.MultiPoint(np.stack([lon, lat], axis=1)).convex_hull.wkb
    how: dict[str, Any] = {"donors": (str(file),), "access": Access()}
    if kept:
        how = {"surfaces": tuple(track_surfaces(root))}
    track = Track(59, "ascending", bounds, outline, **how)
    np.testing.assert_allclose(track.incidence()(lon, lat), points.incidence, rtol=0, atol=0.05)
    look = read_look(str(file), Access())(lon, lat)
    np.testing.assert_allclose(track.look()(lon, lat), look, rtol=0, atol=0.3)
