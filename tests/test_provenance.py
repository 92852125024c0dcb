"""Licences and citations of the sources stay with the data, to the last file."""

from __future__ import annotations

from pathlib import Path

import pytest
import rasterio
from synthetic import map_cube

LICENCE = "sentinel-1-rtc: CC-BY-4.0; era5-land-v0.zarr: CC-BY-4.0 (Copernicus)"
CITATION = "Didan, K. (2021), MOD13Q1; Poggio, L. et al. (2021), SoilGrids 2.0"


@pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")
@pytest.mark.parametrize("res", [None, "9km"])
def test_licences_travel_from_the_cube_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_dir: Path, res: str | None
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    cube = map_cube((9, 9), times=("2020-04-02T06:20",))
    cube = cube.assign_attrs(licence=LICENCE, citation=CITATION)
    result = cube.sm.retrieve(res=res)
    assert result.attrs["licence"] == LICENCE
    assert result.attrs["citation"] == CITATION
    files = result.sm.to_cog(tmp_path)
    assert files
    for file in files:
        with rasterio.open(file) as written:
            tags = written.tags()
        assert tags["licence"] == LICENCE
        assert tags["citation"] == CITATION
