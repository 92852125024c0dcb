"""Shares of land cover: exact areas, editions, and their way into the cube."""

from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from sources_world import BBOX, World, cell_polygons

from xsoilsm.catalog import CatalogError, Segment, open_catalog
from xsoilsm.checks import check_cube
from xsoilsm.grid import ease2_geobox
from xsoilsm.loading import load_cube
from xsoilsm.sources.ground import landcover

GEOBOX = ease2_geobox(BBOX, "1km")
CLASSES = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100], np.uint8)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def find(world: World) -> tuple[landcover.CoverTile, ...]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["landcover"]
    segment = Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
    return pickle.loads(pickle.dumps(tuple(landcover.find_landcover(catalog, segment, BBOX))))


def read(world: World, geobox: Any = GEOBOX, on_error: str = "raise") -> dict[str, Any]:
    bands = landcover.read_landcover(find(world), geobox, on_error)
    assert bands.dtype == np.float32
    return dict(zip(landcover.BANDS, bands, strict=True))


@pytest.mark.parametrize("res", ["1km", "100m"])
def test_shares_are_areas(world: World, res: str) -> None:
    kept: list[Any] = []

    def patches(shape: tuple[int, int]) -> Any:
        rng = np.random.default_rng(1)
        coarse = rng.choice(CLASSES, (shape[0] // 7 + 1, shape[1] // 7 + 1))
        kept.append(coarse.repeat(7, axis=0).repeat(7, axis=1)[: shape[0], : shape[1]])
        kept[0][:, : shape[1] // 2][::9] = 0  # no class
        return kept[0]

    bounds = 4.97, 43.47, 5.04, 43.53
    world.cover(patches, bounds)
    geobox = ease2_geobox(BBOX, res)
    geobox = geobox[: min(12, geobox.shape[0]), : min(12, geobox.shape[1])]
    result = read(world, geobox)
    polygons = cell_polygons(geobox, "EPSG:4326")
    west, south, east, north = bounds
    for name, value in zip(landcover.BANDS, (80, 50, 10, 70), strict=True):
        indicator = np.where(kept[0] == 0, np.nan, kept[0] == value).astype(float)
        raster = NumPyRasterSource(
            indicator, xmin=west, ymin=south, xmax=east, ymax=north, nodata=np.nan
        )
        found = exact_extract(raster, polygons, ["mean"])
        expected = [f["properties"]["mean"] for f in found]
        expected = np.array([np.nan if v is None else v for v in expected], float)
        np.testing.assert_allclose(
            result[name], expected.reshape(geobox.shape), atol=2e-5 if res == "1km" else 2e-4
        )
        assert result[name].max() > 0


def test_tiles_meet_and_the_latest_edition_counts(world: World) -> None:
    full = {value: (lambda shape, v=value: np.full(shape, v)) for value in (10, 50, 80)}
    world.cover(full[10], (4.9, 43.4, 5.0051, 43.6), year=2021)
    world.cover(full[50], (4.9, 43.4, 5.0051, 43.6), year=2020)
    world.cover(full[80], (5.0051, 43.4, 5.1, 43.6), year=2020)
    assert len(find(world)) == 2
    result = read(world)
    total = result["tree_fraction"] + result["water_fraction"]
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert (result["built_fraction"] == 0).all()
    assert ((result["tree_fraction"] > 0.01) & (result["tree_fraction"] < 0.99)).any()


def test_without_any_class_there_is_no_share(world: World) -> None:
    world.cover(np.zeros)
    for values in read(world).values():
        assert np.isnan(values).all()


def test_unreadable_tiles_leave_no_share_of_a_part(world: World) -> None:
    world.cover(lambda shape: np.full(shape, 10))
    (file,) = (world.folder / "data").glob("cover_*.tif")
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(OSError, match="cover_2021"):
        read(world)
    for values in read(world, on_error="flag").values():
        assert np.isnan(values).all()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("filled"))
    made.fill()
    made.radar("2020-06-09T05:40:00", 33080, state="descending")
    return made


def test_a_cube_has_shares_where_the_catalog_names_a_source(filled: World, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.items = dict(filled.items)
    world.write()
    bare = load_cube(BBOX, "2020-06-09", "1km", world.catalog_file())
    assert not set(landcover.BANDS) & set(bare)
    world.cover(lambda shape: np.full(shape, 80))
    world.write()
    cube = load_cube(BBOX, "2020-06-09", "1km", world.catalog_file()).compute()
    check_cube(cube)
    np.testing.assert_allclose(cube.water_fraction, 1, atol=1e-6)
    assert cube.water_fraction.attrs["standard_name"] == "water_area_fraction"
    assert cube.tree_fraction.attrs["items"] == "cover_2021_0"
    assert "esa-worldcover" in cube.attrs["licence"]
    world.items["esa-worldcover"] = []
    world.write()
    assert "water_fraction" not in load_cube(BBOX, "2020-06-09", "1km", world.catalog_file())


def test_facts_of_land_cover(world: World) -> None:
    world.cover(np.zeros)
    world.write()
    (source,) = open_catalog("planetary-computer").sources["landcover"]
    assert (source.water, source.built, source.tree, source.snow_ice) == (
        (80,),
        (50,),
        (10,),
        (70,),
    )
    catalog = open_catalog(world.catalog_file())
    segment = Segment(
        source=catalog.sources["soil"][0], start=date(2020, 1, 1), end=date(2020, 1, 1)
    )
    with pytest.raises(CatalogError, match="not land cover"):
        landcover.find_landcover(catalog, segment, BBOX)


def test_the_virtual_landscape_serves_its_own_land_cover(tmp_path: Path) -> None:
    """Three degrees meet at 6 W 42 N: the map comes in four tiles."""
    import pystac

    from xsoilsm.simulate.ground import write_cover
    from xsoilsm.simulate.items import Catalogue
    from xsoilsm.simulate.land import Place, make_land
    from xsoilsm.sources.access.search import cell_lonlat

    place = Place((-6.0, 42.0), 2.0, 0)
    catalogue = Catalogue(tmp_path)
    write_cover(catalogue, place, make_land(place, *place.axes))
    root = catalogue.finish("test", {})
    collection = pystac.Catalog.from_file(str(root)).get_child("esa-worldcover")
    assert collection is not None
    items = sorted(collection.get_items(), key=lambda item: item.id)
    corners = ("N39W006", "N39W009", "N42W006", "N42W009")
    assert [item.id for item in items] == [f"ESA_WorldCover_10m_2021_v200_{c}" for c in corners]
    for item in items:
        assert item.assets["map"].extra_fields["raster:bands"][0]["nodata"] == 0
        assert item.properties["esa_worldcover:product_tile"] in item.id
    catalog = open_catalog(Path(__file__).parents[1] / "catalogs" / "demo.yaml", endpoints={
        "landscape": str(root)})  # fmt: skip
    geobox = ease2_geobox((-6.008, 41.995, -5.992, 42.005), "100m")
    (source,) = catalog.sources["landcover"]
    segment = Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
    tiles = tuple(landcover.find_landcover(catalog, segment, (-6.01, 41.99, -5.99, 42.01)))
    assert len(tiles) == 4
    shares = dict(
        zip(landcover.BANDS, landcover.read_landcover(tiles, geobox, "raise"), strict=True)
    )
    lon, lat = cell_lonlat(geobox)
    land = make_land(place, lat, lon)
    for name, value in (("tree_fraction", 10), ("built_fraction", 50), ("water_fraction", 80)):
        # Pixels of 28 m do not follow the edges of 100 m cells.
        np.testing.assert_allclose(shares[name].mean(), (land.cover == value).mean(), atol=0.02)
        assert (np.abs(shares[name] - (land.cover == value)) < 0.4).mean() > 0.98
    np.testing.assert_allclose(shares["snow_ice_fraction"], 0)
