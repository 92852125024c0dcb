"""What the README promises, on a small virtual landscape, with and without published networks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from xsoilsm.cog import verify_cog
from xsoilsm.demo import run_demo
from xsoilsm.retrieval import ResolutionWarning
from xsoilsm.simulate import simulate_landscape

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """Environment of a user who has the landscape of the catalog "demo" and no weights."""
    cache = tmp_path_factory.mktemp("cache")
    simulate_landscape(cache / "landscapes" / "demo", size_km=22, spacing=50)
    return os.environ | {"XSOILSM_CACHE_DIR": str(cache)}


@pytest.fixture(scope="module")
def user(newcomer, tmp_path_factory, weights_dir):
    """Environment of a user who has the landscape and the published weights."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "landscapes").symlink_to(Path(newcomer["XSOILSM_CACHE_DIR"]) / "landscapes")
    return newcomer | {"XSOILSM_CACHE_DIR": str(cache), "XSOILSM_WEIGHTS_DIR": str(weights_dir)}


@pytest.fixture
def in_process(user, monkeypatch):
    for name in ("XSOILSM_CACHE_DIR", "XSOILSM_WEIGHTS_DIR"):
        monkeypatch.setenv(name, user[name])


def cli(user, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "xsoilsm.cli", *map(str, arguments)],
        env=user,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text("utf-8"), re.DOTALL)


def test_notebook_and_command_line_write_the_same_maps(user, in_process, tmp_path, monkeypatch):
    script, *_ = blocks("README.md", "python")  # the first one maps
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    with pytest.warns(ResolutionWarning):
        exec(script, {})
    notebook = sorted((tmp_path / "out").iterdir())
    assert len(notebook) == 9
    for file in notebook:
        verify_cog(file)
        assert cog_validate(file, quiet=True)[0]
    (line,) = [
        line
        for block in blocks("README.md", "console")
        for line in block.splitlines()
        if line.startswith("$ xsoilsm map --")
    ]
    folder = tmp_path / "cli"
    folder.mkdir()
    done = cli(user, *line.removeprefix("$ xsoilsm ").split(), "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10  # and a STAC catalog
    for file in notebook:
        with rasterio.open(file) as one, rasterio.open(folder / "out/mosaics" / file.name) as other:
            np.testing.assert_allclose(one.read(), other.read(), rtol=0, atol=1e-6)
            assert one.transform == other.transform


def test_demo_maps_at_two_resolutions_and_compares(weights_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    said = []
    table = run_demo(
        tmp_path / "out",
        landscape={"size_km": 5, "spacing": 25},
        say=said.append,
        progress=False,
    )
    assert table.groupby("res").size().to_dict() == {"1km": 3, "100m": 3}
    assert (table.valid > 0.5 * table.cells).all()
    assert table["mean"].between(0.03, 0.5).all()
    assert table.RMSE.between(0, 0.25).all()
    maps = sorted((tmp_path / "out").glob("*.tif"))
    assert len(maps) == 18
    for file in maps:
        assert cog_validate(file, quiet=True)[0]
    assert (tmp_path / "out" / "quicklook.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "summary.csv").exists()
    assert "simulated" in " ".join(said)
    assert set(table.networks) == {"published networks"}
    with rasterio.open(next(f for f in maps if "soil_moisture_100m" in f.name)) as file:
        assert "simulated" in file.tags()["inputs"]
        assert file.tags()["input_items"].startswith("S1")


def texts_drawn(monkeypatch):
    """Collect titles of figures as they are drawn."""
    from matplotlib.figure import Figure

    drawn = []
    real = Figure.suptitle

    def suptitle(figure, text, **options):
        drawn.append(text)
        return real(figure, text, **options)

    monkeypatch.setattr(Figure, "suptitle", suptitle)
    return drawn


def test_demo_needs_neither_weights_nor_network_and_says_what_is_simulated(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    for name in [n for n in os.environ if n.startswith(("XSOILSM_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    drawn, said = texts_drawn(monkeypatch), []
    table = run_demo(
        tmp_path / "out",
        landscape={"size_km": 5, "spacing": 25},
        say=said.append,
        progress=False,
    )
    words = "demonstration networks trained on simulated data"
    assert set(table.networks) == {words}
    assert set(pd.read_csv(tmp_path / "out" / "summary.csv").networks) == {words}
    assert "published networks are not at hand" in "\n".join(said)
    assert words in "\n".join(said)
    assert len(drawn) == 1
    assert drawn[0].startswith(f"SIMULATED landscape, {words}")
    # Networks of the twin know the landscape: they follow the rain between the passes.
    means = table.pivot_table(index="time", columns="res", values=["mean", "simulated_truth"])
    for res in ("1km", "100m"):
        assert means["mean"][res].idxmax() == means["simulated_truth"][res].idxmax()
    assert table.RMSE.between(0, 0.12).all()
    maps = sorted((tmp_path / "out").glob("*.tif"))
    assert len(maps) == 18
    for file in maps:
        with rasterio.open(file) as opened:
            tags = opened.tags()
        assert tags["ensemble"] == "twin-demo"
        assert tags["title"].endswith(f"(simulated landscape, {words})")
        assert "says nothing of the Earth" in tags["simulation_note"]


def test_map_by_the_networks_of_the_package_needs_no_weights(newcomer, tmp_path):
    line = ["map", "--bbox", -5.42, 41.29, -5.4, 41.31, "--catalog", "demo", "--time", "2020-04-05"]
    refused = cli(newcomer, *line, "-o", tmp_path / "published", "--quiet")
    assert refused.returncode == 1
    assert "xsoilsm weights fetch" in refused.stderr
    done = cli(newcomer, *line, "--model", "twin-demo", "-o", tmp_path / "ours", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    files = [file for file in done.stdout.splitlines() if file.endswith(".tif")]
    assert len(files) == 3
    for file in files:
        assert "_twin-demo_" in file
        with rasterio.open(file) as opened:
            assert "simulated landscape, demonstration networks" in opened.tags()["title"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--time", "2020-01"], ["no acquisition", "nearest"]),
        (["--time", "2020-04-20/2020-04-01"], ["2020-04-20"]),
        (["--time", "2020-04", "--res", "2km"], ["2km", "9km, 1km, 500m, 100m"]),
        (["--time", "2020-04", "--model", "SparseSM"], ["SparseSM", "DenseSM-E"]),
        (["--time", "2020-04", "--catalog", "mars"], ["mars", "demo"]),
        (["--time", "2020-04", "--bbox", "170", "10", "-170", "20"], ["antimeridian"]),
        (["--time", "2020-04", "--bbox", "20", "10", "20.1", "10.1"], ["no acquisition"]),
    ],
)
def test_what_cannot_work_ends_in_one_line(user, arguments, words, tmp_path):
    box = [] if "--bbox" in arguments else ["--bbox", -5.45, 41.28, -5.4, 41.32]
    catalog = [] if "--catalog" in arguments else ["--catalog", "demo"]
    done = cli(user, "map", *box, *catalog, *arguments, "-o", tmp_path / "out", "--quiet")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_second_run_keeps_what_is_there_and_another_configuration_is_refused(user, tmp_path):
    line = ["map", "--bbox", -5.42, 41.29, -5.4, 41.31, "--catalog", "demo", "--time", "2020-04-05"]
    first = cli(user, *line, "-o", tmp_path, "--quiet")
    assert first.returncode == 0, first.stderr
    files = [Path(name) for name in first.stdout.splitlines()]
    written = {file: file.stat().st_mtime_ns for file in files if file.suffix == ".tif"}
    assert len(written) == 3
    again = cli(user, *line, "-o", tmp_path, "--quiet")
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in written} == written
    other = cli(user, *line, "--res", "100m", "-o", tmp_path, "--quiet")
    assert other.returncode == 1
    assert "res" in other.stderr
    told = cli(user, "map", "explain", tmp_path, -5.41, 41.3, "2020-04-05")
    assert told.returncode == 0, told.stderr
    store = cli(user, "map", "export", tmp_path, "--form", "zarr", "--numbers", "int16")
    assert store.returncode == 0, store.stderr
    assert store.stdout.strip().endswith(".zarr")


def test_missing_landscape_says_how_to_make_it(user, tmp_path):
    empty = user | {"XSOILSM_CACHE_DIR": str(tmp_path)}
    done = cli(empty, "map", "--bbox", 0, 0, 1, 1, "--time", "2020", "--catalog", "demo", "-o", "x")
    assert done.returncode == 1
    assert "xsoilsm simulate" in done.stderr


def test_retrieval_follows_the_rain_of_the_landscape(user, in_process):
    import xsoilsm

    cube = xsoilsm.load_cube((-5.45, 41.27, -5.35, 41.33), "2020-04", catalog="demo")
    with pytest.warns(ResolutionWarning):
        soil = cube.sm.retrieve().compute()
    mean = soil.soil_moisture.mean(("y", "x")).values
    assert np.isfinite(mean).all()
    assert mean[1] > mean[0]  # it rained between the first pass and the second
