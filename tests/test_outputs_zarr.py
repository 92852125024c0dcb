"""The Zarr store: opens lazily, says the same as the tiles, and survives interruptions."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask.array as da
import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pytest
import xarray as xr
from output_tiles import ASCENDING, DESCENDING, WEEK, pieces_of_two, region, truth, write_tiles

from xsoilsm.outputs import store
from xsoilsm.outputs.pieces import Piece
from xsoilsm.outputs.store import Blocks, write_zarr
from xsoilsm.quality import QualityFlag

SMALL = Blocks(chunk=(1, 16, 16), shard=(2, 32, 32))


@pytest.fixture
def pieces() -> list[Piece]:
    return list(pieces_of_two())


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_it_opens_lazily_and_holds_what_the_tiles_hold(pieces: list[Piece], tmp_path: Path) -> None:
    path = write_zarr(pieces, tmp_path / "map.zarr", blocks=SMALL)
    with xr.open_zarr(path) as opened:
        assert all(isinstance(v.data, da.Array) for v in opened.data_vars.values())
        assert opened["soil_moisture"].dtype == np.float32
        for index, acquisition in enumerate((DESCENDING, ASCENDING)):
            expected = truth(acquisition, region())
            for name, pixels in expected.items():
                np.testing.assert_array_equal(opened[name].values[index], pixels)
        assert list(opened["time"].values.astype("datetime64[s]")) == [
            DESCENDING.start,
            ASCENDING.start,
        ]
        assert [str(p) for p in opened["platform"].values] == ["sentinel-1a", "sentinel-1b"]
        assert opened["relative_orbit"].values.tolist() == [52, 74]
        assert opened.odc.geobox == region()
        moisture, flags = opened["soil_moisture"].attrs, opened["quality_flag"].attrs
        assert moisture["standard_name"] == "volume_fraction_of_condensed_water_in_soil"
        assert moisture["ancillary_variables"] == "soil_moisture_std quality_flag"
        assert moisture["cell_methods"] == "time: point area: mean"
        assert flags["flag_masks"] == [int(flag) for flag in QualityFlag]
        assert flags["flag_meanings"].split()[3] == "low_coverage"
        assert opened.attrs["Conventions"] == "CF-1.11"
    assert [p.name for p in tmp_path.iterdir()] == ["map.zarr"]


def test_metadata_are_version_3_sharded_and_consolidated(
    pieces: list[Piece], tmp_path: Path
) -> None:
    path = write_zarr(pieces, tmp_path / "map.zarr", blocks=SMALL)
    root = json.loads((path / "zarr.json").read_text())
    assert root["zarr_format"] == 3
    assert root["consolidated_metadata"]["must_understand"] is False
    array = root["consolidated_metadata"]["metadata"]["soil_moisture"]
    assert array == json.loads((path / "soil_moisture" / "zarr.json").read_text())
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [2, 32, 32]
    (codec,) = array["codecs"]
    assert codec["name"] == "sharding_indexed"
    assert codec["configuration"]["chunk_shape"] == [1, 16, 16]
    assert array["dimension_names"] == ["time", "y", "x"]
    assert array["attributes"]["grid_mapping"] == "spatial_ref"
    shards = [p for p in (path / "soil_moisture" / "c").rglob("*") if p.is_file()]
    assert len(shards) == 1 * 3 * 3
    plain = xr.open_zarr(path, consolidated=False)
    xr.testing.assert_identical(plain.load(), xr.open_zarr(path).load())


def test_scaled_integers(pieces: list[Piece], tmp_path: Path) -> None:
    path = write_zarr(pieces, tmp_path / "map.zarr", numbers="int16")
    expected = truth(DESCENDING, region())["soil_moisture"]
    with xr.open_zarr(path) as opened:
        found = opened["soil_moisture"].values[0]
        np.testing.assert_allclose(found, expected, atol=0.501e-4)
        assert opened["soil_moisture"].encoding["dtype"] == np.int16
        assert "0.0001" in opened["soil_moisture"].attrs["comment"]


def test_composites_have_bounds_and_holes_are_no_scene(tmp_path: Path) -> None:
    box = region((30, 50))
    pieces = write_tiles(tmp_path, (WEEK,), box)
    left = [p for p in pieces if p.geobox != pieces[0].geobox]
    path = write_zarr(left, tmp_path / "week.zarr", geobox=box, blocks=SMALL)
    rows, columns = box.overlap_roi(pieces[0].geobox)
    with xr.open_zarr(path) as opened:
        assert opened["time_bounds"].values.astype("datetime64[D]").tolist() == [
            [WEEK.start.item(), WEEK.end.item() if WEEK.end is not None else None]
        ]
        assert opened["soil_moisture"].attrs["cell_methods"] == "time: mean area: mean"
        flags = opened["quality_flag"].values[0]
        assert (flags[rows, columns] == QualityFlag.NO_SCENE).all()
        assert np.isnan(opened["soil_moisture"].values[0][rows, columns]).all()


def test_an_interrupted_store_goes_on_where_it_was(
    pieces: list[Piece], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_zarr(pieces, tmp_path / "whole.zarr", blocks=SMALL)
    read, calls = store._pixels, []

    def stop_after_five(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_pixels", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        write_zarr(pieces, tmp_path / "map.zarr", blocks=SMALL)
    assert not (tmp_path / "map.zarr").exists()
    journal = tmp_path / ".map.zarr-partial" / "journal"
    with open(journal, "a", encoding="utf-8") as file:
        file.write("soil_moisture 0.0")  # a line that a kill has cut
    done = write_zarr(pieces[::-1], tmp_path / "map.zarr", blocks=SMALL)
    assert len(calls) == 6 + 27 - 5
    assert content(done) == content(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.zarr", "whole.zarr"]


def test_other_tiles_begin_anew(pieces: list[Piece], tmp_path: Path) -> None:
    half = [p for p in pieces if p.acquisition == DESCENDING]
    write_zarr(half, tmp_path / "map.zarr", blocks=SMALL)
    (tmp_path / ".map.zarr-partial").mkdir()
    os.replace(tmp_path / "map.zarr", tmp_path / ".map.zarr-partial" / "store")
    (tmp_path / ".map.zarr-partial" / "journal").write_text("another digest\nsoil_moisture 0.0.0\n")
    path = write_zarr(pieces, tmp_path / "map.zarr", blocks=SMALL)
    assert xr.open_zarr(path).sizes["time"] == 2
    with pytest.raises(FileExistsError, match="overwrite"):
        write_zarr(half, path)
    write_zarr(half, path, blocks=SMALL, overwrite=True)
    assert xr.open_zarr(path).sizes["time"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["map.zarr"]


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    pieces = write_tiles(tmp_path, (DESCENDING,), region((40, 40)))
    tiny = Blocks(chunk=(1, 8, 8), shard=(1, 8, 8))
    script = textwrap.dedent(
        f"""
        import pickle
        from pathlib import Path
        from xsoilsm.outputs.store import Blocks, write_zarr
        pieces = pickle.loads(Path({str(tmp_path / "pieces")!r}).read_bytes())
        write_zarr(pieces, {str(tmp_path / "map.zarr")!r}, blocks={tiny!r})
        """
    )
    (tmp_path / "pieces").write_bytes(pickle.dumps(pieces))
    child = subprocess.Popen([sys.executable, "-c", script])
    journal = tmp_path / ".map.zarr-partial" / "journal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") > 10:
            break
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "map.zarr").exists()
    resumed = write_zarr(pieces, tmp_path / "map.zarr", blocks=tiny)
    whole = write_zarr(pieces, tmp_path / "whole.zarr", blocks=tiny)
    assert content(resumed) == content(whole)
    assert filecmp.cmp(resumed / "zarr.json", whole / "zarr.json", shallow=False)


def test_what_cannot_be_a_store_is_refused(pieces: list[Piece], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole chunks"):
        write_zarr(pieces, tmp_path / "a.zarr", blocks=Blocks((1, 10, 10), (1, 25, 20)))
    twin = dataclasses.replace(DESCENDING, id="twin")
    twins = [dataclasses.replace(p, acquisition=twin) for p in pieces[:3]]
    with pytest.raises(ValueError, match="same time"):
        write_zarr([*pieces, *twins], tmp_path / "a.zarr")
    mixed = [dataclasses.replace(p, acquisition=WEEK) for p in pieces[:3]]
    with pytest.raises(ValueError, match="composites"):
        write_zarr([*pieces, *mixed], tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
