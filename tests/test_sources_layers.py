"""Layers that are kept on disk: found again, never half, never too many."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import serve
from sources_world import BBOX, World

from xsoilsm.catalog import Segment, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.loading import static_arrays
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.ground import layers, terrain
from xsoilsm.sources.ground.layers import clear_layers, layers_dir, read_layers
from xsoilsm.sources.pixels.reading import Raster
from xsoilsm.sources.request import make_request

GEOBOX = ease2_geobox(BBOX, "1km")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(layers._written, "bytes", float("inf"))
    return tmp_path / "cache" / "layers"


@dataclass(frozen=True)
class Record:
    """A record as the sources make them."""

    id: str
    raster: Raster


def record(name: str = "a", href: str = "https://host/a.tif") -> Record:
    return Record(name, Raster(href, Access()))


class Counted:
    """Reader that counts its calls and may fail."""

    calls = 0
    fails = False

    @classmethod
    def read(cls, records: tuple[Record, ...], target: Any, on_error: str) -> Any:
        cls.calls += 1
        if cls.fails:
            if on_error == "raise":
                msg = "cannot read"
                raise OSError(msg)
            return np.full((2, *target.shape), np.nan, np.float32)
        number = float(sum(map(ord, records[0].id)))
        return np.full((2, *target.shape), number, np.float32)


@pytest.fixture
def reader() -> type[Counted]:
    Counted.calls, Counted.fails = 0, False
    return Counted


def test_what_was_read_is_found_again(reader: type[Counted], folder: Path) -> None:
    first = read_layers(reader.read, (record(),), GEOBOX)
    again = read_layers(reader.read, (record(),), GEOBOX)
    np.testing.assert_array_equal(first, again)
    assert reader.calls == 1
    (file,) = folder.glob("*/*")
    assert file.suffix == ".npy"
    assert layers_dir() == folder


@pytest.mark.parametrize(
    "other",
    [
        (record("b"), GEOBOX),
        (record(href="https://host/b.tif"), GEOBOX),
        (record(), GEOBOX[:1]),
        (record(), ease2_geobox(BBOX, "500m")),
    ],
)
def test_anything_else_is_read_anew(reader: type[Counted], other: Any) -> None:
    read_layers(reader.read, (record(),), GEOBOX)
    read_layers(reader.read, (other[0],), other[1])
    assert reader.calls == 2


def test_another_version_of_the_readers_is_read_anew(
    reader: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_layers(reader.read, (record(),), GEOBOX)
    monkeypatch.setattr(layers, "VERSION", layers.VERSION + 1)
    read_layers(reader.read, (record(),), GEOBOX)
    assert reader.calls == 2


@pytest.mark.parametrize("href", ["/data/a.tif", "file:///data/a.tif"])
def test_files_on_this_machine_are_not_kept(reader: type[Counted], folder: Path, href: str) -> None:
    for _ in range(2):
        read_layers(reader.read, (record(href=href),), GEOBOX)
    assert reader.calls == 2
    assert not folder.exists()


def test_it_can_be_turned_off(reader: type[Counted], folder: Path) -> None:
    for _ in range(2):
        read_layers(reader.read, (record(),), GEOBOX, cache=False)
    assert reader.calls == 2
    assert not folder.exists()


def test_what_could_not_be_read_is_not_kept(reader: type[Counted], folder: Path) -> None:
    reader.fails = True
    with pytest.raises(OSError, match="cannot read"):
        read_layers(reader.read, (record(),), GEOBOX, "raise")
    assert np.isnan(read_layers(reader.read, (record(),), GEOBOX, "flag")).all()
    assert not list(folder.glob("*/*"))
    reader.fails = False
    assert np.isfinite(read_layers(reader.read, (record(),), GEOBOX, "flag")).all()
    assert len(list(folder.glob("*/*"))) == 1


@pytest.mark.parametrize("damage", ["empty", "half", "other", "pickle"])
def test_damaged_files_are_read_anew(reader: type[Counted], folder: Path, damage: str) -> None:
    whole = read_layers(reader.read, (record(),), GEOBOX)
    (file,) = folder.glob("*/*")
    content = file.read_bytes()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        np.save(file, np.zeros((2, 1, 1), np.float32))
    else:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(read_layers(reader.read, (record(),), GEOBOX), whole)
    assert reader.calls == 2
    assert file.read_bytes() == content  # mended


def test_the_least_used_go_beyond_the_limit(
    reader: type[Counted], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 128 + 8 * GEOBOX.shape[0] * GEOBOX.shape[1]
    monkeypatch.setenv(layers.LIMIT_VARIABLE, str(10.5 * size / 1e6))
    for k in range(30):
        read_layers(reader.read, (record(f"r{k}"),), GEOBOX)
        for age, file in enumerate(sorted(folder.glob("*/*"), key=lambda f: f.stat().st_mtime_ns)):
            os.utime(file, (1e9 + age, 1e9 + age))
        read_layers(reader.read, (record("r0"),), GEOBOX)  # used all the time
        assert sum(f.stat().st_size for f in folder.glob("*/*")) <= 11.5 * size
    assert reader.calls == 30
    read_layers(reader.read, (record("r29"),), GEOBOX)
    assert reader.calls == 30
    read_layers(reader.read, (record("r3"),), GEOBOX)
    assert reader.calls == 31


def test_clearing_tells_what_was_freed(reader: type[Counted], folder: Path) -> None:
    assert clear_layers() == 0
    read_layers(reader.read, (record(),), GEOBOX)
    (file,) = folder.glob("*/*")
    size = file.stat().st_size
    assert clear_layers() == size
    assert not folder.exists()
    read_layers(reader.read, (record(),), GEOBOX)
    assert reader.calls == 2


def test_a_folder_that_cannot_be_written_is_no_error(
    reader: type[Counted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "file"))
    for _ in range(2):
        assert np.isfinite(read_layers(reader.read, (record(),), GEOBOX)).all()
    assert reader.calls == 2


def test_an_interrupt_leaves_no_file(
    reader: type[Counted], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layers.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            read_layers(reader.read, (record(),), GEOBOX)
    assert not list(folder.glob("*/*"))


def _hammer(cache: str, number: int) -> bool:
    os.environ["XSOILSM_CACHE_DIR"] = cache
    os.environ[layers.LIMIT_VARIABLE] = "0.002"  # tidies all the time
    good = True
    for k in range(150):
        name = f"r{(k * (number + 1)) % 7}"
        values = read_layers(Counted.read, (record(name),), GEOBOX)
        good &= bool((values == sum(map(ord, name))).all())
    return good


def test_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        assert all(pool.starmap(_hammer, [(str(tmp_path / "shared"), n) for n in range(2)]))
    assert not list((tmp_path / "shared").glob("layers/*/*.partial"))


def test_a_cube_reads_its_terrain_once_over_the_network(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.dem(lambda lon, lat: 300 + 80 * np.sin(lon * 900) * np.cos(lat * 1100))
    with serve(world.folder) as server:
        (item,) = world.items["nasadem"]
        asset = item["assets"]["elevation"]
        name = Path(asset["href"]).relative_to(world.folder)
        asset["href"] = f"{server.url}/files/{name}"
        world.write()
        catalog = open_catalog(world.catalog_file())
        segment = Segment(
            source=catalog.sources["terrain"][0], start=date(1990, 1, 1), end=date(2100, 1, 1)
        )
        tiles = tuple(terrain.find_dem(catalog, segment, BBOX))
        first = read_layers(terrain.read_terrain, tiles, GEOBOX)
        asked = len(server.asked)
        assert asked > 0
        again = read_layers(terrain.read_terrain, tiles, GEOBOX)
        assert len(server.asked) == asked
        np.testing.assert_array_equal(first, again)


def test_the_parameter_reaches_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xsoilsm.sources.ground import static

    world = World(tmp_path / "world")
    world.soil()
    world.write()
    seen: list[bool] = []

    def noted(*args: Any, cache: bool) -> Any:
        seen.append(cache)
        return read_layers(*args, cache=cache)

    monkeypatch.setattr(static, "read_layers", noted)
    catalog = open_catalog(world.catalog_file())
    for cache in (True, False):
        request = make_request(GEOBOX, "2020-06-09", catalog, cache=cache)
        group = static.find_static(catalog, "soil", request.bounds)
        assert group is not None
        static_arrays(request, {"soil": group})["sand"].compute()
    assert seen == [True, False]
