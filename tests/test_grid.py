import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from synthetic import resolutions

from xsoilsm import ease2_geobox, grid

fractions = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("res", "shape"),
    [
        ("9km", (1624, 3856)),
        ("1km", (14616, 34704)),
        ("500m", (29232, 69408)),
        ("100m", (146160, 347040)),
    ],
)
def test_global_grids_have_the_standard_shapes_and_span_the_globe(res, shape):
    cells = grid.get_grid(res)
    assert cells.shape == shape
    whole = ease2_geobox((-180, -grid.LATITUDE_LIMIT, 180, grid.LATITUDE_LIMIT), res)
    assert whole.shape == shape
    # The grid is symmetric about the equator and Greenwich to the precision of its constants.
    assert float(cells.left(shape[1])) == pytest.approx(-grid.X_WEST, abs=1e-3)
    assert float(cells.top(shape[0])) == pytest.approx(-grid.Y_NORTH, abs=1e-3)


@given(resolutions, fractions, fractions)
def test_index_and_centre_are_inverse(res, v, u):
    cells = grid.get_grid(res)
    row, column = int(v * cells.shape[0]), int(u * cells.shape[1])
    assert cells.index(*cells.centre(row, column)) == (row, column)


@given(resolutions, fractions, fractions)
def test_every_fine_cell_lies_in_exactly_one_9km_cell(res, v, u):
    cells, coarse = grid.get_grid(res), grid.get_grid("9km")
    row, column = int(v * cells.shape[0]), int(u * cells.shape[1])
    parent_row, parent_column = row // cells.factor, column // cells.factor
    for x, y in (cells.centre(row + 0.49 * a, column + 0.49 * b) for a in (-1, 1) for b in (-1, 1)):
        assert coarse.index(x, y) == (parent_row, parent_column)
    assert float(coarse.left(parent_column)) == pytest.approx(
        float(cells.left(parent_column * cells.factor)), abs=1e-6
    )


@given(st.floats(-179.9, 179.9), st.floats(-84.9, 84.9), resolutions)
def test_cells_agree_with_pyproj(lon, lat, res):
    cells = grid.get_grid(res)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform(lon, lat)
    row, column = cells.index(*grid.lonlat_to_xy(lon, lat))
    assert float(cells.left(column)) <= x + 1e-6
    assert x - 1e-6 <= float(cells.left(column + 1))
    assert float(cells.top(row + 1)) - 1e-6 <= y <= float(cells.top(row)) + 1e-6
    back = grid.xy_to_lonlat(x, y)
    assert back[0] == pytest.approx(lon, abs=1e-7)  # PROJ inverts the latitude by a series
    assert back[1] == pytest.approx(lat, abs=1e-7)  # PROJ inverts the latitude by a series


@given(
    st.floats(-170, 160), st.floats(-80, 75), st.floats(1e-6, 2), st.floats(1e-6, 2), resolutions
)
def test_geobox_is_the_smallest_block_that_covers_the_box(west, south, width, height, res):
    bbox = (west, south, west + width, south + height)
    geobox = ease2_geobox(bbox, res)
    cells, rows, columns = grid.grid_of(geobox)
    assert cells.name == res
    (x0, x1), (y0, y1) = grid.lonlat_to_xy([bbox[0], bbox[2]], [bbox[1], bbox[3]])
    slack = 2e-6 * cells.cell
    assert float(cells.left(columns[0])) <= x0 + slack < float(cells.left(columns[0] + 1)) + slack
    assert float(cells.left(columns[1] - 1)) - slack <= x1 <= float(cells.left(columns[1])) + slack
    assert float(cells.top(rows[0])) >= y1 - slack > float(cells.top(rows[0] + 1)) - slack
    assert float(cells.top(rows[1] - 1)) + slack >= y0 >= float(cells.top(rows[1])) - slack


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        ((170, 10, -170, 20), "antimeridian"),
        ((0, 60, 10, 86), "85.04"),
        ((0, -86, 10, 0), "85.04"),
        ((5, 10, 5, 20), "empty"),
        ((5, 20, 6, 20), "empty"),
        ((5, 30, 6, 20), "empty"),
        ((0, 0, float("nan"), 1), "finite"),
        ((0, 0, 190, 1), "-180 to 180"),
        ((0, 0, 1), "four numbers"),
        ("here", "four numbers"),
    ],
)
def test_bad_boxes_get_a_clear_error(bbox, words):
    with pytest.raises(ValueError, match=words):
        ease2_geobox(bbox, "1km")


def test_unknown_resolution_lists_the_known_ones():
    with pytest.raises(ValueError, match="9km, 1km, 500m, 100m"):
        ease2_geobox((0, 0, 1, 1), "2km")


def test_box_on_cell_edges_gets_no_extra_cells():
    cells = grid.get_grid("1km")
    geobox = cells.geobox((3000, 3010), (20000, 20007))
    left, bottom, right, top = geobox.boundingbox
    (west, east), (south, north) = grid.xy_to_lonlat([left, right], [bottom, top])
    assert ease2_geobox((west, south, east, north), "1km") == geobox


@pytest.mark.parametrize("res", list(grid.GRIDS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (5, 6)])
def test_grid_of_reads_back_what_geobox_wrote(res, shape):
    cells = grid.get_grid(res)
    rows, columns = (700, 700 + shape[0]), (1900, 1900 + shape[1])
    assert grid.grid_of(cells.geobox(rows, columns)) == (cells, rows, columns)
    x, _ = cells.centre(0, np.arange(*columns))
    _, y = cells.centre(np.arange(*rows), 0)
    if max(shape) > 1:
        found, row, column = grid.cells_of(x, y)
        assert found == cells
        assert row.tolist() == list(range(*rows))
        assert column.tolist() == list(range(*columns))


def test_cells_off_the_grid_are_refused():
    cells = grid.get_grid("1km")
    geobox = cells.geobox((10, 20), (10, 20))
    with pytest.raises(ValueError, match="not on an EASE-Grid"):
        grid.grid_of(geobox.translate_pix(0.3, 0))
    with pytest.raises(ValueError, match="expected EPSG:6933"):
        grid.grid_of(GeoBox((4, 4), geobox.affine, "EPSG:3857"))
    x, y = cells.centre(np.arange(10), np.arange(10))
    with pytest.raises(ValueError, match="not cell centres"):
        grid.cells_of(x + 100, y)
    with pytest.raises(ValueError, match="y descending"):
        grid.cells_of(x, y[::-1])


@pytest.mark.parametrize("rows", [(-1, 4), (4, 4), (0, 1625)])
def test_blocks_outside_the_grid_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        grid.get_grid("9km").geobox(rows, (0, 5))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(0, 500))
def test_tiles_cut_a_region_without_gap_or_overlap(height, width, size, start):
    cells = grid.get_grid("500m")
    region = cells.geobox((start, start + height), (2 * start, 2 * start + width))
    seen = np.zeros((height, width), int)
    names = set()
    for tile in grid.tiles(region, size):
        _, rows, columns = grid.grid_of(tile.geobox)
        seen[
            rows[0] - start : rows[1] - start, columns[0] - 2 * start : columns[1] - 2 * start
        ] += 1
        assert rows[0] // size == (rows[1] - 1) // size == tile.row
        assert columns[0] // size == (columns[1] - 1) // size == tile.column
        names.add(tile.name)
    assert (seen == 1).all()
    assert len(names) == len(list(grid.tiles(region, size)))
