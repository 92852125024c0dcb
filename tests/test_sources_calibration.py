from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from grd_scene import noise_power, real_files, sigma_nought_table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from xsoilsm.sources.sentinel1.calibration import (
    AzimuthBlock,
    Calibration,
    LookupTable,
    Noise,
    calibrate,
    to_decibel,
)

SHAPE = (16676, 26144)
"""Lines and pixels of the real image."""

WINDOWS = [
    (0, 0, 40, 60),
    (650, 8700, 60, 120),  # across a calibration vector and the seam of IW1 and IW2
    (13330, 17500, 30, 120),  # the seam of IW2 and IW3
    (16600, 26000, 76, 144),  # the last line and pixel
]


@pytest.fixture
def files(shared: Path) -> dict[str, Path]:
    return real_files(shared)


def read(files: dict[str, Path], polarisation: str) -> Calibration:
    names = [
        files[f"calibration/{kind}-iw-{polarisation}.xml"] for kind in ("calibration", "noise")
    ]
    return Calibration.parse(names[0].read_bytes(), names[1].read_bytes())


def pixels_of(window: tuple[int, int, int, int]) -> tuple[Any, Any]:
    line, pixel, height, width = window
    return np.meshgrid(line + np.arange(height), pixel + np.arange(width), indexing="ij")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("polarisation", ["vv", "vh"])
def test_values_equal_an_independent_evaluation(
    files: dict[str, Path], polarisation: str, window: tuple[int, int, int, int]
) -> None:
    line, pixel = pixels_of(window)
    numbers = np.random.default_rng(1).integers(1, 900, line.shape).astype(np.uint16)
    scale = sigma_nought_table(files[f"calibration/calibration-iw-{polarisation}.xml"])
    noise = noise_power(files[f"calibration/noise-iw-{polarisation}.xml"], line, pixel)
    power = np.maximum(numbers.astype(np.float64) ** 2 - noise, 0) / scale((line, pixel)) ** 2
    calibration = read(files, polarisation)
    sigma0, quantum = calibrate(numbers, calibration, *window[:2])
    # Rounding of float32, in the difference of digital number and noise.
    np.testing.assert_allclose(sigma0, power, rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(quantum, scale((line, pixel)) ** -2, rtol=2e-6)
    found = calibration.noise(*window[:2], line.shape)
    np.testing.assert_allclose(found, noise, rtol=2e-6)


def test_noise_jumps_where_sub_swaths_meet(files: dict[str, Path]) -> None:
    noise = read(files, "vh").noise(0, 0, (2, SHAPE[1]))
    jumps = np.abs(np.diff(noise[0])) / noise[0, :-1].clip(1)
    # The first sample of IW2 and of IW3, and no other: the edges of blocks belong to one side.
    assert sorted(np.argsort(jumps[:25000])[-2:].tolist()) == [8759, 17560]
    assert jumps[8759] > 0.1
    assert jumps[17560] > 0.2


def test_noise_is_between_22_and_30_db_below(files: dict[str, Path]) -> None:
    calibration = read(files, "vh")
    # The last samples of the real table hold no noise.
    noise = calibration.noise(8000, 0, (1, 25000))
    scale = calibration.sigma_nought(8000, 0, (1, 25000))
    level = 10 * np.log10(noise / scale**2)
    assert -30 < level.min() < level.max() < -20
    # What is left in when it is not removed, at -20 dB.
    excess = 10 * np.log10((0.01 + 10 ** (level / 10)) / 0.01)
    assert 1.0 < np.median(excess) < 2.5


def old_format(files: dict[str, Path]) -> tuple[bytes, list[tuple[int, Any, Any]]]:
    """Give the real noise as products before 2018 hold it; pixels differ from line to line."""
    root = ET.Element("noise")
    vectors = ET.SubElement(root, "noiseVectorList")
    known = []
    real = ET.parse(files["calibration/noise-iw-vh.xml"]).getroot().iter("noiseRangeVector")
    for k, vector in enumerate(real):
        line = int(str(vector.findtext("line"))) - 300  # the first lies before the image
        pixel, values = (
            np.array(str(vector.findtext(name)).split(), float)
            for name in ("pixel", "noiseRangeLut")
        )
        kept = np.unique(np.r_[0, np.arange(k % 3, pixel.size, 2), pixel.size - 1])
        known.append((line, pixel[kept], values[kept]))
        one = ET.SubElement(vectors, "noiseVector")
        ET.SubElement(one, "line").text = str(line)
        ET.SubElement(one, "pixel").text = " ".join(f"{p:.0f}" for p in pixel[kept])
        ET.SubElement(one, "noiseLut").text = " ".join(f"{v:.6e}" for v in values[kept])
    return ET.tostring(root), known


def test_noise_of_old_products(files: dict[str, Path]) -> None:
    content, known = old_format(files)
    noise = Noise.parse(content, "old.xml")
    assert not noise.blocks
    window = (340, 8700, 80, 130)
    line, pixel = pixels_of(window)
    (above,) = [k for k, (at, _, _) in enumerate(known) if at <= 367 < known[k + 1][0]]
    rows = {at: np.interp(pixel[0], p, v) for at, p, v in known[above - 1 : above + 2]}
    grid = RegularGridInterpolator((list(rows), pixel[0]), np.array(list(rows.values())))
    np.testing.assert_allclose(noise(*window[:2], line.shape), grid((line, pixel)), rtol=2e-6)


@pytest.mark.parametrize("power", [1, 2])
def test_noise_of_the_first_processors_is_scaled(files: dict[str, Path], power: int) -> None:
    content, known = old_format(files)
    calibration = files["calibration/calibration-iw-vh.xml"].read_bytes()
    number = float(str(ET.fromstring(calibration).findtext(".//dn")).split()[0])
    hrefs = "calibration.xml", "noise.xml"
    wanted = Calibration.parse(calibration, content, hrefs).noise(340, 8700, (80, 130))
    assert wanted.min() > 100

    def divided(factor: float) -> bytes:
        root = ET.fromstring(content)
        for one, (_, _, values) in zip(root.iter("noiseLut"), known, strict=True):
            one.text = " ".join(f"{v / factor:.6e}" for v in values)
        return ET.tostring(root)

    small = Calibration.parse(calibration, divided(75088.7 * number**power), hrefs)
    np.testing.assert_allclose(small.noise(340, 8700, (80, 130)), wanted, rtol=2e-6)
    with pytest.raises(OSError, match=r"noise\.xml: its noise of at most .* is not in squares"):
        Calibration.parse(calibration, divided(1e5), hrefs)


def test_blocks_along_azimuth_hold_their_edges() -> None:
    table = LookupTable(
        np.array([0.0, 100.0]), (np.array([0.0, 50.0]),) * 2, (np.array([100.0, 100.0]),) * 2
    )
    blocks = (
        AzimuthBlock((0, 9), (0, 19), np.array([0.0, 9.0]), np.array([1.0, 1.9])),
        AzimuthBlock((10, 19), (0, 19), np.array([12.0]), np.array([3.0])),
        AzimuthBlock((0, 19), (20, 29), np.array([5.0, 15.0]), np.array([5.0, 6.0])),
    )
    noise = Noise(table, blocks)(0, 0, (25, 40))
    expected = np.full((25, 40), 100.0)
    expected[:10, :20] *= (1 + 0.1 * np.arange(10))[:, None]
    expected[10:20, :20] = 300
    expected[:20, 20:30] *= np.interp(np.arange(20), [5, 15], [5, 6])[:, None]
    np.testing.assert_allclose(noise, expected, rtol=1e-6)
    # Any window sees the same.
    np.testing.assert_array_equal(Noise(table, blocks)(7, 15, (10, 20)), noise[7:17, 15:35])


def test_windows_are_parts_of_the_whole(files: dict[str, Path]) -> None:
    calibration = read(files, "vv")
    numbers = np.random.default_rng(2).integers(0, 500, (90, 120)).astype(np.uint16)
    whole, _ = calibrate(numbers, calibration, 640, 8700)
    part, _ = calibrate(numbers[20:50, 30:90], calibration, 660, 8730)
    np.testing.assert_allclose(part, whole[20:50, 30:90], rtol=3e-7)


def test_zeros_are_no_data_and_noise_leaves_a_floor(files: dict[str, Path]) -> None:
    calibration = read(files, "vh")
    numbers = np.array([[0, 1, 20, 60, 400]], dtype=np.uint16)
    sigma0, quantum = calibrate(numbers, calibration, 5000, 13000)
    assert np.isnan(sigma0[0, 0])
    assert (sigma0[0, 1:3] == 0).all()  # noise is above a digital number of 30 here
    assert (sigma0[0, 3:] > 0).all()
    decibel = to_decibel(sigma0, quantum)
    assert np.isnan(decibel[0, 0])
    assert np.isfinite(decibel[0, 1:]).all()
    np.testing.assert_allclose(decibel[0, 1:3], 10 * np.log10(quantum[0, 1:3]), atol=1e-5)
    np.testing.assert_allclose(decibel[0, 3:], 10 * np.log10(sigma0[0, 3:]), atol=1e-5)
    assert -58 < decibel[0, 1] < -46


def test_noise_that_was_removed_already_stays_removed(files: dict[str, Path]) -> None:
    content = files["calibration/calibration-iw-vh.xml"].read_bytes()
    calibration = Calibration.parse(content, None)
    numbers = np.full((2, 3), 30, dtype=np.uint16)
    sigma0, quantum = calibrate(numbers, calibration, 100, 100)
    np.testing.assert_allclose(sigma0, 900 * quantum, rtol=1e-6)


def test_a_table_of_zeros_gives_no_value() -> None:
    table = LookupTable(np.array([0.0]), (np.array([0.0, 9.0]),), (np.array([0.0, 9.0]),))
    sigma0, quantum = calibrate(np.ones((1, 3), np.uint16), Calibration(table, Noise(None)))
    assert np.isnan(sigma0[0, 0])
    assert np.isnan(to_decibel(sigma0, quantum)[0, 0])
    np.testing.assert_allclose(sigma0[0, 1:], [1, 0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<product/>", r"x\.xml holds no vectors of sigmaNought"),
        (b"<calibration><calibrationVector/></calibration>", r"lacks one of line, pixel and"),
        (
            b"<c><calibrationVector><line>0</line><pixel>0 5 5</pixel>"
            b"<sigmaNought>1 2 3</sigmaNought></calibrationVector></c>",
            r"line 0 has 3 pixels and 3 values .* increasing",
        ),
        (b"<!DOCTYPE html><p>403", r"x\.xml is not a Sentinel-1 annotation"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(OSError, match=message):
        Calibration.parse(content, None, ("x.xml", "y.xml"))


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_tables_are_bilinear(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    lines = np.sort(rng.choice(200, data.draw(st.integers(2, 6)), replace=False)).astype(float)
    pixels = np.sort(rng.choice(300, data.draw(st.integers(2, 8)), replace=False)).astype(float)
    values = rng.uniform(1, 9, (lines.size, pixels.size))
    table = LookupTable(lines, (pixels,) * lines.size, tuple(values))
    line, pixel = int(rng.integers(0, 150)), int(rng.integers(0, 250))
    window = table(line, pixel, (60, 50))
    at = np.meshgrid(
        np.clip(line + np.arange(60), lines[0], lines[-1]),
        np.clip(pixel + np.arange(50), pixels[0], pixels[-1]),
        indexing="ij",
    )
    expected = RegularGridInterpolator((lines, pixels), values)(tuple(at))
    np.testing.assert_allclose(window, expected, rtol=2e-6)


# -- what the networks were trained with ---------------------------------------------------------


@pytest.fixture
def earth_engine(shared: Path) -> tuple[Any, Any]:
    """Read VV and VH in dB of a real image of Earth Engine, exported on a grid of degrees."""
    import rasterio

    (path,) = (shared / "data" / "sar").glob("Sen1Floods11_Spain_*.tif")
    with rasterio.open(path) as file:
        vv, vh = file.read().astype(np.float64)
        step = abs(file.transform.e)
    assert step * 110.99e3 == pytest.approx(9.97, abs=0.01)  # m from north to south
    return vv, vh


def test_there_pixels_were_interpolated(earth_engine: tuple[Any, Any]) -> None:
    vv, _ = earth_engine
    # The export copies pixels of 10 m to rows 9.97 m apart: three of a thousand twice. Copies of
    # native pixels, on lines 10 m apart and turned by 10 degrees, would repeat another hundredth.
    assert 0.002 < np.mean(vv[1:] == vv[:-1]) < 0.0035


def test_there_noise_leaves_a_floor(earth_engine: tuple[Any, Any]) -> None:
    _, vh = earth_engine
    row, column = np.nonzero(vh < -47.03)
    design = np.stack([np.ones(row.size), row, column], axis=1)
    error = np.zeros(row.size)
    for bound in (1.0, 1e-3, 1e-4):  # some are a little brighter than the floor
        near = np.abs(error) < bound
        plane, *_ = np.linalg.lstsq(design[near], vh[row, column][near], rcond=None)
        error = vh[row, column] - design @ plane
    # Nothing is masked; what is darker than noise stands on a plane over the image, which falls
    # towards near range (here in the east) as one over the square of the calibration does.
    assert np.isfinite(vh).all()
    assert (np.abs(error) < 5e-5).sum() > 200
    assert error.min() > -5e-5
    assert -0.025 < plane[2] * vh.shape[1] < -0.008
