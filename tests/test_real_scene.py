"""A real Sentinel-1 scene through the published networks: a check of response, not of accuracy.

The scene shows fields and open water in south-east Spain days after a flood (2019-09-17).
Everything but the backscatter is a stated constant or a stated climatology.
"""

import numpy as np
import pytest
import rasterio
import xarray as xr
from exactextract import exact_extract
from odc.geo.geobox import GeoBox

import xsoilsm
from xsoilsm import grid, periods
from xsoilsm.cube import VARIABLES, spatial_coords
from xsoilsm.quality import QualityFlag
from xsoilsm.regrid import area_mean

CONSTANTS = {  # of a semi-arid plain
    "incidence_angle": 38.5,
    "sand": 40.0,
    "clay": 25.0,
    "bulk_density": 1.35,
    "elevation": 150.0,
    "slope": 2.0,
    "aspect_sin": 0.0,
    "aspect_cos": 0.0,
}
TIME = np.array(["2019-09-17T06:11"], "datetime64[ns]")


def climatology(period):
    """NDVI, temperature and rain of a semi-arid Mediterranean year, by day of year."""
    angle = 2 * np.pi * (period.astype("datetime64[D]") - period.astype("datetime64[Y]")) / 365.25
    angle = angle.astype(float)
    return {
        "ndvi": 0.30 + 0.08 * np.cos(angle - 2 * np.pi * 100 / 365),
        "air_temperature": 18.0 + 8.5 * np.cos(angle - 2 * np.pi * 210 / 365),
        "precipitation": 0.0066 * (1 + 0.5 * np.cos(angle - 2 * np.pi * 320 / 365)),
    }


@pytest.fixture(scope="module")
def chip(shared):
    return shared / "data/sar/Sen1Floods11_Spain_7370579_S1Hand.tif"


@pytest.fixture(scope="module")
def cells(chip):
    """Decibel means on the 100 m cells that the chip covers whole."""
    from odc.geo.xr import wrap_xr

    with rasterio.open(chip) as file:
        pixels = file.read()
        box = GeoBox(file.shape, file.transform, file.crs)
        bounds = tuple(file.bounds)
    source = xr.concat([wrap_xr(band, box, nodata=np.nan) for band in pixels], "band")
    inner = (bounds[0] + 0.002, bounds[1] + 0.002, bounds[2] - 0.002, bounds[3] - 0.002)
    geobox = xsoilsm.ease2_geobox(inner, "100m")
    mean, coverage = area_mean(source, geobox)
    return geobox, mean, coverage


def test_decibel_means_equal_exactextract(chip, cells):
    geobox, mean, coverage = cells
    found, rows, columns = grid.grid_of(geobox)
    polygons, places = [], []
    for i in range(geobox.shape[0]):
        for j in range(geobox.shape[1]):
            left, right = found.left(columns[0] + j), found.left(columns[0] + j + 1)
            top, bottom = found.top(rows[0] + i), found.top(rows[0] + i + 1)
            # Edges of EASE-Grid 2.0 cells are parallels and meridians, so four corners are exact.
            (west, east), (north, south) = grid.xy_to_lonlat([left, right], [top, bottom])
            ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
            polygons.append(
                {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
            )
            places.append((i, j))
    truth = exact_extract(str(chip), polygons, ["mean"])
    for band, name in enumerate(("band_1_mean", "band_2_mean")):
        expected = np.array([feature["properties"][name] for feature in truth])
        got = np.array([float(mean[band, i, j]) for i, j in places])
        full = np.array([float(coverage[band, i, j]) > 0.999 for i, j in places])
        assert full.sum() >= 500
        rms = np.sqrt(np.mean(((got - expected) / expected)[full] ** 2))
        assert rms < 1e-4


@pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")
def test_networks_respond_to_a_real_scene(cells, weights_dir, monkeypatch):
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    geobox, mean, coverage = cells
    period = periods.period_starts(periods.preceding_period(TIME[0], 45), TIME[0])
    shape = geobox.shape
    data = {
        "sigma0_vv": mean[0].values[None],
        "sigma0_vh": mean[1].values[None],
        "incidence_angle": np.full((1, *shape), CONSTANTS["incidence_angle"]),
        "coverage": coverage[0].values[None],
    }
    for name, values in climatology(period).items():
        data[name] = np.broadcast_to(values[:, None, None], (period.size, *shape))
    data |= {n: np.full(shape, v) for n, v in CONSTANTS.items() if n != "incidence_angle"}
    cube = xr.Dataset(
        {n: (VARIABLES[n].dims, v.astype("f4"), VARIABLES[n].attributes) for n, v in data.items()},
        coords={
            "time": TIME,
            "period": period.astype("datetime64[ns]"),
            **spatial_coords(geobox),
        },
    )
    result = cube.sm.retrieve(keep_invalid=True)
    moisture = result.soil_moisture.values[0]
    assert moisture.size >= 1500
    assert np.isfinite(moisture).all()
    assert ((moisture >= 0) & (moisture <= 0.6)).all()
    assert not (result.quality_flag.values & int(QualityFlag.OUT_OF_RANGE)).any()
    r = np.corrcoef(moisture.ravel(), mean[0].values.ravel())[0, 1]
    assert r >= 0.8
