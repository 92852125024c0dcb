"""Regions of jobs: their many forms, the tiles and cells that they reach, and bad ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mapping_scene
import numpy as np
import pytest
import rasterio
import shapely
from mapping_scene import begin, degrees_of, files_of

from xsoilsm import grid
from xsoilsm.mapping import Job, run_job
from xsoilsm.mapping.plan import Plan
from xsoilsm.mapping.region import cells_of, cropped, is_box, read_region, region_text
from xsoilsm.quality import QualityFlag

pytestmark = pytest.mark.usefixtures("scene")
AROUND = (-5.43, 41.285, -5.37, 41.315)
TRIANGLE = {
    "type": "Polygon",
    "coordinates": [[[-5.43, 41.285], [-5.37, 41.285], [-5.43, 41.315], [-5.43, 41.285]]],
}


def _regions(folder: Path) -> list[Any]:
    import geopandas

    shape = shapely.geometry.shape(TRIANGLE)
    table = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[shape], crs="EPSG:4326")
    feature = {"type": "Feature", "properties": {}, "geometry": TRIANGLE}
    collection = {"type": "FeatureCollection", "features": [feature]}
    (folder / "a.geojson").write_text(json.dumps(collection))
    table.to_crs("EPSG:3035").to_file(folder / "a.gpkg")
    table.to_parquet(folder / "a.parquet")
    table.to_crs("EPSG:32630").to_file(folder / "a.fgb")
    names = ("a.geojson", "a.gpkg", "a.parquet", "a.fgb")
    return [shape, TRIANGLE, feature, collection, *(folder / name for name in names)]


def test_regions_come_in_many_forms(tmp_path: Path) -> None:
    expected = shapely.geometry.shape(TRIANGLE)
    for region in _regions(tmp_path):
        assert shapely.hausdorff_distance(read_region(region), expected) < 1e-6, region
    assert region_text(read_region(TRIANGLE)) == region_text(read_region(expected.reverse()))


def test_only_tiles_that_touch_the_region_are_mapped(tmp_path: Path) -> None:
    square, triangle = (
        Plan(begin(tmp_path / name, region=region, tile_size=2)).tiles
        for name, region in (("a", AROUND), ("b", TRIANGLE))
    )
    assert set(triangle) < set(square)
    box = {t: shapely.box(*degrees_of(square[t])) for t in square}
    shape = shapely.geometry.shape(TRIANGLE)
    assert set(triangle) == {name for name in square if shape.intersects(box[name])}


def test_cells_beyond_the_polygon_are_left_out(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    from xsoilsm.mapping.explain import explain

    whole, _ = undisturbed
    west, south, east, north = mapping_scene.BBOX
    corner = shapely.Polygon([(west, south), (east, south), (west, north)])
    job = begin(tmp_path / "corner", region=corner)
    assert run_job(job, workers=2).is_complete
    outside, values = 0, 0
    for name, tile in Plan(job).tiles.items():
        x, y = (tile.geobox.coords[axis].values for axis in ("x", "y"))
        for product in Plan(job).products:
            got = {}
            for variable in ("soil_moisture", "soil_moisture_std", "quality_flag"):
                with rasterio.open(job.tiles / product.id / name / f"{variable}.tif") as file:
                    got[variable] = file.read(1)
            with rasterio.open(whole.tiles / product.id / name / "soil_moisture.tif") as file:
                rows, _ = zip(*(file.index(x[0], at) for at in y), strict=True)
                column = file.index(x[0], y[0])[1]
                expected = file.read(1)[np.ix_(rows, range(column, column + x.size))]
            for i, j in np.ndindex(len(y), len(x)):
                cell = grid.get_grid("1km").cell / 2
                box = grid.xy_to_lonlat([x[j] - cell, x[j] + cell], [y[i] - cell, y[i] + cell])
                inside = corner.intersects(shapely.box(box[0][0], box[1][0], box[0][1], box[1][1]))
                outside += not inside
                if inside:
                    np.testing.assert_allclose(
                        got["soil_moisture"][i, j], expected[i, j], rtol=1e-5, atol=1e-6
                    )
                    values += np.isfinite(expected[i, j])
                else:
                    assert np.isnan(got["soil_moisture"][i, j])
                    assert np.isnan(got["soil_moisture_std"][i, j])
                    assert got["quality_flag"][i, j] == QualityFlag.NO_SCENE
    assert outside
    assert values
    (found,) = explain(job, east - 0.001, north - 0.001, job.acquisitions[0].time[:10])
    assert found.reason == "outside"
    again = begin(tmp_path / "again", region=corner)
    assert run_job(again, workers=1).is_complete
    assert files_of(again.folder) == files_of(job.folder)


def test_all_cells_of_a_box_are_its_own() -> None:
    region = shapely.box(*mapping_scene.BBOX)
    cells = grid.ease2_geobox(mapping_scene.BBOX, "1km")
    assert cells_of(region, cells).all()
    assert cropped(region, cells) == cells
    assert is_box(region)
    half = shapely.Polygon(list(region.exterior.coords)[:3])
    assert not is_box(half)
    assert 0 < cells_of(half, cells).sum() < cells.shape[0] * cells.shape[1]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"type": "Point", "coordinates": [0, 0]}, "holds no polygon"),
        ({"type": "Nonsense"}, "no GeoJSON with an area"),
        ({**TRIANGLE, "crs": {"properties": {"name": "EPSG:3857"}}}, "reproject it"),
        (shapely.box(41, -5, 400, 6), "longitude first"),
        ((1.0, 2.0, 1.0, 3.0), "is empty"),
        ((170.0, 10.0, -170.0, 20.0), "antimeridian"),
        (17, "cannot tell a region from int"),
    ],
)
def test_bad_regions_are_explained(region: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_region(region)


def test_bad_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which should hold the region"):
        read_region(tmp_path / "absent.geojson")
    (tmp_path / "a.geojson").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_region(tmp_path / "a.geojson")
    (tmp_path / "a.gpkg").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a region"):
        read_region(tmp_path / "a.gpkg")


def test_a_region_on_both_sides_of_the_antimeridian_has_tiles_there_only(
    undisturbed: tuple[Job, dict[str, bytes]],
) -> None:
    job, _ = undisturbed
    parts = shapely.union_all(
        [shapely.box(179.9, -17, 180, -16.9), shapely.box(-180, -17, -179.9, -16.9)]
    )
    around = replace(job.configuration, region=region_text(parts), tile_size=64)
    tiles = Plan(replace(job, configuration=around)).tiles.values()
    assert {tile.column for tile in tiles} == {0, 34704 // 64}
