"""The way of the data over real services: STAC API, signatures, byte ranges, and back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pystac_client
import pytest
import xarray as xr
from services import provider as forms
from services import stac_api
from services.fixtures import REGION, RTC, TIME, ZEROED, Services

from xsoilsm import load_cube, retrieve
from xsoilsm.catalog import open_catalog
from xsoilsm.retrieval import ResolutionWarning
from xsoilsm.sources.access.links import Access, access_of, readable_href

ROOT = Path(__file__).parents[1]


def assert_same(got: xr.Dataset, wanted: xr.Dataset) -> None:
    """Compare bit for bit: both ways read the same bytes and do the same with them."""
    assert set(got.data_vars) == set(wanted.data_vars)
    for name in wanted.data_vars:
        np.testing.assert_array_equal(got[name].values, wanted[name].values, err_msg=str(name))


def test_the_whole_region_bit_for_bit(
    provider: Services, expected: xr.Dataset, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    cube = load_cube(REGION, TIME, catalog=provider.catalog())
    assert not provider.storage.requests()  # neither a token nor a pixel for the graph
    got = cube.isel(time=slice(ZEROED)).compute()
    wanted = expected.isel(time=slice(ZEROED))
    assert_same(got, wanted)
    assert list(got.platform.values) == list(wanted.platform.values)
    assert got.sigma0_vv.attrs["items"] == wanted.sigma0_vv.attrs["items"]
    for link, container in forms.ACCOUNTS.items():
        assert provider.storage.requests(f"^/{container}/{link}/"), link
    assert len(provider.storage.requests("^/api/sas/")) == len(forms.ACCOUNTS)  # one a container
    with pytest.warns(ResolutionWarning):
        over, here = (retrieve(one, "DenseSM-E").compute() for one in (got, wanted))
    assert np.isfinite(here.soil_moisture.values).any()
    assert_same(over, here)


def test_100_m_bit_for_bit(provider: Services) -> None:
    region = (-5.41, 41.295, -5.39, 41.305)
    over, here = (
        load_cube(region, "2020-04-11", res="100m", catalog=catalog, chunks=7)
        for catalog in (provider.catalog(), provider.demo())
    )
    assert over.sizes["x"] > 15
    assert_same(over.compute(), here.compute())


def test_the_lines_of_the_readme(
    provider: Services, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    monkeypatch.chdir(tmp_path)
    script = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    script, changes = re.subn(r'catalog="[\w-]+"', "catalog=catalog", script)
    assert changes == 1
    script, changes = re.subn(r"region = \(.*?\)", "region = (-5.41, 41.29, -5.39, 41.31)", script)
    assert changes == 1
    with pytest.warns(ResolutionWarning):
        exec(script, {"catalog": provider.catalog()})
    assert len(list((tmp_path / "out").glob("*.tif"))) == 15


def test_search_by_place_time_and_query(provider: Services) -> None:
    client = pystac_client.Client.open(provider.api)
    items = [item for item in provider.items() if item["collection"] == RTC]

    def found(**terms: object) -> set[str]:
        return {item.id for item in client.search(collections=[RTC], **terms).items()}

    everything = {item["id"] for item in items}
    assert found(bbox=REGION) == everything
    assert found(bbox=(-5.3, 41.28, -5.2, 41.32)) == set()
    assert found(datetime="2020-04-01/2020-04-12") == {
        item["id"] for item in items if item["properties"]["datetime"] < "2020-04-12"
    }
    ascending = {i["id"] for i in items if i["properties"]["sat:orbit_state"] == "ascending"}
    assert set() < ascending < everything
    assert found(query={"sat:orbit_state": {"eq": "ascending"}}) == ascending
    orbit = items[0]["properties"]["sat:absolute_orbit"]
    later = {i["id"] for i in items if i["properties"]["sat:absolute_orbit"] > orbit}
    assert found(query={"sat:absolute_orbit": {"gt": orbit}}, bbox=REGION) == later


def test_items_have_the_forms_of_the_provider(provider: Services) -> None:
    client = pystac_client.Client.open(provider.api)
    for name in forms.COLLECTIONS:
        found = client.search(collections=[name], bbox=REGION).items_as_dicts()
        item = min(found, key=lambda one: str(one["properties"].get("datetime")) + one["id"])
        real = forms.real_item(provider.shared, name)
        stated = {key for key, value in real["properties"].items() if value is not None}
        assert stated <= set(item["properties"]), name
        if name != "era5-pds":
            assert set(real["assets"]) == set(item["assets"]), name
        hrefs = [asset["href"] for asset in item["assets"].values()]
        assert not any("127.0.0.1" in href or "sig=" in href for href in hrefs)


def test_on_a_cluster(provider: Services, expected: xr.Dataset, tmp_path: Path) -> None:
    """Workers sign and read by themselves; the client sends them unsigned links."""
    from distributed import Client, LocalCluster

    cube = load_cube(REGION, TIME, catalog=provider.catalog())
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path),
        ) as cluster,
        Client(cluster),
    ):
        got = cube[["sigma0_vv", "ndvi", "precipitation", "elevation"]].isel(time=[0, 1]).compute()
    for name in got.data_vars:
        wanted = expected[name].isel(time=[0, 1]) if "time" in got[name].dims else expected[name]
        np.testing.assert_array_equal(got[name].values, wanted.values)
    from planetary_computer import sas

    assert not sas.TOKEN_CACHE  # nothing was signed in this process


def test_mirrors_by_prefix_replace_hosts_after_signing(provider: Services) -> None:
    service = provider.catalog().services["planetary-computer"]
    link = readable_href(
        "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc/a.tiff",
        access_of(service),
    )
    start = f"{provider.storage.url}/sentinel1euwestrtc/sentinel1-grd-rtc/a.tiff?"
    assert link.startswith(start)
    assert "sig=" in link
    before = len(provider.storage.requests("^/api/sas/"))
    here = Access("planetary-computer", (("https://a.blob.core.windows.net/b/", "/mirror/"),))
    assert readable_href("https://a.blob.core.windows.net/b/c.tiff", here) == "/mirror/c.tiff"
    assert len(provider.storage.requests("^/api/sas/")) == before
    unchanged = open_catalog("planetary-computer").services["planetary-computer"]
    assert unchanged.rewrite == {}
    assert unchanged.href.startswith("https://planetarycomputer.microsoft.com/")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_servers_end_with_the_session(end: signal.Signals, tmp_path: Path) -> None:
    if stac_api.missing():
        pytest.skip(stac_api.missing())
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from services import stac_api
from services.storage import blob_storage
folder = Path(sys.argv[2])
with blob_storage(folder, {}, {}) as storage, stac_api.stac_api(folder, [], []) as api:
    print(storage.url, api, flush=True)
    time.sleep(100)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        urls = process.stdout.readline().split()
    assert len(urls) == 2
    started = _servers(str(tmp_path))
    assert len(started) >= 2
    os.killpg(process.pid, end)
    process.wait(20)
    deadline = time.monotonic() + 15
    while _servers(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _servers(str(tmp_path))


def _servers(folder: str) -> list[int]:
    """Find processes whose command line names a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if folder in command and str(os.getpid()) != place.name:
            found.append(int(place.name))
    return found
