import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from synthetic import map_cube, sample_cube

import xsoilsm
from xsoilsm.cog import verify_cog
from xsoilsm.products import Naming, file_name, safe_name, write_products
from xsoilsm.viewing.pictures import quicklook

pytestmark = pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")


@pytest.fixture
def result(weights_dir, monkeypatch):
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    cube = map_cube((20, 30)).assign_coords(
        platform=("time", ["SENTINEL-1A", "SENTINEL-1B", "SENTINEL-1A"]),
        relative_orbit=("time", [52, 74, 52]),
        orbit_state=("time", ["descending", "ascending", "descending"]),
    )
    return cube.chunk(y=7).sm.retrieve()


def test_names_say_what_is_in_a_file(result):
    name = file_name(result.isel(time=1), "soil_moisture")
    version = re.escape(xsoilsm.__version__)
    assert re.fullmatch(
        rf"soil_moisture_1km_20200403T181000_S1B_A074_densesm-e-coarse_v{version}\.tif", name
    )
    bare = result.drop_vars(["platform", "relative_orbit", "orbit_state"]).isel(time=0)
    assert "S1" not in file_name(bare, "quality_flag")


def test_names_cannot_leave_the_folder(result):
    odd = result.isel(time=0).assign_attrs(ensemble="../../etc/passwd", resolution="/1km")
    odd = odd.assign_coords(platform="..\\x", relative_orbit=7, orbit_state="/up")
    assert re.fullmatch(r"[A-Za-z0-9._-]+", file_name(odd, "soil_moisture"))
    assert ".." not in file_name(odd, "soil_moisture")


words = st.text(max_size=400)
numbers = st.one_of(st.integers(), st.floats(), st.text())


@given(words, words, words, words, numbers, words, words)
def test_no_name_is_a_path(variable, resolution, platform, state, orbit, ensemble, version):
    odd = xr.Dataset(
        coords={"platform": platform, "orbit_state": state, "relative_orbit": str(orbit)},
        attrs={"resolution": resolution, "ensemble": ensemble, "source": f"xsoilsm {version}, x"},
    )
    name = file_name(odd, variable, tile=platform)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tif", name)
    assert ".." not in name
    assert len(name) <= 255
    assert (Path("/out") / name).resolve().parent == Path("/out").resolve()


@given(st.lists(words, min_size=2, max_size=6, unique=True))
def test_long_names_stay_apart(texts):
    long = [text + "x" * 300 for text in texts]
    assert len({safe_name(text) for text in long}) == len(long)
    assert all(len(safe_name(text)) <= 40 for text in long)


def test_names_of_tiles_and_composites(result):
    name = file_name(result.isel(time=1), "soil_moisture", tile="r0132c0374")
    assert "_A074_r0132c0374_densesm-e-coarse_" in name
    week = Naming("quality_flag", "100m", "2020-04-01T00:00:00", "P8D", model="m", version="1.2")
    assert week.stem == "quality_flag_100m_20200401P8D_m_v1.2"


def test_every_map_is_a_valid_file_with_its_pixels_and_facts(result, tmp_path):
    files = result.sm.to_cog(tmp_path / "out")
    assert len(files) == 9
    computed = result.compute()
    for file in files:
        verify_cog(file)
    flags = [f for f in files if f.name.startswith("quality_flag")]
    moisture = [f for f in files if re.match(r"soil_moisture_1km", f.name)]
    assert len(flags) == len(moisture) == 3
    for index, file in enumerate(sorted(moisture)):
        with rasterio.open(file) as source:
            assert source.crs.to_epsg() == 6933
            assert np.isnan(source.nodata)
            assert source.units == ("m3 m-3",)
            assert source.tags()["ensemble_digest"] == result.attrs["ensemble_digest"]
            np.testing.assert_array_equal(source.read(1), computed.soil_moisture[index])
    with rasterio.open(flags[0]) as source:
        assert source.dtypes == ("uint32",)
        assert "low_coverage" in str(source.tags(1)) + str(source.tags())


def test_existing_files_are_kept_unless_asked(result, tmp_path):
    files = write_products(result, tmp_path)
    before = files[0].read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        write_products(result, tmp_path)
    assert files[0].read_bytes() == before
    assert write_products(result, tmp_path, overwrite=True) == files
    assert files[0].read_bytes() == before


def test_samples_and_doubles_are_refused(result, tmp_path):
    with pytest.raises(ValueError, match="parquet"):
        write_products(xsoilsm.retrieve(sample_cube()), tmp_path)
    twice = result.isel(time=[0, 0])
    with pytest.raises(ValueError, match="two maps"):
        write_products(twice, tmp_path)
    assert not list(tmp_path.iterdir())


def test_quicklook_is_a_picture(result, tmp_path):
    one = result.isel(time=0).compute()
    truth = one.soil_moisture * 0.9
    path = quicklook([one, one], tmp_path / "a" / "q.png", truths=[truth, truth], title="SIMULATED")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    assert quicklook([one], tmp_path / "b.png").exists()
