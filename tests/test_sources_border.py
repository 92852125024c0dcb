"""Borders of old passes: what is taken away, and what is not."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from sources_world import BBOX, ORIGIN, UTM, World

from xsoilsm.catalog import Segment, open_catalog
from xsoilsm.cube import SourceFlag
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.sentinel1 import border, rtc
from xsoilsm.sources.sentinel1.acquisitions import find_acquisitions
from xsoilsm.sources.sentinel1.border import HOLE, erosion

WHOLE = ease2_geobox(
    World._utm_bounds(ORIGIN[0], ORIGIN[1] - 5000, ORIGIN[0] + 6000, ORIGIN[1]), "500m"
)
"""Cells that hold all of a scene."""


# --- which pixels -------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    top=st.integers(0, 40),
    left=st.integers(0, 40),
    height=st.integers(12, 60),
    width=st.integers(12, 60),
    pixels=st.integers(0, 12),
)
def test_a_frame_is_taken_away(top: int, left: int, height: int, width: int, pixels: int) -> None:
    """A rectangle of data in an empty array loses a frame of that width on every side."""
    valid = np.zeros((110, 110), dtype=bool)
    valid[top : top + height, left : left + width] = True
    kept = valid & ~erosion(valid, pixels)
    expected = np.zeros_like(valid)
    expected[top + pixels : top + height - pixels, left + pixels : left + width - pixels] = True
    np.testing.assert_array_equal(kept, expected)


@given(size=st.integers(1, 2 * HOLE), row=st.integers(30, 60), column=st.integers(30, 60))
def test_holes_are_no_border(size: int, row: int, column: int) -> None:
    valid = np.ones((100, 100), dtype=bool)
    valid[row : row + size, column : column + size] = False
    kept = valid & ~erosion(valid, 8)
    expected = valid.copy()
    expected[:8] = expected[-8:] = expected[:, :8] = expected[:, -8:] = False
    np.testing.assert_array_equal(kept, expected)


def test_a_slanted_border_is_followed() -> None:
    row, column = np.mgrid[0:200, 0:200]
    valid = column > 40 + 0.2 * row
    kept = valid & ~erosion(valid, 20)
    inner = slice(30, 170)
    first_valid, first_kept = valid.argmax(axis=1)[inner], kept.argmax(axis=1)[inner]
    lost = first_kept - first_valid
    assert (lost >= 20).all()
    assert (lost <= 26).all()  # rows count too: a square, not a disc


# --- in an acquisition --------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def read(world: World, geobox: Any = WHOLE, **changes: Any) -> tuple[Any, dict[str, Any]]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    facts = {"border_pixels": 40, "border_before": date(2018, 1, 1)} | changes
    source = catalog.sources["radar"][0].model_copy(update=facts)
    catalog = catalog.model_copy(update={"sources": {**catalog.sources, "radar": (source,)}})
    segment = Segment(source=source, start=date(2015, 1, 1), end=date(2022, 1, 1))
    (acquisition,), _ = find_acquisitions(catalog, segment, BBOX)
    stack = rtc.read_acquisition(acquisition, geobox, "raise")
    return acquisition, dict(zip(rtc.BANDS, stack[:, 0], strict=True))


def with_fringe(vv: Any, vh: Any) -> None:
    """Backscatter of -10 dB inside zeros and a fringe of -45 dB, in the west."""
    for band, level in ((vv, 0.1), (vh, 0.02)):
        band[:] = level
        band[:, :50] = 3e-5
        band[:, :20] = 0


def test_a_fringe_of_noise_before_2018_never_wins(world: World) -> None:
    world.radar("2016-06-03T17:40:00", 12000, edit=with_fringe)
    acquisition, result = read(world)
    assert acquisition.border_pixels == 40
    seen = result["coverage"] > 0
    level = result["sigma0_vv"][seen] - 10 * np.log10(np.cos(np.deg2rad(38)))
    assert np.abs(level + 10).max() < 0.3
    # The west loses 20 pixels of zeros and 40 more; the other sides, which are cut, 40 each.
    area = result["coverage"].sum() * 500.4475**2
    assert area == pytest.approx((600 - 60 - 40) * (500 - 80) * 100, rel=0.01)
    _, raw = read(world, border_pixels=0)
    assert raw["sigma0_vv"][raw["coverage"] > 0].min() < -25


def test_later_passes_keep_their_border(world: World) -> None:
    world.radar("2018-06-03T17:40:00", 22000, edit=with_fringe)
    acquisition, result = read(world)
    assert acquisition.border_pixels == 0
    area = result["coverage"].sum() * 500.4475**2
    assert area == pytest.approx((600 - 20) * 500 * 100, rel=0.01)


def test_cells_of_border_alone_say_so(world: World) -> None:
    world.radar("2016-06-03T17:40:00", 12000, edit=with_fringe)
    _, result = read(world, border_pixels=150)
    _, raw = read(world, border_pixels=0)
    flags = result["source_flags"].astype(int)
    only = (result["coverage"] == 0) & (raw["coverage"] > 0)
    assert only.any()
    assert ((flags[only] & SourceFlag.BORDER) > 0).all()
    assert not (flags[only] & SourceFlag.NO_SCENE).any()
    assert np.isnan(result["sigma0_vv"][only]).all()


def outline(item: dict[str, Any], rows: tuple[int, int]) -> None:
    """Give an item the outline of its data instead of the box around it."""
    to_lonlat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    x = ORIGIN[0] + 6000.0 * np.array([0, 1, 1, 0, 0])
    y = ORIGIN[1] - 10.0 * np.array([rows[0], rows[0], rows[1], rows[1], rows[0]])
    ring = np.stack(to_lonlat.transform(x, y), axis=1).tolist()
    item["geometry"] = {"type": "Polygon", "coordinates": [ring]}


@pytest.mark.parametrize("overlap", [0, 8])
def test_there_is_no_border_between_slices(
    world: World, overlap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scene is small: a tolerance for real footprints would make all of it border.
    monkeypatch.setattr(border, "TOLERANCE", 150.0)
    for part, rows in enumerate(((0, 250 + overlap), (250 - overlap, 500)), start=1):
        world.radar("2016-06-03T17:40:00", 12000, rows=rows, part=part)
        outline(world.items["sentinel-1-rtc"][-1], rows)
    acquisition, result = read(world)
    assert len(acquisition.slices) == 2
    middle = WHOLE.shape[0] // 2
    inner = np.s_[middle - 2 : middle + 3, 5:-5]
    np.testing.assert_allclose(result["coverage"][inner], 1, atol=1e-5)
    assert (result["coverage"][:, 0] < 0.5).all()


def test_a_border_inside_another_slice_loses(world: World) -> None:
    """Where both slices hold a place, noise at the end of one of them does not count."""

    def noisy_end(vv: Any, vh: Any) -> None:
        constant(vv, vh)
        vv[-30:], vh[-30:] = 3e-5, 3e-5

    def constant(vv: Any, vh: Any) -> None:
        vv[:], vh[:] = 0.1, 0.02

    world.radar("2016-06-03T17:40:00", 12000, rows=(0, 400), edit=noisy_end)
    world.radar("2016-06-03T17:40:25", 12000, rows=(100, 500), part=2, edit=constant)
    _, result = read(world)
    inner = np.s_[4:-4, 5:-5]
    level = result["sigma0_vv"][inner] - 10 * np.log10(np.cos(np.deg2rad(38)))
    assert np.abs(level + 10).max() < 0.1


def test_borders_do_not_depend_on_chunks(world: World) -> None:
    world.radar("2016-06-03T17:40:00", 12000, edit=with_fringe)
    _, whole = read(world)
    cut = WHOLE.shape[1] // 2
    parts = [read(world, WHOLE[:, part])[1] for part in (slice(0, cut), slice(cut, None))]
    for name in ("sigma0_vv", "coverage"):
        joined = np.concatenate([part[name] for part in parts], axis=1)
        np.testing.assert_allclose(joined, whole[name], rtol=3e-6, atol=1e-6)
