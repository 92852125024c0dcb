"""A small region over a failing service, killed and resumed: the code of the large ones.

``python -m benchmarks regions --size 300km --work FOLDER`` and ``--size 60km`` run the large ones.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from mapping_scene import save_small_ensemble
from services import stac_api
from services.fixtures import REGION, RTC, Services
from services.storage import BlobStorage, blob_storage

from benchmarks import bench_regions
from benchmarks.killed_runs import entered
from xsoilsm.facts import Service
from xsoilsm.sources.access import search


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.bin").write_bytes(bytes(range(100)))
    with blob_storage(tmp_path, {}, {"open": tmp_path / "files"}) as running:
        yield running


def ask(storage: BlobStorage, **headers: str) -> bytes | None:
    request = urllib.request.Request(f"{storage.url}/open/a.bin", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: bytes = answer.read()
            return content
    except OSError:
        return None


def test_weather_befalls_the_share_of_requests_that_was_asked_for(storage: BlobStorage) -> None:
    storage.weather(0.2, [{"kind": 503}, {"kind": "reset"}], seed=1)
    answers = [ask(storage) for _ in range(300)]
    log = storage.requests()
    kinds = Counter(entry["fault"] for entry in log)
    assert kinds[None] + kinds[503] + kinds["reset"] == 300
    assert 35 <= kinds[503] + kinds["reset"] <= 85  # 60 on average, 6.9 deviations
    assert min(kinds[503], kinds["reset"]) >= 12
    assert answers.count(None) == 300 - kinds[None]
    storage.reset()
    assert all(ask(storage) for _ in range(50))


def test_ranges_are_those_of_the_file(storage: BlobStorage) -> None:
    content = bytes(range(100))
    assert ask(storage) == content
    assert ask(storage, Range="bytes=10-19") == content[10:20]
    assert ask(storage, Range="bytes=90-500") == content[90:]
    assert ask(storage, Range="bytes=100-") is None
    assert [entry["bytes"] for entry in storage.requests()][:3] == [100, 10, 10]


def test_a_region_over_a_failing_service_ends_complete_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = stac_api.missing()
    if reason:
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, but continuous integration must have it")
        pytest.skip(reason)
    monkeypatch.setenv("XSOILSM_HTTP_WAIT", "0.05")
    save_small_ensemble(tmp_path / "small")
    chosen = bench_regions.SIZES["8km"] | {"km": 6, "tile": 8, "kills": 1}
    quiet, rough = bench_regions.measure(
        tmp_path / "work", "8km", **chosen, model=str(tmp_path / "small")
    )
    assert rough["differs"] == ""
    assert quiet["tiles"] == rough["tiles"] >= 2
    assert quiet["values"] == rough["values"] > 30
    assert (quiet["faults"], quiet["kills"], quiet["runs"]) == (0, 0, 1)
    assert 0.02 < rough["faults"] / rough["requests"] < 0.09
    assert rough["asked again"] > 0
    assert rough["runs"] == 1 + rough["kills"] + rough["ended early"]
    assert rough["runs"] > 1
    json.dumps([quiet, rough])

    # What the comparison is worth: it sees a byte, a file, and a tile that was made again.
    one, other = tmp_path / "work" / "undisturbed", tmp_path / "work" / "disturbed"
    assert bench_regions.compare_folders(one, other) == []
    before = entered(other)
    first, second = sorted(other.glob("tiles/*/*/soil_moisture.tif"))[:2]
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    shutil.copy(first, tmp_path / "kept")
    first.write_bytes(content)
    assert "1 files other bytes" in bench_regions.compare_folders(one, other)[0]
    shutil.copy(tmp_path / "kept", first)
    assert bench_regions.compare_folders(one, other) == []
    changed = [key for key, known in entered(other).items() if before[key] != known]
    assert len(changed) == 1
    second.unlink()
    assert "1 files missing" in bench_regions.compare_folders(one, other)[0]


@pytest.mark.parametrize("fault", [{"kind": "half"}, {"kind": "reset-midway"}, {"kind": "reset"}])
def test_a_search_whose_answer_breaks_off_is_asked_again(
    provider: Services, tmp_path: Path, fault: dict[str, Any]
) -> None:
    with blob_storage(tmp_path, {}, {}, upstream=provider.api) as gate:
        service = Service(kind="stac-api", href=gate.url, source="test")
        days = np.datetime64("2020-04-01").item(), np.datetime64("2020-04-30").item()
        quiet = search.find_items(service, RTC, REGION, *days)
        count = len(gate.requests())
        assert len(quiet) == 7
        for skip in range(count):  # each request of the search in turn
            gate.reset()
            gate.fail("", **fault, count=1, skip=skip)
            found = search.find_items(service, RTC, REGION, *days)
            assert [item.id for item in found] == [item.id for item in quiet]
            assert len(gate.requests()) > count


def test_an_image_that_reaches_further_than_what_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Footprints of an image and of its original differ; a tile may touch the image alone."""
    import mapping_scene

    from xsoilsm import open_catalog
    from xsoilsm.mapping import run_job
    from xsoilsm.mapping.inputs import read_entries

    for name, value in mapping_scene.settings().items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "landscape"
    shutil.copytree(Path(os.environ["XSOILSM_CACHE_DIR"], "landscapes", "demo"), root)
    moved = 0
    west, _, _, north = mapping_scene.BBOX
    for path in (root / "stac" / "sentinel-1-grd").glob("S1*.json"):
        item = json.loads(path.read_text())
        # The original ends west of the region, but for one pass only west of its eastern tile.
        east = west + (0.02 if moved else -0.001)
        ring = shapely.box(east - 1, 41, east, north + 1).exterior.coords
        item["geometry"] = {"type": "Polygon", "coordinates": [[list(p) for p in ring]]}
        item["bbox"] = [east - 1, 41, east, north + 1]
        path.write_text(json.dumps(item))
        moved += 1
    assert moved >= 2
    catalog = open_catalog("demo", endpoints={"landscape": str(root / "catalog.json")})
    job = mapping_scene.begin(tmp_path / "job", catalog=catalog)
    originals = [e for e in read_entries(job.inputs) if e.collection == "sentinel-1-grd"]
    assert len(originals) == moved
    shutil.rmtree(root / "stac")  # whatever is needed was kept
    assert run_job(job, workers=1).is_complete
    got, wanted = mapping_scene.files_of(job.folder), mapping_scene.undisturbed()[1]
    assert got.keys() == wanted.keys()
    for name in got:
        with rasterio.MemoryFile(got[name]) as one, rasterio.MemoryFile(wanted[name]) as other:
            with one.open() as left, other.open() as right:
                np.testing.assert_array_equal(left.read(), right.read(), err_msg=name)
