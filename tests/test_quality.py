"""Quality flags: conditions, thresholds, masks, and what a result says of them."""

import re
from dataclasses import fields
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import as_samples, map_cube

import xsoilsm
from xsoilsm.catalog import CatalogError, catalogs_dir
from xsoilsm.cube import VARIABLES, InputFlag, SourceFlag
from xsoilsm.quality import QualityFlag, Thresholds, describe, flag_names, missing_inputs, name_of
from xsoilsm.retrieval import MaskWarning
from xsoilsm.thresholds import get_thresholds, mask_bits, quality_facts, read_facts

pytestmark = pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")

OPTIONAL = {
    "coverage": (0, 1),
    "source_flags": (0, 128),
    "ndvi_filled": (0, 2),
    "inputs_failed": (0, 31),
    "water_fraction": (0, 0.1),
    "built_fraction": (0, 0.4),
    "tree_fraction": (0, 1),
    "snow_ice_fraction": (0, 0.1),
    "soil_temperature": (-3, 3),
    "snow_cover": (0, 0.1),
}


@pytest.fixture(scope="module", autouse=True)
def weights(weights_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
        yield


def full_cube(seed=0, shape=(6, 5)):
    """Cube with all optional variables, around the thresholds, and gaps in some of them."""
    rng = np.random.default_rng(seed)
    cube = map_cube(shape, seed=seed)
    for name, (low, high) in OPTIONAL.items():
        dims = VARIABLES[name].dims
        size = [cube.sizes[d] for d in dims]
        if name == "source_flags":  # failed reads are rare
            values = rng.integers(low, high, size).astype(np.uint8)
            values &= np.where(rng.random(size) < 0.1, 255, 255 - SourceFlag.READ_FAILED).astype(
                "u1"
            )
        elif name == "ndvi_filled":
            values = rng.choice([0, 1, 2], size, p=[0.82, 0.178, 0.002]).astype(np.uint8)
        elif name == "inputs_failed":
            values = rng.choice([0, 1, 2, 9], size, p=[0.5, 0.4, 0.05, 0.05]).astype(np.uint8)
        else:
            values = rng.uniform(low, high, size).astype(np.float32)
        cube[name] = (dims, values, VARIABLES[name].attributes)
    cold = rng.random(cube.ndvi.shape) < 0.2
    cube["ndvi"] = cube.ndvi.where(~cold, -0.05).assign_attrs(units="1")
    cube["slope"] = (cube.slope * 1.6).assign_attrs(units="degree")
    for name in ("soil_temperature", "snow_cover", "water_fraction"):
        known = rng.random(cube[name].shape) < 0.6
        cube[name] = cube[name].where(known).assign_attrs(units=VARIABLES[name].units)
    cube["sigma0_vv"][0, 1, 1] = np.nan
    cube["sigma0_vv"].attrs |= {"sigma0_from": "rtc-slope"}
    cube["coverage"][0, 2, 2] = 0
    return cube


def has(result, flag):
    return (result.quality_flag.values & int(flag)) != 0


def expected(cube):
    """Evaluate every condition by xarray, cell by cell and date by date."""
    limit = get_thresholds()
    latest = cube.period.searchsorted(cube.time, side="right") - 1
    ndvi, air = (cube[n].isel(period=latest).values for n in ("ndvi", "air_temperature"))
    soil, snow = cube.soil_temperature.values, cube.snow_cover.values
    filled = np.stack([cube.ndvi_filled.values[end - 45 : end + 1] for end in latest])
    ones = np.ones(cube.sigma0_vv.shape, bool)
    source = cube.source_flags.values
    return {
        "frozen_ground": np.where(
            np.isnan(soil), air < limit.frozen_air_temperature, soil < limit.frozen_soil_temperature
        ),
        "snow": np.where(
            np.isnan(snow),
            (ndvi < limit.snow_ndvi) & (air < limit.snow_air_temperature),
            snow > limit.snow_cover,
        )
        | (cube.snow_ice_fraction.values > limit.snow_ice_fraction),
        "open_water": ones & (cube.water_fraction.values > limit.water_fraction),
        "built_up": ones & (cube.built_fraction.values > limit.built_fraction),
        "dense_vegetation": (ndvi > limit.dense_ndvi)
        | (cube.tree_fraction.values > limit.tree_fraction),
        "steep_slope": (cube.slope.values > limit.slope)
        | ((source & SourceFlag.UNRELIABLE_SIGMA0) > 0),
        "low_coverage": (cube.coverage.values > 0) & (cube.coverage.values < limit.coverage),
        "series_filled": (filled > 0).sum(axis=1) > limit.filled_steps,
        "read_failed": (filled == 2).any(axis=1)
        | ((source & SourceFlag.READ_FAILED) > 0)
        | (cube.inputs_failed.values & ~np.uint8(InputFlag.NDVI) > 0),
        "no_scene": (source & SourceFlag.NO_SCENE) > 0,
        "approximate_sigma0": (source & SourceFlag.APPROXIMATE_SIGMA0) > 0,
        "layover_shadow": (source & SourceFlag.LAYOVER_SHADOW) > 0,
        "nan_input": np.isnan(cube.sigma0_vv.values),
    }


@given(st.integers(0, 1000))
@settings(max_examples=4)
def test_every_flag_follows_its_rule(seed):
    cube = full_cube(seed)
    result = cube.sm.retrieve()
    for name, where in expected(cube).items():
        assert np.array_equal(has(result, mask_bits(name)), where), name
    assert result.quality_flag.attrs["flags_not_evaluated"] == ""


def test_the_cube_of_these_tests_meets_every_condition():
    where = expected(full_cube())
    assert all(values.any() and not values.all() for values in where.values())


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=4)
def test_flags_and_layers_do_not_depend_on_chunks(cy, cx, ct):
    cube = full_cube()
    eager = cube.sm.retrieve(domain=True)
    lazy = cube.chunk(y=cy, x=cx, time=ct, period=7).sm.retrieve(domain=True)
    computed = lazy.compute(scheduler="synchronous")
    assert np.array_equal(computed.quality_flag, eager.quality_flag)
    assert np.array_equal(computed.clipped_inputs, eager.clipped_inputs)
    np.testing.assert_allclose(computed.domain_distance, eager.domain_distance, rtol=1e-6)
    assert (
        computed.quality_flag.attrs["flags_evaluated_from"]
        == (eager.quality_flag.attrs["flags_evaluated_from"])
    )


def test_maps_and_samples_have_the_same_flags():
    cube = full_cube()
    table = xsoilsm.retrieve(as_samples(cube), res="1km")
    assert np.array_equal(table.quality_flag, cube.sm.retrieve().quality_flag.values.ravel())
    lazy = xsoilsm.retrieve(as_samples(cube).chunk(sample=11), res="1km")
    assert np.array_equal(lazy.quality_flag, table.quality_flag)


def test_flags_add_no_task_of_their_own():
    cube = full_cube(shape=(8, 8))
    for name, data in cube.data_vars.items():
        chunks = [3 if d in ("y", "x") else 1 if d == "time" else -1 for d in data.dims]
        lazy = da.map_blocks(
            np.asarray, da.ones(data.shape, chunks=chunks, dtype=data.dtype), dtype=data.dtype
        )
        cube[name] = (data.dims, lazy, data.attrs)

    def tasks(**options):
        flags = cube.sm.retrieve(**options).quality_flag.data
        (optimized,) = dask.optimize(flags)
        return len(dict(optimized.__dask_graph__()))

    off = dict.fromkeys(field.name for field in fields(Thresholds))
    # Marks of filled steps are a series, and every series is one task per chunk of cells.
    assert tasks(domain=True) == tasks(thresholds=off) + 9
    assert tasks(domain=True, thresholds={"filled_steps": None}) == tasks(thresholds=off)


# --------------------------------------------------------------------------- honesty


def test_flags_without_inputs_are_named_as_not_evaluated():
    bare = map_cube().sm.retrieve().quality_flag
    unknown = bare.attrs["flags_not_evaluated"].split()
    assert unknown == [
        "no_scene",
        "read_failed",
        "low_coverage",
        "series_filled",
        "approximate_sigma0",
        "open_water",
        "built_up",
        "layover_shadow",
    ]
    said = bare.attrs["flags_evaluated_from"]
    assert "frozen_ground: air_temperature < 0.85 unless soil_temperature is known" in said
    assert "out_of_domain: domain distance > 2.5" in said
    assert not set(unknown) & {entry.split(":")[0] for entry in said.split("; ")}
    assert set(missing_inputs(set(map_cube().data_vars))) == set(unknown)


@pytest.mark.parametrize(
    ("forms", "known"),
    [("grd", ""), ("rtc-flat", ""), ("rtc-slope", "source_flags"), ("rtc-area", "source_flags"),
     ("grd rtc-slope", "source_flags of rtc-slope alone")],
)  # fmt: skip
def test_layover_is_known_only_from_forms_that_look_for_it(forms, known):
    cube = full_cube()
    cube["sigma0_vv"].attrs["sigma0_from"] = forms
    attrs = cube.sm.retrieve().quality_flag.attrs
    assert ("layover_shadow" in attrs["flags_not_evaluated"].split()) == (not known)
    assert (f"layover_shadow: {known}" in attrs["flags_evaluated_from"].split("; ")) == bool(known)


def test_a_failed_composite_counts_for_the_acquisitions_that_see_it():
    cube = map_cube()
    cube["ndvi_filled"] = (cube.ndvi.dims, np.zeros(cube.ndvi.shape, np.uint8), {"units": "1"})
    cube["inputs_failed"] = (("y", "x"), np.zeros((6, 5), np.uint8), {"units": "1"})
    cube["ndvi_filled"][1, 2, 2] = 2
    sees = cube.period.searchsorted(cube.time, side="right") - 1 - 45 <= 1
    assert sees.tolist() == [True, True, False]
    cube["inputs_failed"][2, 2] = InputFlag.NDVI
    cube["inputs_failed"][3, 3] = InputFlag.SOIL | InputFlag.NDVI
    failed = has(cube.sm.retrieve(), QualityFlag.READ_FAILED)
    assert np.array_equal(failed[:, 2, 2], sees)
    assert failed[:, 3, 3].all()
    assert failed.sum() == 5
    without = has(cube.drop_vars("ndvi_filled").sm.retrieve(), QualityFlag.READ_FAILED)
    assert without[:, 2, 2].all()


def test_a_threshold_of_none_switches_off_and_reads_nothing():
    def never(*_args, **_kwargs):
        pytest.fail("an input that no flag needs was read")

    cube = full_cube().chunk(y=3)
    unread = da.map_blocks(never, cube.water_fraction.data, dtype="f4", meta=np.empty((0, 0), "f4"))
    cube["water_fraction"] = (("y", "x"), unread, cube.water_fraction.attrs)
    result = cube.sm.retrieve(thresholds={"water_fraction": None})
    assert not has(result, QualityFlag.OPEN_WATER).any()
    assert "open_water" in result.quality_flag.attrs["flags_not_evaluated"].split()


def test_silence_of_a_cube_on_flags_is_told(caplog):
    from xsoilsm.checks import assumptions

    told = assumptions(map_cube())
    assert any("'open_water' is not evaluated" in t and "water_fraction" in t for t in told)
    full = full_cube()
    for name in ("sigma0_vv", "sigma0_vh"):
        full[name].attrs |= {"sigma0_from": "given", "averaging": "dB"}
    assert assumptions(full) == []


def test_check_explains_a_result():
    cube = full_cube()
    table = cube.sm.retrieve(domain=True).sm.check()
    assert list(table.columns) == ["variable", "found", "expected", "remedy"]
    flags = table[table.variable == "quality_flag"].found
    water = flags[flags.str.contains("open_water")].item()
    share = np.broadcast_to(cube.water_fraction > 0.05, (3, 6, 5)).mean()
    assert f"{share:.1%}" in water
    spread = table[table.variable == "soil_moisture_std"].remedy.item()
    assert "not an error" in spread
    assert set(table.variable) > {"domain_distance", "clipped_inputs"}
    bare = map_cube().sm.retrieve().sm.check()
    assert bare.found.str.contains("was not evaluated for open_water").any()
    lazy = cube.chunk(y=3).sm.retrieve().sm.check()
    assert "not computed" in lazy.found.item()


# --------------------------------------------------------------------------- masks


def test_the_default_mask_blanks_what_the_publication_calls_invalid():
    assert mask_bits("default") == QualityFlag.OUT_OF_RANGE
    cube = full_cube()
    result = cube.sm.retrieve()
    assert result.attrs["masked_flags"] == "out_of_range"
    kept = cube.sm.retrieve(mask=None)
    assert kept.attrs["masked_flags"] == ""
    assert np.array_equal(kept.quality_flag, result.quality_flag)
    valid = ~has(result, QualityFlag.OUT_OF_RANGE | QualityFlag.NAN_INPUT)
    for name in ("soil_moisture", "soil_moisture_std"):
        assert np.array_equal(result[name].values[valid], kept[name].values[valid])


@given(st.sets(st.sampled_from(list(QualityFlag)), max_size=4), st.booleans())
@settings(max_examples=8)
def test_a_mask_blanks_exactly_the_flagged_cells(flags, as_names):
    cube = full_cube()
    plain = cube.sm.retrieve(mask=None)
    mask = [name_of(f) for f in flags] if as_names else flags
    result = cube.sm.retrieve(mask=mask)
    blank = has(plain, sum(flags)) | has(plain, QualityFlag.NAN_INPUT)
    for name in ("soil_moisture", "soil_moisture_std"):
        assert np.array_equal(np.isnan(result[name]), blank)
        assert np.array_equal(result[name].values[~blank], plain[name].values[~blank])
    assert np.array_equal(result.quality_flag, plain.quality_flag)
    assert result.attrs["masked_flags"].split() == flag_names(sum(flags))


def test_a_mask_that_cannot_work_is_told():
    with pytest.warns(MaskWarning, match="names open_water, .* add water_fraction") as caught:
        map_cube().sm.retrieve(mask=["default", "open_water"])
    assert caught[0].filename == __file__
    full_cube().sm.retrieve(mask="strict")
    with pytest.raises(ValueError, match=r"mask names 'clouds'; expected .*snow.*default, strict"):
        map_cube().sm.retrieve(mask="clouds")


# --------------------------------------------------------------------------- thresholds


def test_a_users_threshold_decides():
    cube = full_cube()
    result = cube.sm.retrieve(thresholds={"water_fraction": 0.02, "filled_steps": 100})
    water = np.broadcast_to(cube.water_fraction.values > 0.02, result.soil_moisture.shape)
    assert np.array_equal(has(result, QualityFlag.OPEN_WATER), water)
    assert not has(result, QualityFlag.SERIES_FILLED).any()
    assert "water_fraction > 0.02" in result.quality_flag.attrs["flags_evaluated_from"]
    whole = get_thresholds({"water_fraction": 0.02, "filled_steps": 100})
    again = cube.sm.retrieve(thresholds=whole)
    assert np.array_equal(result.quality_flag, again.quality_flag)


def test_wrong_thresholds_are_named():
    with pytest.raises(ValueError, match=r"unknown threshold 'water'.*water_fraction"):
        map_cube().sm.retrieve(thresholds={"water": 0.1})
    for value in (np.nan, np.inf, True, "0.1"):
        with pytest.raises(ValueError, match=r"threshold slope is .* finite number, or None"):
            get_thresholds({"slope": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["thresholds"].pop("slope"), "missing slope"),
        (lambda c: c["thresholds"].update(wind=c["thresholds"]["slope"]), "unknown wind"),
        (lambda c: c["thresholds"]["slope"].pop("source"), "thresholds.slope.source"),
        (lambda c: c["thresholds"]["slope"].update(value="20"), "thresholds.slope.value"),
        (lambda c: c["thresholds"]["slope"].update(flag="hills"), "unknown quality flag 'hills'"),
        (lambda c: c["masks"]["strict"]["flags"].append("fog"), "unknown quality flag 'fog'"),
        (lambda c: c["masks"].pop("default"), "'default' has to be there"),
        (lambda c: c.update(colour="red"), "colour"),
    ],
)
def test_the_file_of_thresholds_is_checked_strictly(tmp_path, change, message):
    content = yaml.safe_load((catalogs_dir() / "quality" / "thresholds.yaml").read_text("utf-8"))
    change(content)
    path = tmp_path / "quality.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(CatalogError, match=re.escape(message)):
        read_facts(path)
    with pytest.raises(CatalogError, match="cannot read"):
        read_facts(tmp_path / "absent.yaml")


def test_the_documentation_names_every_flag_and_threshold():
    text = (Path(__file__).parents[1] / "docs" / "quality.md").read_text("utf-8")
    rows = [[c.strip(" `") for c in line.split("|")[1:-1]] for line in text.splitlines()]
    table = {row[0]: row for row in rows if len(row) > 1}
    for flag in QualityFlag:
        assert table[name_of(flag)][1] == str(int(flag))
    for name, fact in quality_facts().thresholds.items():
        assert float(table[name][1]) == fact.value
        assert table[name][3] == fact.flag


def test_values_are_described_in_words():
    assert describe(0) == []
    assert describe(int(QualityFlag.SNOW | QualityFlag.NO_SCENE)) == [
        "no_scene: no acquisition covers the cell",
        "snow: the ground is covered with snow",
    ]
