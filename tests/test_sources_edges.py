"""What is kept of a file between windows never changes what is read, and is not read again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin
from rasterio.windows import Window, intersect

from xsoilsm.sources.access.kept import Kept
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.pixels import edges
from xsoilsm.sources.pixels.reading import NativeReader, Patch, Raster

SHAPE = (300, 420)


def write(path: Path, seed: int = 0, shape: tuple[int, int] = SHAPE, **profile: Any) -> Path:
    values = np.random.default_rng(seed).integers(0, 1000, shape, dtype=np.uint16)
    layout = {"tiled": True, "blockxsize": 80, "blockysize": 64, "compress": "deflate"} | profile
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=shape[0],
        width=shape[1],
        count=1,
        dtype="uint16",
        crs="EPSG:32630",
        transform=from_origin(300000, 4580000, 10, 10),
        **layout,
    ) as file:
        file.write(values, 1)
    return path


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    edges.forget()


class Watched:
    """A file that notes the windows that are read of it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.windows: list[Window] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, band: int, *, window: Window, **options: Any) -> Any:
        self.windows.append(window)
        return self._file.read(band, window=window, **options)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with rasterio.open(write(tmp_path / "a.tif")) as file:
        yield Watched(file)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    (top, bottom), (left, right) = (
        sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        for n in SHAPE
    )
    return Window(left, top, right - left, bottom - top)


@given(
    places=st.lists(windows(), min_size=1, max_size=8),
    block=st.sampled_from([(64, 80), (64, 64), (128, 256), (304, 432)]),
    limit=st.sampled_from([1, 40_000, 10_000_000]),
)
def test_any_windows_are_read_as_they_are(
    tmp_path_factory: pytest.TempPathFactory,
    places: list[Window],
    block: tuple[int, int],
    limit: int,
) -> None:
    path = tmp_path_factory.mktemp("edges") / "a.tif"
    write(path, blockysize=block[0], blockxsize=block[1])
    edges.forget()
    before, edges._kept.limit = edges._kept.limit, limit
    try:
        with rasterio.open(path) as file:
            known = edges.identity(str(path), str(path))
            for window in places:
                np.testing.assert_array_equal(
                    edges.read_window(file, known, window), file.read(1, window=window)
                )
    finally:
        edges._kept.limit = before


@pytest.mark.parametrize("apart", [0, -60, 20])
def test_what_two_windows_share_is_read_once(watched: Watched, apart: int) -> None:
    """Windows beside each other, askew as those of chunks are, and apart within a block."""
    first = Window(0, 0, 200, 300)
    second = Window(200 + apart, 0, 220 - apart, 300)
    edges.read_window(watched, "a", first)
    del watched.windows[:]
    values = edges.read_window(watched, "a", second)
    np.testing.assert_array_equal(values, watched._file.read(1, window=second))
    shared = Window(80, 0, 160, 300)  # the blocks in which the first ends, and those before
    assert watched.windows
    assert not any(intersect(window, shared) for window in watched.windows)


def test_what_is_inside_of_kept_blocks_is_not_read_at_all(watched: Watched) -> None:
    edges.read_window(watched, "a", Window(10, 10, 20, 20))
    assert [(w.width, w.height) for w in watched.windows] == [(20, 20), (80, 64)]
    del watched.windows[:]
    values = edges.read_window(watched, "a", Window(5, 0, 75, 64))
    assert not watched.windows
    np.testing.assert_array_equal(values, watched._file.read(1)[:64, 5:80])
    edges.forget()
    edges.read_window(watched, "a", Window(5, 0, 75, 64))
    assert watched.windows


@pytest.mark.parametrize(
    "layout", [{"compress": None}, {"tiled": False, "blockysize": 1, "blockxsize": SHAPE[1]}]
)
def test_what_costs_nothing_to_read_again_is_not_kept(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    with rasterio.open(write(tmp_path / "a.tif", **layout)) as file:
        edges.read_window(file, "a", Window(10, 10, 20, 20))
    assert not edges._kept._values


@pytest.mark.parametrize("how", ["rewritten", "moved"])
def test_a_file_that_was_replaced_is_another(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.tif"
    raster = Raster(str(path), Access())
    found = []
    for seed in (1, 2):
        if how == "moved" and seed == 2:
            write(tmp_path / "b.tif", seed).replace(path)
        else:
            write(path, seed)
        with NativeReader([raster]) as reader:
            box: GeoBox = reader.geobox[10:30, 10:30]
            (values,) = reader.read(Patch(10, 10, box))
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(values, file.read(1)[10:30, 10:30])
        found.append(values)
    assert (found[0] != found[1]).any()


def test_a_signature_does_not_make_another_file(tmp_path: Path) -> None:
    one, two, other = (
        edges.identity(f"https://a.b/{name}.tif", f"https://mirror/{name}.tif{signature}")
        for name, signature in (("x", "?sig=1"), ("x", "?sig=2"), ("y", "?sig=2"))
    )
    assert one == two != other
    assert edges.identity("x.tif", str(tmp_path / "none.tif")) is None


def test_threads_read_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    with rasterio.open(path) as file:
        whole = file.read(1)

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        known = edges.identity(str(path), str(path))
        with rasterio.open(path, sharing=False) as file:
            for _ in range(40):
                top, left = (int(rng.integers(0, n - 100)) for n in SHAPE)
                window = Window(left, top, 100, 100)
                values = edges.read_window(file, known, window)
                if not np.array_equal(values, whole[top : top + 100, left : left + 100]):
                    return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(8)))


def test_the_least_recently_used_goes_first() -> None:
    kept = Kept(100)
    for name in "abc":
        kept.put(name, name.upper(), 40)  # the third takes the place of the first
    assert [kept.get(name) for name in "abc"] == [None, "B", "C"]
    assert kept.get("b") == "B"
    kept.put("d", "D", 40)
    assert [kept.get(name) for name in "bcd"] == ["B", None, "D"]
    kept.put("b", "more", 60)  # counts once
    assert [kept.get(name) for name in "bd"] == ["more", "D"]
    kept.put("e", "large", 1000)
    assert [kept.get(name) for name in "bde"] == [None, None, "large"]
    kept.put("f", "F", 10)
    assert kept.get("f") == "F"
    kept.clear()
    assert kept.get("f") is None
