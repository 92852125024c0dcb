"""Cloud-Optimized GeoTIFFs: what is in them, and that no half file ever has the final name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import odc.geo.xr
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from xsoilsm.cog import verify_cog, write_cog, write_cogs
from xsoilsm.grid import get_grid
from xsoilsm.quality import flag_attributes
from xsoilsm.staging import CHECKSUM

SHAPE = (700, 600)  # more than one tile each way, cropped at the edges


def place(shape: tuple[int, int] = SHAPE, res: str = "1km") -> GeoBox:
    return get_grid(res).geobox((3000, 3000 + shape[0]), (17000, 17000 + shape[1]))


def raster(pixels: Any, name: str | None = "soil_moisture", **attrs: Any) -> xr.DataArray:
    """Lay pixels (y, x) on the 1 km grid."""
    coords = odc.geo.xr.xr_coords(place(pixels.shape))
    return xr.DataArray(pixels, coords, ("y", "x"), name, attrs)


def noise(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Soil moisture without order, with a hole and single missing cells."""
    rng = np.random.default_rng(seed)
    pixels = rng.random(shape, dtype=np.float32) * np.float32(0.6)
    pixels[rng.random(shape) < 0.1] = np.nan
    pixels[: shape[0] // 4, : shape[1] // 4] = np.nan
    return pixels


def flags(shape: tuple[int, int] = SHAPE) -> xr.DataArray:
    bits = np.zeros(shape, np.uint32)
    bits[::2, ::2] = 1 << 15
    bits[:, : shape[1] // 2] |= 5
    return raster(bits, "quality_flag", **flag_attributes())


def read(path: Path, level: int | None = None) -> np.ndarray:
    options = {} if level is None else {"overview_level": level}
    with rasterio.open(path, **options) as file:
        return file.read()


# What is in the file


def test_one_band(tmp_path: Path) -> None:
    pixels = noise()
    path = write_cog(raster(pixels, units="m3 m-3", note='a "b" <c> & d'), tmp_path / "a.tif")
    assert path == tmp_path / "a.tif"
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    verify_cog(path)
    np.testing.assert_array_equal(read(path)[0], pixels)
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 6933
        assert file.transform == place().affine
        assert np.isnan(file.nodata)
        assert file.dtypes == ("float32",)
        assert file.descriptions == ("soil_moisture",)
        assert file.units == ("m3 m-3",)
        assert file.tags(1)["note"] == 'a "b" <c> & d'
        assert file.tags()["TIFFTAG_SOFTWARE"].startswith("xsoilsm ")
        assert "TIFFTAG_DATETIME" not in file.tags()
        assert file.block_shapes == [(512, 512)]
        assert file.profile["compress"] == "deflate"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_float_overviews_average_the_valid_pixels(tmp_path: Path) -> None:
    pixels = noise()
    path = write_cog(raster(pixels), tmp_path / "a.tif")
    four = pixels.reshape(SHAPE[0] // 2, 2, SHAPE[1] // 2, 2)
    counts = np.isfinite(four).sum((1, 3))
    with np.errstate(invalid="ignore"):
        expected = np.nansum(four, (1, 3)) / counts
    np.testing.assert_allclose(read(path, 0)[0], expected, rtol=1e-6)


def test_flag_overviews_keep_the_most_frequent(tmp_path: Path) -> None:
    bits = flags()
    path = write_cog(bits, tmp_path / "flags.tif")
    np.testing.assert_array_equal(read(path)[0], bits)
    expected = np.zeros((350, 300), np.uint32)
    expected[:, :150] = 5  # the flag that only every fourth cell has is gone, nothing is mixed
    np.testing.assert_array_equal(read(path, 0)[0], expected)
    with rasterio.open(path) as file:
        assert file.nodata is None
        assert file.dtypes == ("uint32",)
        tags = file.tags(1)
    assert [int(mask) for mask in tags["flag_masks"].split()] == [1 << bit for bit in range(16)]
    assert tags["flag_meanings"].split()[0] == "no_scene"


def test_overviews_on_request(tmp_path: Path) -> None:
    bits = flags()
    path = write_cog(bits, tmp_path / "flags.tif", overviews="nearest")
    np.testing.assert_array_equal(read(path, 0)[0], bits[::2, ::2])


def test_integers_with_a_missing_value(tmp_path: Path) -> None:
    counts = raster(
        np.arange(12, dtype=np.int16).reshape(3, 4), _FillValue=-1, scale_factor=0.1, add_offset=2
    )
    with rasterio.open(write_cog(counts, tmp_path / "a.tif")) as file:
        assert file.nodata == -1
        assert file.scales == (0.1,)
        assert file.offsets == (2,)
        assert "_FillValue" not in file.tags(1)


def test_masks_become_bytes(tmp_path: Path) -> None:
    mask = raster(np.eye(5, dtype=bool))
    np.testing.assert_array_equal(read(write_cog(mask, tmp_path / "a.tif"))[0], np.eye(5))


def test_variables_become_bands_and_attributes_tags(tmp_path: Path) -> None:
    result = xr.Dataset(
        {
            "soil_moisture": raster(noise(), units="m3 m-3"),
            "soil_moisture_std": raster(noise(seed=1), units="m3 m-3", long_name="spread"),
        },
        attrs={"card": "0123abcd", "items": ["a", "b"], "nothing": None, "share": np.float32(0.5)},
    ).assign_coords(time=np.datetime64("2020-05-04T05:31:12.5", "ns"), orbit_state="descending")
    path = write_cog(result, tmp_path / "a.tif")
    both = np.stack([result["soil_moisture"], result["soil_moisture_std"]])
    np.testing.assert_array_equal(read(path), both)
    with rasterio.open(path) as file:
        assert file.descriptions == ("soil_moisture", "soil_moisture_std")
        assert file.units == ("m3 m-3", "m3 m-3")
        assert file.tags(2)["long_name"] == "spread"
        tags = file.tags()
    assert tags["card"] == "0123abcd"
    assert tags["items"] == '["a", "b"]'
    assert tags["share"] == "0.5"
    assert tags["time"] == "2020-05-04T05:31:12"
    assert tags["orbit_state"] == "descending"
    assert not {"nothing", "spatial_ref"} & set(tags)


def test_layers_become_bands(tmp_path: Path) -> None:
    times = np.array(["2020-05-04T05:31", "2020-05-10T17:02"], "datetime64[ns]")
    layers = xr.concat(
        [raster(noise(seed=n)) for n in (0, 1)], dim=xr.DataArray(times, dims="time")
    )
    path = write_cog(layers, tmp_path / "times.tif")
    np.testing.assert_array_equal(read(path), layers)
    with rasterio.open(path) as file:
        assert file.descriptions == (
            "soil_moisture 2020-05-04T05:31:00",
            "soil_moisture 2020-05-10T17:02:00",
        )
    named = layers.drop_vars("time").rename(time="pol").assign_coords(pol=["vv", "vh"])
    with rasterio.open(write_cog(named.transpose("y", "x", "pol"), tmp_path / "p.tif")) as file:
        assert file.descriptions == ("vv", "vh")
    with rasterio.open(write_cog(named.drop_vars("pol"), tmp_path / "n.tif")) as file:
        assert file.descriptions == ("soil_moisture 1", "soil_moisture 2")


# Where it lies


def test_rows_from_the_south_are_turned_round(tmp_path: Path) -> None:
    pixels = noise()
    path = write_cog(raster(pixels)[::-1], tmp_path / "a.tif")
    np.testing.assert_array_equal(read(path)[0], pixels)
    with rasterio.open(path) as file:
        assert file.transform == place().affine


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 7)])
def test_grid_cells_need_no_crs(tmp_path: Path, shape: tuple[int, int]) -> None:
    bare = raster(np.zeros(shape, np.float32)).drop_vars("spatial_ref")
    bare = bare.assign_coords(x=bare["x"].values + 1e-4)  # rounding does not reach the file
    with rasterio.open(write_cog(bare, tmp_path / "a.tif")) as file:
        # A single cell belongs to the coarsest grid that has a centre there.
        size = 1000 if shape != (1, 1) else file.transform.a - 1
        assert file.transform.a > size
        assert file.crs.to_epsg() == 6933
        if shape != (1, 1):
            assert file.transform == place(shape).affine


@pytest.mark.parametrize("flipped", [False, True])
def test_other_projections(tmp_path: Path, flipped: bool) -> None:
    box = GeoBox((30, 20), rasterio.Affine(10, 0, 300000, 0, -10, 4500000), "EPSG:32633")
    data = xr.DataArray(
        np.arange(600, dtype=np.float32).reshape(30, 20), odc.geo.xr.xr_coords(box), ("y", "x")
    )
    path = write_cog(data[::-1] if flipped else data, tmp_path / "a.tif")
    np.testing.assert_array_equal(read(path)[0], data)
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32633
        assert file.transform == box.affine


# What is refused


def bad(change: Callable[[xr.DataArray], Any]) -> Any:
    return change(raster(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda a: a.values, TypeError, "ndarray; expected an xarray"),
        (lambda a: a.to_dataset().drop_vars("soil_moisture"), ValueError, "no variable with the"),
        (lambda a: a.rename(y="latitude"), ValueError, "no variable with the dims y and x"),
        (lambda a: a.astype(complex), TypeError, "cannot hold complex128"),
        (lambda a: a.astype("float16"), TypeError, "cannot hold float16"),
        (lambda a: a.astype("datetime64[ns]"), TypeError, "cannot hold datetime64"),
        (lambda a: a[:0], ValueError, "nothing to write"),
        (lambda a: a.expand_dims(time=2, band=2), ValueError, "select one time"),
        (
            lambda a: xr.Dataset({"a": a.expand_dims(time=2), "b": a}),
            ValueError,
            r"isel\(time=0\)",
        ),
        (
            lambda a: xr.Dataset({"a": a, "flag": a.astype("uint32")}),
            ValueError,
            "found a float32, flag uint32; write one file per type",
        ),
        (lambda a: a.expand_dims(band=["v", "v"]), ValueError, "holds a value twice"),
        (lambda a: a.drop_vars(["x", "y", "spatial_ref"]), ValueError, "place .* is unknown"),
        (
            lambda a: a.drop_vars("spatial_ref").assign_coords(x=range(4), y=range(4)),
            ValueError,
            "no CRS.*assign_crs",
        ),
    ],
)
def test_data_that_make_no_file(
    tmp_path: Path, change: Callable[[xr.DataArray], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        write_cog(bad(change), tmp_path / "new" / "a.tif")
    assert not any(tmp_path.iterdir())


def test_an_existing_file_stays_unless_told_otherwise(tmp_path: Path) -> None:
    path = write_cog(raster(noise()), tmp_path / "deep" / "folder" / "a.tif")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists; choose another name or pass overwrite"):
        write_cog(raster(noise(seed=1)), path)
    assert path.read_bytes() == before
    statistics = path.with_name("a.tif.aux.xml")
    statistics.write_text("<PAMDataset/>")  # of the older file, as viewers leave it
    write_cog(raster(noise(seed=1)), path, overwrite=True)
    np.testing.assert_array_equal(read(path)[0], noise(seed=1))
    assert [p.name for p in path.parent.iterdir()] == ["a.tif"]


def test_names_that_are_taken_by_other_things(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_cog(raster(noise()), tmp_path, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write"):
        write_cog(raster(noise()), tmp_path / "file" / "a.tif")


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"

    def rival(block: np.ndarray) -> np.ndarray:
        path.write_text("somebody else's")
        return block

    pixels = da.ones((4, 4), dtype="float32").map_blocks(rival, meta=np.empty((0, 0), "float32"))
    with pytest.raises(FileExistsError):
        write_cog(raster(pixels), path)
    assert path.read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [path]


# Lazy data


def test_lazy_bands_share_one_computation(tmp_path: Path) -> None:
    calls: list[int] = []

    def slow(block: np.ndarray) -> np.ndarray:
        calls.append(1)
        return block

    source = da.from_array(noise(), chunks=(256, 200)).map_blocks(
        slow, meta=np.empty((0, 0), "float32")
    )
    both = xr.Dataset({"mean": raster(source * 2), "spread": raster(source + 1)})
    both["eager"] = raster(noise(seed=1))
    assert not calls
    path = write_cog(both, tmp_path / "a.tif")
    assert len(calls) == source.npartitions
    np.testing.assert_array_equal(read(path), both.to_array())


def test_several_files_share_one_computation(tmp_path: Path) -> None:
    calls: list[int] = []

    def slow(block: np.ndarray) -> np.ndarray:
        calls.append(1)
        return block

    source = da.from_array(noise(), chunks=(350, 300)).map_blocks(
        slow, meta=np.empty((0, 0), "float32")
    )
    moisture = raster(source, units="m3 m-3", card="0123abcd").assign_coords(orbit=52)
    missing = raster(da.isnan(source).astype("uint32"), "quality_flag", **flag_attributes())
    files = {
        tmp_path / "a" / "moisture.tif": moisture,
        tmp_path / "b" / "flag.tif": missing,
        tmp_path / "b" / "eager.tif": raster(noise(seed=1)),
    }
    assert write_cogs(files) == list(files)
    assert len(calls) == source.npartitions
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(files)
    for path, data in files.items():
        verify_cog(path)
        np.testing.assert_array_equal(read(path)[0], data)
    with rasterio.open(tmp_path / "a" / "moisture.tif") as file:
        assert file.tags()["card"] == "0123abcd"
        assert file.tags()["orbit"] == "52"
    with rasterio.open(tmp_path / "b" / "flag.tif") as file:
        assert "flag_meanings" in file.tags(1)

    calls.clear()
    (tmp_path / "a" / "moisture.tif").unlink()
    with pytest.raises(FileExistsError, match=r"flag\.tif exists"):
        write_cogs(files)
    assert not calls
    assert not (tmp_path / "a" / "moisture.tif").exists()
    assert write_cogs({}) == []


@settings(max_examples=15)
@given(
    rows=st.integers(8, 70),
    columns=st.integers(8, 60),
    scheduler=st.sampled_from(["threads", "synchronous"]),
)
def test_the_same_pixels_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, scheduler: str
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    pixels = noise((70, 60))
    eager = write_cog(raster(pixels), folder / "eager.tif").read_bytes()
    chunked = raster(da.from_array(pixels, chunks=(rows, columns)))
    with dask.config.set(scheduler=scheduler):
        assert write_cog(chunked, folder / "lazy.tif").read_bytes() == eager


def test_larger_files_have_the_same_bytes_too(tmp_path: Path) -> None:
    pixels = noise()
    eager = write_cog(raster(pixels), tmp_path / "a.tif").read_bytes()
    lazy = raster(da.from_array(pixels, chunks=(300, 128)))
    assert write_cog(lazy, tmp_path / "b.tif").read_bytes() == eager
    odd = pixels.copy().view(np.uint32)
    odd[np.isnan(pixels)] = 0xFFC0BEEF  # also NaN
    assert write_cog(raster(odd.view(np.float32)), tmp_path / "c.tif").read_bytes() == eager


def test_on_a_cluster(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        lazy = da.random.default_rng(1).random((300, 200), chunks=(64, 50))
        path = write_cog(raster(lazy), tmp_path / "a.tif")
        np.testing.assert_array_equal(read(path)[0], lazy)


def test_failures_of_the_computation_pass_unchanged(tmp_path: Path) -> None:
    path = write_cog(raster(noise()), tmp_path / "a.tif")
    before = path.read_bytes()

    def fail(block: np.ndarray) -> np.ndarray:
        msg = "the source is gone"
        raise LookupError(msg)

    pixels = da.ones(SHAPE, chunks=100).map_blocks(fail, meta=np.empty((0, 0)))
    with pytest.raises(LookupError, match="the source is gone"):
        write_cog(raster(pixels), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# In a process of its own: memory, interrupts, folders and disks that refuse

PRELUDE = """
import os, resource, sys, time
import dask.array as da, numpy as np, odc.geo.xr, xarray as xr
from xsoilsm.cog import write_cog
from xsoilsm.grid import get_grid

def raster(pixels):
    box = get_grid("100m").geobox((0, pixels.shape[0]), (0, pixels.shape[1]))
    return xr.DataArray(pixels, odc.geo.xr.xr_coords(box), ("y", "x"), "a")

def attempt(*args, **kwargs):
    try:
        write_cog(*args, **kwargs)
    except OSError as error:
        print(type(error).__name__, error)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_memory_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    code = """
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    write_cog(raster(da.zeros((600, 600), chunks=300, dtype="float32")), "small.tif")
    before = peak()
    pixels = da.ones((6000, 6000), chunks=1000, dtype="float32")
    pixels = pixels * da.arange(6000, chunks=1000, dtype="float32")
    write_cog(raster(pixels), "large.tif")
    print((peak() - before) / pixels.nbytes)
    """
    out = finish(start("os.chdir(sys.argv[1])\n" + textwrap.dedent(code), tmp_path))
    assert float(out) < 0.5


SLOW = """
def slow(block):
    time.sleep(0.1)
    return block

pixels = da.ones((2000, 2000), chunks=100, dtype="float32").map_blocks(
    slow, meta=np.empty((0, 0), "float32")
)
print("ready", flush=True)
write_cog(raster(pixels), sys.argv[1])
"""


def interrupt(path: Path, how: signal.Signals) -> int:
    """Send a signal to a process that has begun to write pixels."""
    process = start(SLOW, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    limit = time.monotonic() + 60
    while sum(p.stat().st_size for p in path.parent.rglob("stage.tif")) < 2_000_000:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    return process.returncode


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    assert interrupt(tmp_path / "a.tif", signal.SIGINT) != 0
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert interrupt(path, signal.SIGKILL) == -signal.SIGKILL
    assert not path.exists()
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(".a.tif-")
    write_cog(raster(noise()), path)  # the rest is in nobody's way
    verify_cog(path)


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    code = """
    folder = sys.argv[1]
    data = raster(np.zeros((4, 4), "float32"))
    write_cog(data, os.path.join(folder, "first.tif"))  # also imports what is needed
    os.chmod(folder, 0o555)
    os.chdir(folder)
    if os.getuid() == 0:
        os.setuid(65534)  # root may write everywhere
    attempt(data, "a.tif")
    attempt(data, os.path.join("new", "a.tif"))
    """
    out = finish(start(code, tmp_path)).splitlines()
    assert [line.split()[0] for line in out] == ["PermissionError", "PermissionError"]
    assert "cannot write a.tif: Permission denied" in out[0]
    assert "check that its folder may be written" in out[0]
    assert [p.name for p in tmp_path.iterdir()] == ["first.tif"]


# 8.4 MB of random numbers, which hardly compress; with its overviews the COG has 9.2 MB.
@pytest.mark.parametrize(("lazy", "limit"), [(True, 3e6), (False, 3e6), (True, 8.8e6)])
def test_a_file_that_cannot_grow(tmp_path: Path, lazy: bool, limit: float) -> None:
    code = """
    lazy, limit = sys.argv[1] == "True", int(float(sys.argv[2]))
    os.chdir(sys.argv[3])
    pixels = np.random.default_rng(0).random((1024, 1024))
    data = raster(da.from_array(pixels, chunks=300) if lazy else pixels)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    attempt(data, "a.tif")
    print(os.listdir())
    """
    out = finish(start(code, lazy, limit, tmp_path)).splitlines()
    assert out[0].startswith("OSError [Errno 5] cannot write a.tif: ")
    assert out[1] == "[]"


def test_a_full_disk(tmp_path: Path) -> None:
    mount = shutil.which("mount")
    if mount is None or os.getuid() != 0:
        pytest.skip("a small disk of its own can only be mounted by root")
    command = [mount, "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        pixels = np.random.default_rng(0).random((1024, 1024))  # 8 MB, and its COG is larger
        with pytest.raises(OSError, match=r"cannot write .*a\.tif: .*its disk has room"):
            write_cog(raster(pixels), tmp_path / "a.tif")
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_no_room_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    rows, columns = get_grid("100m").shape
    globe = da.full((rows, columns), "never computed", chunks=20000).astype("float64")
    bands = free // globe.nbytes + 1
    coords = odc.geo.xr.xr_coords(get_grid("100m").geobox((0, rows), (0, columns)))
    layer = xr.DataArray(globe, coords, ("y", "x"), "a")
    data = xr.Dataset({f"band{n}": layer for n in range(bands)})
    with pytest.raises(OSError, match=r"MB are needed there, \d+ MB are free"):
        write_cog(data, tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_copy_that_goes_wrong_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """The disk loses what was written last, and says nothing."""
    copy = rasterio.shutil.copy

    def lossy(source: Path, target: Path, **options: Any) -> None:
        copy(source, target, **options)
        size = target.stat().st_size
        os.truncate(target, int(share * size))
        os.truncate(target, size)

    monkeypatch.setattr(rasterio.shutil, "copy", lossy)
    with pytest.raises(OSError, match=r"cannot write .*a\.tif: .* is not whole"):
        write_cog(raster(noise()), tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())


# Damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cog(raster(noise()), tmp_path_factory.mktemp("whole") / "whole.tif")


@settings(max_examples=40)
@given(data=st.data())
def test_truncated_files_are_found(whole: Path, data: st.DataObject) -> None:
    # The last four bytes of the file say the size of the last tile once more.
    size = data.draw(st.integers(0, whole.stat().st_size - 5))
    path = whole.with_name("cut.tif")
    path.write_bytes(whole.read_bytes()[:size])
    with pytest.raises(OSError, match=r"is not whole .*; delete it and write it again"):
        verify_cog(path)


@settings(max_examples=40)
@given(data=st.data(), bit=st.integers(0, 7), row=st.integers(0, 1), column=st.integers(0, 1))
def test_a_single_bit_of_a_tile_is_found(
    whole: Path, data: st.DataObject, bit: int, row: int, column: int
) -> None:
    with rasterio.open(whole) as file:
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1))
            for what in ("OFFSET", "SIZE")
        )
    damaged = bytearray(whole.read_bytes())
    damaged[offset + data.draw(st.integers(0, size - 1))] ^= 1 << bit
    path = whole.with_name("bit.tif")
    path.write_bytes(damaged)
    try:
        verify_cog(path)
    except OSError:
        return
    # A few bits fill up the last byte of a tile and hold nothing.
    np.testing.assert_array_equal(read(path)[0], noise())


def test_zeros_are_found(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a.tif"
    content = whole.read_bytes()
    path.write_bytes(bytes(len(content)))
    with pytest.raises(OSError, match="damaged or no GeoTIFF"):
        verify_cog(path)
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))
    with pytest.raises(OSError, match="is not whole"):
        verify_cog(path)
    # The pixels of a writer that failed: a valid file of zeros.
    profile = {"width": 600, "height": 600, "count": 1, "dtype": "float32", "crs": "EPSG:6933"}
    with rasterio.open(
        tmp_path / "stage.tif", "w", driver="GTiff", transform=place().affine, **profile
    ):
        pass
    rasterio.shutil.copy(tmp_path / "stage.tif", tmp_path / "zeros.tif", driver="COG")
    assert cog_validate(tmp_path / "zeros.tif", quiet=True)[0]
    with pytest.raises(OSError, match="nothing but zeros and no checksum"):
        verify_cog(tmp_path / "zeros.tif")


def test_zeros_that_were_meant_are_whole(tmp_path: Path) -> None:
    verify_cog(write_cog(raster(np.zeros(SHAPE, np.uint32)), tmp_path / "a.tif"))


def test_other_pixels_than_written_are_found(tmp_path: Path) -> None:
    """A file that is valid in every respect, but for a pixel that was changed afterwards."""
    path = write_cog(raster(noise()), tmp_path / "a.tif")
    with rasterio.open(path) as file:
        checksum = file.tags(1)[CHECKSUM]
        profile = {**file.profile, "driver": "GTiff"}
    pixels = noise()
    pixels[400, 400] = 0.1234
    with rasterio.open(tmp_path / "b.tif", "w", **profile) as file:
        file.write(pixels, 1)
        file.update_tags(1, **{CHECKSUM: checksum})
    rasterio.shutil.copy(tmp_path / "b.tif", tmp_path / "c.tif", driver="COG")
    with pytest.raises(OSError, match=f"band 1 has the checksum .*, expected {checksum}"):
        verify_cog(tmp_path / "c.tif")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        verify_cog(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(OSError, match="damaged or no GeoTIFF"):
        verify_cog(tmp_path / "text.tif")
    profile = {"width": 600, "height": 600, "count": 1, "dtype": "uint8", "crs": "EPSG:6933"}
    with rasterio.open(
        tmp_path / "plain.tif", "w", driver="GTiff", transform=place().affine, **profile
    ) as file:
        file.write(np.ones((600, 600), "uint8"), 1)
    with pytest.raises(OSError, match="no Cloud-Optimized GeoTIFF"):
        verify_cog(tmp_path / "plain.tif")
