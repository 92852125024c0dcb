"""What a job says of itself: why a pixel is empty, how it stands, what it will take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mapping_scene
import numpy as np
import pytest
import rasterio
import xarray as xr
from mapping_scene import begin

from xsoilsm import write_cog
from xsoilsm.mapping import Job, JobError, open_job, run_job
from xsoilsm.mapping.commands import explain_cell, map_job, retry, status, verify
from xsoilsm.mapping.estimate import estimate_job
from xsoilsm.mapping.explain import Explanation, explain, explain_text
from xsoilsm.mapping.ledger import Ledger
from xsoilsm.mapping.plan import Plan
from xsoilsm.quality import QualityFlag

LON, LAT = -5.4, 41.3
DAY = "2020-04-05"
pytestmark = pytest.mark.usefixtures("scene")


def one(
    job: Job, day: str = DAY, lon: float = LON, lat: float = LAT, **options: Any
) -> Explanation:
    (found,) = explain(job, lon, lat, day, **options)
    return found


def cell(job: Job) -> tuple[Path, int, int]:
    """Folder of the tile that holds the point on the day, and the point's row and column."""
    product = next(p for p in Plan(job).products if p.time.startswith(DAY))
    for folder in sorted((job.tiles / product.id).iterdir()):
        with rasterio.open(folder / "quality_flag.tif") as file:
            from xsoilsm.grid import lonlat_to_xy

            row, column = file.index(*map(float, lonlat_to_xy(LON, LAT)))
            if 0 <= row < file.height and 0 <= column < file.width:
                return folder, row, column
    raise AssertionError


def rewrite(job: Job, flags: QualityFlag, value: float = np.nan) -> None:
    """Give the point other flags and another value in its tile."""
    folder, row, column = cell(job)
    for name, number in (("quality_flag", int(flags)), ("soil_moisture", value)):
        with rasterio.open(folder / f"{name}.tif") as file:
            pixels = file.read(1)
            x = file.transform.c + file.transform.a * (np.arange(file.width) + 0.5)
            y = file.transform.f + file.transform.e * (np.arange(file.height) + 0.5)
        pixels[row, column] = number
        data = xr.DataArray(pixels, {"y": y, "x": x}, name=name)
        write_cog(data, folder / f"{name}.tif", overwrite=True)


# --------------------------------------------------------------------------- no product


def test_a_valid_pixel_has_its_value(finished: Job) -> None:
    rewrite(finished, QualityFlag.LOW_COVERAGE, 0.25)
    found = one(finished)
    assert (found.reason, found.value) == ("valid", 0.25)
    assert "soil moisture 0.250 m3 m-3; low_coverage:" in str(found)
    assert one(finished, f"{DAY}T06:26:33") == found


def test_outside_of_the_job(finished: Job) -> None:
    assert one(finished, lon=20.0).reason == "outside"
    assert "outside of the region" in one(finished, lon=20.0).text
    assert one(finished, "2021-01-01").reason == "outside"
    assert "2020-04-01 to 2020-04-30" in one(finished, "2021-01-01").text
    with pytest.raises(ValueError, match="cannot tell a day"):
        explain(finished, LON, LAT, "april")


def test_not_acquired(finished: Job) -> None:
    found = one(finished, "2020-04-06")
    assert found.reason == "not_acquired"
    assert "the nearest are: 2020-04-05 06:26 and 2020-04-11 18:20" in found.text


def test_missing_in_the_catalog(finished: Job) -> None:
    """A satellite comes back after 12 days."""
    found = one(finished, "2020-04-17")
    assert found.reason == "missing_in_catalog"
    assert "orbit 154 descending passes here every 12 days" in found.text
    assert "2020-04-05" in found.text


def test_left_out(finished: Job) -> None:
    gone, *others = finished.acquisitions
    excluded = tuple((name, "polarisations VV, not VV and VH") for name, _ in gone.items)
    found = one(replace(finished, acquisitions=tuple(others), excluded=excluded))
    assert found.reason == "left_out"
    assert f"{gone.items[0][0]} (polarisations VV, not VV and VH)" in found.text


# --------------------------------------------------------------------------- a product


@pytest.mark.parametrize(
    ("state", "words"),
    [("pending", "is pending; run the job again"), ("failed", "failed; run the job again (why)")],
)
def test_what_the_ledger_knows(finished: Job, state: str, words: str) -> None:
    folder, _, _ = cell(finished)
    with Ledger(finished.ledger, finished.hash) as ledger:
        ledger.mark(folder.parent.name, folder.name, state, "why" if state == "failed" else "")
    found = one(finished)
    assert found.reason == state
    assert words in found.text


@pytest.mark.parametrize(
    ("flags", "reason", "words"),
    [
        (QualityFlag.NO_SCENE, "no_scene", "no valid pixel in the cell"),
        (QualityFlag.READ_FAILED, "read_failed", "a source could not be read"),
        (QualityFlag.OUT_OF_RANGE, "out_of_range", "left 0 to 0.6"),
        (QualityFlag.NAN_INPUT, "nan_input", "an input of the networks is missing"),
        (QualityFlag.READ_FAILED | QualityFlag.NAN_INPUT, "read_failed", "nan_input:"),
        (QualityFlag.SNOW, "nan_input", "snow:"),
    ],
)
def test_what_the_flags_say(finished: Job, flags: QualityFlag, reason: str, words: str) -> None:
    rewrite(finished, flags)
    found = one(finished, look=False)
    assert found.reason == reason
    assert words in found.text
    assert np.isnan(found.value)


def test_which_mask(finished: Job) -> None:
    rewrite(finished, QualityFlag.SNOW | QualityFlag.BUILT_UP)
    chosen = replace(finished.configuration, retrieve={"mask": ["default", "snow"]})
    found = one(replace(finished, configuration=chosen))
    assert found.reason == "masked"
    assert found.text.startswith("no value: masked by snow; ")


def test_which_input_is_missing(finished: Job, scene: dict[str, str]) -> None:
    rewrite(finished, QualityFlag.NAN_INPUT)
    soil = sorted(Path(scene["XSOILSM_CACHE_DIR"]).glob("landscapes/demo/data/**/*clay*.tif"))
    assert soil
    for path in soil:
        path.rename(path.with_suffix(".hidden"))
    try:
        found = one(finished)
    finally:
        for path in soil:
            path.with_suffix(".hidden").rename(path)
    assert "NaN in clay" in found.text
    assert "sand" not in found.text


def test_which_input_is_out_of_range(finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(finished, QualityFlag.INPUTS_CLIPPED, 0.3)
    contract = finished.ensemble().contract
    (clay,) = (entry for entry in contract.snapshot if entry.name == "clay")
    narrow = clay.model_copy(update={"range": (0.0, 0.001)})
    snapshot = tuple(narrow if entry is clay else entry for entry in contract.snapshot)
    other = replace(
        finished.ensemble(), contract=contract.model_copy(update={"snapshot": snapshot})
    )
    monkeypatch.setattr(Job, "ensemble", lambda _: other)
    found = one(finished)
    assert found.reason == "valid"
    assert "percent, training had 0 to 0.001" in found.text


def test_a_composite_is_that_of_the_day(finished: Job, tmp_path: Path) -> None:
    monthly = begin(tmp_path / "monthly", composite="monthly")
    assert run_job(monthly, workers=2).is_complete
    found = one(monthly, "2020-04-20")
    assert found.product == "20200401P1M"


# --------------------------------------------------------------------------- commands


def test_the_commands_of_an_operator(
    scene: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    options: dict[str, Any] = {
        "bbox": mapping_scene.BBOX,
        "time": mapping_scene.TIME,
        "catalog": "demo",
        "model": scene["XSOILSM_TEST_MODEL"],
        "tile_size": mapping_scene.TILE,
    }
    assert map_job(out=out, say=said.append, estimate=True, **options) is None
    text = "\n".join(said)
    assert "2 tiles x 2 products: 4 to make in 2 units, 2 left" in text
    assert "measured on 2 tiles" in text
    assert "2 pending" in status(out)
    summary = map_job(out=out, say=said.append, workers=2, **options)
    assert summary is not None
    assert (summary.made, summary.is_complete) == (2, True)
    assert "4 tiles: 4 done" in status(out)
    victim = next(iter(sorted(out.glob("tiles/20200405*/*/*.tif"))))
    victim.write_bytes(b"no image")
    summary, damaged = verify(out)
    assert summary.pending == len(damaged) == 1
    assert victim.parent.name in damaged[0]
    assert f"{victim.parent.name} damaged" in status(out)
    told = explain_cell(out, *_middle(out, victim.parent.name), DAY)
    assert f"the tile {victim.parent.name} is damaged; run the job again" in told
    assert retry(out, say=said.append, workers=1, progress=True).is_complete
    assert "4/4" in capsys.readouterr().err
    assert verify(out)[1] == []
    with pytest.raises(ValueError, match="one of both"):
        map_job(out=out, say=said.append, **(options | {"bbox": None}))
    assert "holds no job" in explain_text(tmp_path, LON, LAT, DAY)
    with pytest.raises(JobError, match="holds no job"):
        status(tmp_path)


def _middle(out: Path, tile: str) -> tuple[float, float]:
    from xsoilsm.grid import xy_to_lonlat

    centre = Plan(open_job(out)).tiles[tile].geobox.boundingbox
    lon, lat = xy_to_lonlat((centre.left + centre.right) / 2, (centre.bottom + centre.top) / 2)
    return float(lon), float(lat)


def test_an_estimate_grows_with_the_job(finished: Job) -> None:
    found = estimate_job(finished)
    assert (found.tiles, found.products, found.left, found.reads) == (2, 2, 0, 0)
    assert found.seconds == 0
    with Ledger(finished.ledger, finished.hash) as ledger:
        for product, tile in list(Plan(finished).rows())[:2]:
            ledger.mark(product, tile, "pending", "")
    more = estimate_job(finished)
    assert more.left == 2
    assert more.seconds > 0
    assert more.reads > 0
    assert more.bytes_read > 10_000
    assert found.bytes_written == sum(p.stat().st_size for p in finished.tiles.glob("*/*/*.tif"))
    assert np.isnan(more.bytes_received), "nothing was made for the purpose"
