from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources_world import BBOX, HOMOLOSINE, World, cell_polygons

from xsoilsm.catalog import CatalogError, Segment, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.ground import soil

GEOBOX = ease2_geobox(BBOX, "1km")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def find(world: World) -> tuple[soil.SoilLayer, ...]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["soil"]
    segment = Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
    return tuple(soil.find_soil(catalog, segment, BBOX))


def read(world: World, on_error: str = "raise") -> dict[str, Any]:
    bands = soil.read_soil(find(world), GEOBOX, on_error)
    return dict(zip(soil.BANDS, bands, strict=True))


def test_units(world: World) -> None:
    world.soil(sand=412, clay=233, density=131)
    result = read(world)
    np.testing.assert_allclose(result["sand"], 41.2, rtol=1e-6)
    np.testing.assert_allclose(result["clay"], 23.3, rtol=1e-6)
    np.testing.assert_allclose(result["bulk_density"], 1.31, rtol=1e-6)


def test_no_data_does_not_count(world: World) -> None:
    sand = np.full((60, 60), 300)
    sand[::2] = -32768
    world.soil(sand=sand, clay=-32768)
    result = read(world)
    np.testing.assert_allclose(result["sand"], 30.0, rtol=1e-6)
    assert np.isnan(result["clay"]).all()


def test_means_on_the_homolosine_grid(world: World) -> None:
    import rasterio
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    rng = np.random.default_rng(4)
    stored = rng.integers(100, 700, (60, 60))
    world.soil(sand=stored)
    result = read(world)
    with rasterio.open(world.folder / "data" / "sand_0-5cm_mean.tif") as file:
        west, south, east, north = file.bounds
    raster = NumPyRasterSource(stored * 0.1, xmin=west, ymin=south, xmax=east, ymax=north)
    found = exact_extract(raster, cell_polygons(GEOBOX, HOMOLOSINE), ["mean"])
    expected = np.array([f["properties"]["mean"] for f in found]).reshape(GEOBOX.shape)
    np.testing.assert_allclose(result["sand"], expected, rtol=2e-5)


def test_layers_may_lie_in_items_of_their_own(world: World) -> None:
    world.soil()
    (item,) = world.items["soilgrids-2.0"]
    world.items["soilgrids-2.0"] = [
        {**item, "id": f"soil-{k}", "assets": {k: v}} for k, v in item["assets"].items()
    ]
    np.testing.assert_allclose(read(world)["sand"], 41.2, rtol=1e-6)
    assert len({layer.id for layer in find(world)}) == 3
    world.items["soilgrids-2.0"].pop()
    with pytest.raises(CatalogError, match="no asset bdod in the region; found clay, sand"):
        find(world)


def test_an_unreadable_layer_is_empty(world: World) -> None:
    world.soil()
    (world.folder / "data" / "clay_0-5cm_mean.tif").unlink()
    with pytest.raises(OSError, match="clay_0-5cm_mean"):
        read(world)
    result = read(world, on_error="flag")
    assert np.isnan(result["clay"]).all()
    assert np.isfinite(result["sand"]).all()


def test_the_static_catalog_of_soilgrids_is_complete() -> None:
    catalog = open_catalog("planetary-computer")
    (source,) = catalog.sources["soil"]
    segment = Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
    layers = soil.find_soil(catalog, segment, BBOX)
    assert [layer.variable for layer in layers] == list(soil.BANDS)
    assert all(layer.raster.href.startswith("https://files.isric.org/") for layer in layers)
