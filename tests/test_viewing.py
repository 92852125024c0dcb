"""The viewer: its server as a process of its own, its page in a headless browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from synthetic import map_cube

from xsoilsm.products import write_products
from xsoilsm.quality import flag_attributes
from xsoilsm.viewing import flags, layers

SERVER = """
import sys
from xsoilsm.viewing import view
explain = lambda lon, lat, time: f"asked about {lon:.3f} {lat:.3f} on {time[:10]}"
view(sys.argv[1], explain=explain, started=lambda address: print(address, flush=True))
"""


@pytest.fixture(scope="module")
def result() -> xr.Dataset:
    cube = map_cube((24, 30))
    times = cube.sizes["time"]
    rng = np.random.default_rng(5)
    values = rng.uniform(0.05, 0.4, (times, 24, 30)).astype("f4")
    marks = np.zeros((times, 24, 30), np.uint32)
    marks[:, 2:8, 3:20] = 1 << 13
    marks[1, 10:16, 3:20] = 1
    values[1, 10:16, 3:20] = np.nan
    dims = ("time", "y", "x")
    return xr.Dataset(
        {
            "soil_moisture": (dims, values, {"units": "m3 m-3"}),
            "soil_moisture_std": (dims, values * 0.1, {"units": "m3 m-3"}),
            "quality_flag": (dims, marks, flag_attributes()),
        },
        cube.coords,
        {"resolution": "1km", "inputs": "a field (simulated)"},
    ).assign_coords(
        platform=("time", ["SENTINEL-1A"] * times),
        relative_orbit=("time", [52] * times),
        orbit_state=("time", ["descending"] * times),
    )


@pytest.fixture(scope="module")
def folder(result: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    write_products(result, out)
    (out / "broken.tif").write_bytes(b"II*\0half a file")
    return out


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def ask(address: str, **headers: str) -> bytes:
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def centre(folder: Path, row: int, column: int) -> tuple[float, float]:
    with rasterio.open(sorted(folder.glob("soil_moisture_1km*"))[0]) as source:
        x, y = source.xy(row, column)
        (lon,), (lat,) = rasterio.warp.transform(source.crs, "EPSG:4326", [x], [y])
    return lon, lat


def test_a_folder_is_listed_by_what_its_files_say(folder: Path) -> None:
    known = layers.find_layers(folder)
    assert len(known) == 9
    assert {layer.variable for layer in known} == set(layers.VARIABLES)
    grouped = layers.scenes(known)
    assert [scene["res"] for scene in grouped] == ["1km"] * 3
    assert all(scene["simulated"] and "orbit 52" in str(scene["about"]) for scene in grouped)
    assert sorted(str(s["time"]) for s in grouped) == [s["time"] for s in grouped]


def test_an_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no map"):
        layers.find_layers(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        layers.find_layers(tmp_path / "nowhere")


def test_mosaics_hide_their_tiles(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "job" / "tiles")
    shutil.copytree(folder, tmp_path / "job" / "mosaics" / "2020")
    found = layers.find_layers(tmp_path / "job")
    assert len(found) == 9
    assert all(layer.id.startswith("mosaics/2020/") for layer in found)


def test_the_lowest_chosen_flag_gives_the_colour() -> None:
    values = np.array([[0, 1, 3], [2, 1 << 15, 1 << 15 | 2]], np.uint32).repeat(8, 0).repeat(8, 1)
    rgb, shown = flags.colour(values, 2 | 1 << 15)
    assert not shown[:, :8][:8].any()
    assert not shown[:8, 8:16].any()
    hatched = shown[:8, 16:].mean()
    assert hatched == 0.5
    code = flags.COLOURS[flags.QualityFlag.READ_FAILED]
    assert "#{:02x}{:02x}{:02x}".format(*rgb[:, 3, 17]) == code
    assert "#{:02x}{:02x}{:02x}".format(*rgb[:, 12, 17]) == code
    assert len(set(flags.COLOURS.values())) == len(flags.COLOURS)


def test_a_cell_answers_with_the_values_of_the_files(folder: Path, address: str) -> None:
    lon, lat = centre(folder, 12, 10)
    answer = json.loads(ask(f"{address}api/pixel?lon={lon}&lat={lat}&res=1km"))
    files = sorted(folder.glob("soil_moisture_1km*"))
    assert len(answer["series"]) == len(files) == 3
    for row, file in zip(answer["series"], files, strict=True):
        with rasterio.open(file) as source:
            expected = source.read(1)[12, 10]
        if np.isnan(expected):
            assert row["soil_moisture"] is None
            assert "no_scene" in row["reasons"][0]
        else:
            assert row["soil_moisture"] == pytest.approx(float(expected), abs=1e-7)
            assert row["reasons"] == []
    far = json.loads(ask(f"{address}api/pixel?lon={lon + 40}&lat={lat}&res=1km"))
    assert far["series"] == []


def test_no_other_file_and_no_other_host_is_served(folder: Path, address: str) -> None:
    for path in ("maps/..~..~etc~passwd/info", "maps/%2Fetc%2Fpasswd/info", "..%2Fserver.py"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address + path)
        with refused.value as answer:
            assert answer.code in (400, 404)
    name = layers.find_layers(folder)[0].id
    json.loads(ask(f"{address}maps/{name}/info"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, Host="evil.example")
    with refused.value as answer:
        assert answer.code == 400


def test_the_page_works_in_a_browser_without_a_network(
    folder: Path, address: str, chromium: str, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    trouble: list[str] = []
    asked: list[str] = []
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.on("console", lambda said: trouble.append(said.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        with page.expect_response(lambda r: "/tiles/" in r.url and r.ok, timeout=60_000):
            page.goto(address)
        page.wait_for_selector("#map[data-drawn='values']", timeout=60_000)
        plain = page.locator("#map").screenshot()
        with page.expect_response(lambda r: "algorithm=flags" in r.url and r.ok):
            page.check("#flagged")
        page.wait_for_selector("#map[data-drawn='values marks']", timeout=60_000)
        marked = page.locator("#map").screenshot()
        page.focus("#slider")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert page.input_value("#slider") == "1"
        lon, lat = centre(folder, 12, 10)
        spot = page.evaluate(f"map.project([{lon}, {lat}])")
        page.locator("#map").click(position={"x": spot["x"], "y": spot["y"]})
        page.wait_for_selector("#why:has-text('asked about')")
        why = page.inner_text("#why")
        dots = page.locator("#chart circle").count()
        browser.close()
    assert trouble == []
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert plain != marked
    assert "No value." in why
    assert "no_scene" in why
    assert f"asked about {lon:.3f} {lat:.3f}"[:18] in why
    assert dots == 2


def test_a_map_is_drawn_with_its_flags_in_the_legend(result: xr.Dataset) -> None:
    from matplotlib.figure import Figure

    axes = result.isel(time=1).sm.plot(Figure().subplots())
    assert "simulated" in axes.get_title()
    assert "1km" in axes.get_title()
    legend = axes.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["no scene (14.2 %)", "steep slope (14.2 %)"]
    with pytest.raises(ValueError, match=r"3 times at once; select one"):
        result.sm.plot()
    with pytest.raises(ValueError, match="retrieve first"):
        result[["quality_flag"]].isel(time=0).sm.plot()


def test_a_map_is_explored_over_its_own_place(result: xr.Dataset, tmp_path: Path) -> None:
    shown = result.isel(time=1).sm.explore(tiles=None)
    page = tmp_path / "map.html"
    shown.save(page)
    text = page.read_text()
    assert text.count("data:image/png;base64") == 3
    assert "tile.openstreetmap" not in text
    corners = np.array(shown.get_bounds())
    extent = result.odc.geobox.geographic_extent.boundingbox
    expected = [[extent.bottom, extent.left], [extent.top, extent.right]]
    np.testing.assert_allclose(np.sort(corners, axis=0), expected, atol=0.02)


def test_without_its_packages_the_viewer_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from xsoilsm import viewing
    from xsoilsm.cli import main

    monkeypatch.setattr(viewing, "_is_absent", lambda package: package == "titiler")
    answer = CliRunner().invoke(main, ["view", str(folder)])
    assert answer.exit_code == 1
    assert "pip install 'xsoilsm[view]'" in answer.output
