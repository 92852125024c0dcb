"""Jobs: what they are made of, that they go on where they ended, and that they never mix."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import loopback
import mapping_scene
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from mapping_scene import TILES, begin, degrees_of, files_of, places_of
from sources_world import BBOX as WORLD
from sources_world import World

from xsoilsm.catalog import CatalogError, open_catalog
from xsoilsm.cog import verify_cog
from xsoilsm.mapping import Job, JobError, open_job, run_job, verify_job
from xsoilsm.mapping.composite import Composite
from xsoilsm.mapping.inputs import narrowed, read_entries
from xsoilsm.mapping.plan import UNIT_ACQUISITIONS, Plan
from xsoilsm.mapping.tile import make_unit
from xsoilsm.quality import QualityFlag
from xsoilsm.sources.access.search import find_items

pytestmark = pytest.mark.usefixtures("scene")
VARIABLES = ("soil_moisture", "soil_moisture_std", "quality_flag")


# --------------------------------------------------------------------------- the whole way


def test_a_job_maps_every_tile_of_every_acquisition(
    undisturbed: tuple[Job, dict[str, bytes]],
) -> None:
    job, files = undisturbed
    plan = Plan(job)
    assert len(plan.products) == len(job.acquisitions) == 2
    assert len(plan.tiles) == 2
    expected = {
        f"tiles/{product.id}/{tile}/{name}.tif"
        for product in plan.products
        for tile in plan.tiles
        for name in VARIABLES
    }
    assert set(files) == expected
    for name in files:
        verify_cog(job.folder / name)


def test_processes_go_along_rows_of_tiles_side_by_side(tmp_path: Path) -> None:
    west, south, east, north = mapping_scene.BBOX
    job = begin(tmp_path / "job", tile_size=1, region=(west, south - 0.02, east, north + 0.02))
    plan = Plan(job)
    places = {(tile.row, tile.column) for tile in plan.tiles.values()}
    rows, columns = (sorted(set(numbers)) for numbers in zip(*places, strict=True))
    assert len(rows) >= 4
    assert len(columns) >= 3

    def order(abreast: int) -> list[tuple[int, int]]:
        units = plan.units(lambda *_: True, job.ensemble(), abreast)
        return [(plan.tiles[u.tile].row, plan.tiles[u.tile].column) for u in units]

    assert order(1) == [(row, column) for row in rows for column in columns]
    bands = [[row for row in rows if row // 2 == band] for band in sorted({r // 2 for r in rows})]
    assert order(2) == [(row, c) for band in bands for c in columns for row in band]


def test_tiles_hold_what_a_cube_of_the_region_gives(
    undisturbed: tuple[Job, dict[str, bytes]],
) -> None:
    from xsoilsm import load_cube, retrieve

    job, _ = undisturbed
    cube = load_cube(job.configuration.geobox, mapping_scene.TIME, catalog="demo")
    whole = retrieve(cube, job.ensemble()).compute()
    for product, k in zip(Plan(job).products, range(2), strict=True):
        for tile in Plan(job).tiles.values():
            with rasterio.open(job.tiles / product.id / tile.name / "soil_moisture.tif") as file:
                found, tags = file.read(1), file.tags()
            x, y = (tile.geobox.coords[name].values for name in ("x", "y"))
            part = whole.soil_moisture.isel(time=k).sel(x=x, y=y, method="nearest")
            np.testing.assert_allclose(found, part, rtol=1e-5, atol=1e-6)
            assert tags["job"] == job.hash
            assert tags["tile"] == tile.name
            assert tags["time_utc"] == product.time
            radar = [name for a in product.acquisitions for name, _ in a.items]
            assert tags["input_items"].split() == radar
    assert np.isfinite(whole.soil_moisture).mean() > 0.5


def test_the_ledger_tells_inputs_and_costs(undisturbed: tuple[Job, dict[str, bytes]]) -> None:
    job, _ = undisturbed
    with sqlite3.connect(job.ledger) as ledger:
        about = dict(ledger.execute("SELECT key, value FROM about"))
        rows = ledger.execute(
            "SELECT state, seconds, bytes_read, items, files FROM tiles "
            "JOIN inputs ON tiles.inputs = inputs.digest"
        ).fetchall()
    assert about["job"] == job.hash
    assert about["ensemble"] == job.ensemble().digest
    assert len(rows) == TILES
    for state, seconds, _, items, files in rows:
        assert state == "done"
        assert seconds > 0
        assert any(name.startswith("S1") for name in items.split())
        assert any(name.startswith("MOD13Q1") for name in items.split())
        assert set(json.loads(files)) == {f"{name}.tif" for name in VARIABLES}
    assert sum(row[2] for row in rows) > 100_000


def test_a_second_run_makes_nothing(undisturbed: tuple[Job, dict[str, bytes]]) -> None:
    job, _ = undisturbed
    before = places_of(job.folder)
    again = begin(job.folder)
    assert again.configuration == job.configuration
    summary = run_job(again)
    assert summary.made == 0
    assert summary.is_complete
    assert places_of(job.folder) == before


def test_a_moved_job_can_be_continued(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    import shutil

    job, files = undisturbed
    moved = tmp_path / "moved"
    shutil.copytree(job.folder, moved)
    victim = next(iter(sorted(moved.glob("tiles/*/*"))))
    shutil.rmtree(victim)
    summary = run_job(moved, workers=1)
    assert (summary.made, summary.is_complete) == (1, True)
    assert files_of(moved) == files


# --------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"time": "2020-04-05"}, "end was 2020-04-30 and is 2020-04-05"),
        ({"region": (-5.43, 41.29, -5.37, 41.31)}, "region was POLYGON"),
        ({"tile_size": 5}, "tile_size was 4 and is 5"),
        ({"composite": "monthly"}, "composite was none and is monthly"),
        ({"load": {"mask_ndvi": True}}, "load was {} and is {'mask_ndvi': True}"),
    ],
)
def test_another_configuration_is_refused(
    undisturbed: tuple[Job, dict[str, bytes]], changes: dict[str, Any], word: str
) -> None:
    job, _ = undisturbed
    with pytest.raises(JobError) as caught:
        begin(job.folder, **changes)
    assert word in str(caught.value)
    assert "choose another folder" in str(caught.value)


def test_everything_that_decides_numbers_is_in_the_hash(
    undisturbed: tuple[Job, dict[str, bytes]],
) -> None:
    chosen = undisturbed[0].configuration
    changes: dict[str, Any] = {
        "engine": "other",
        "device": "cuda",
        "code": "0",
        "ensemble_digest": "0",
        "catalog_digest": "0",
        "res": "9km",
        "retrieve": {"keep_invalid": True},
    }
    hashes = {replace(chosen, **{name: value}).hash for name, value in changes.items()}
    assert len(hashes | {chosen.hash}) == len(changes) + 1


def test_another_catalog_of_the_same_name_is_refused(
    undisturbed: tuple[Job, dict[str, bytes]],
) -> None:
    job, _ = undisturbed
    catalog = open_catalog("demo")
    (ndvi,) = catalog.sources["ndvi"]
    other = ndvi.model_copy(update={"citation": "another"})
    changed = catalog.model_copy(update={"sources": {**catalog.sources, "ndvi": (other,)}})
    with pytest.raises(JobError, match="catalog_digest"):
        begin(job.folder, catalog=changed)


def test_another_ensemble_under_the_same_name_is_refused(tmp_path: Path) -> None:
    import shutil

    mapping_scene.save_small_ensemble(tmp_path / "model")
    job = begin(tmp_path / "job", model=str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    mapping_scene.save_small_ensemble(tmp_path / "model", seed=1)
    with pytest.raises(JobError, match="install that one again"):
        run_job(job)
    with pytest.raises(JobError, match="ensemble_digest"):
        begin(job.folder, model=str(tmp_path / "model"))


def test_a_folder_of_other_things_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(JobError, match=r"diary\.txt"):
        begin(tmp_path)
    with pytest.raises(JobError, match="holds no job"):
        open_job(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_an_edited_job_is_refused(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    job, _ = undisturbed
    text = (job.folder / "job.json").read_text()
    (tmp_path / "job.json").write_text(text.replace('"tile_size": 4', '"tile_size": 8'))
    with pytest.raises(JobError, match="does not fit its own hash"):
        open_job(tmp_path)
    (tmp_path / "job.json").write_text(text[:100])
    with pytest.raises(JobError, match="is damaged"):
        open_job(tmp_path)


def test_what_cannot_be_mapped_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no acquisition"):
        begin(tmp_path / "a", time="2019-01")
    with pytest.raises(ValueError, match="composite 'weekly' is unknown"):
        begin(tmp_path / "b", composite="weekly")
    with pytest.raises(ValueError, match="load_cube has no option colour"):
        begin(tmp_path / "c", load={"colour": "red"})
    with pytest.raises(ValueError, match="expected at least one cell"):
        begin(tmp_path / "d", tile_size=0)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- mask and as-of


def test_masks_are_part_of_a_job(tmp_path: Path) -> None:
    from xsoilsm.quality import QualityFlag as Flag

    plain = begin(tmp_path / "plain")
    assert begin(tmp_path / "default", mask="default").hash == plain.hash
    strict = begin(tmp_path / "strict", mask=["default", Flag.DENSE_VEGETATION])
    assert strict.configuration.retrieve == {"mask": ["default", "dense_vegetation"]}
    assert begin(tmp_path / "none", mask=None).configuration.retrieve == {"mask": None}
    with pytest.raises(ValueError, match="mask names 'fog'"):
        begin(tmp_path / "fog", mask="fog")
    with pytest.raises(ValueError, match="given twice"):
        begin(tmp_path / "twice", mask="strict", retrieve={"mask": ["strict"]})


def test_a_job_as_of_a_moment_has_what_had_come(tmp_path: Path) -> None:
    from xsoilsm.mapping.explain import explain

    whole = begin(tmp_path / "whole")
    early, late = whole.acquisitions
    job = begin(tmp_path / "asof", asof="2020-04-10")
    assert job.configuration.load == {"asof": "2020-04-11T00:00:00Z"}
    assert [a.id for a in job.acquisitions] == [early.id]
    assert {name for name, _ in job.excluded} >= {name for name, _ in late.items}
    assert run_job(job, workers=1).is_complete
    tags = []
    for path in job.tiles.glob("*/*/soil_moisture.tif"):
        with rasterio.open(path) as file:
            tags.append(file.tags()["asof"])
    assert set(tags) == {"2020-04-11T00:00:00Z"}
    middle = shapely.box(*mapping_scene.BBOX).centroid
    (found,) = explain(job, middle.x, middle.y, late.time[:10])
    assert found.reason == "left_out"
    assert "had not come by 2020-04-11" in found.text
    with pytest.raises(CatalogError, match="had come by"):
        begin(tmp_path / "none", asof="2020-04-01")
    with pytest.raises(ValueError, match="cannot tell a moment"):
        begin(tmp_path / "bad", asof="April")


# --------------------------------------------------------------------------- units


def test_units_do_not_depend_on_what_is_done(undisturbed: tuple[Job, dict[str, bytes]]) -> None:
    job, _ = undisturbed
    many = tuple(
        replace(
            one,
            id=f"{one.id}-{day}",
            time=str(np.datetime64(one.time) + np.timedelta64(12 * day, "D")),
        )
        for day in range(40)
        for one in job.acquisitions
    )
    plan = Plan(replace(job, acquisitions=tuple(sorted(many, key=lambda a: a.time))))
    whole = list(plan.units(lambda *_: True, job.ensemble()))
    assert len(whole) > len(plan.tiles)
    rows = [(product, unit.tile) for unit in whole for product in unit.wanted]
    assert sorted(rows) == sorted(plan.rows())
    assert len(set(rows)) == len(rows)
    for unit in whole:
        assert sum(len(p.acquisitions) for p in unit.products) <= UNIT_ACQUISITIONS
        first, last = unit.days
        assert (last - first).days <= 368
    some = list(plan.units(lambda product, _: product == many[7].id, job.ensemble()))
    known = {(u.tile, u.products): u.items for u in whole}
    for unit in some:
        assert unit.wanted == (many[7].id,)
        assert known[unit.tile, unit.products] == unit.items


def test_tiles_see_the_inputs_near_them_only(undisturbed: tuple[Job, dict[str, bytes]]) -> None:
    job, _ = undisturbed
    entries = read_entries(job.inputs)
    far = [replace(e, bounds=(100.0, 10.0, 101.0, 11.0), file=f"far-{e.file}") for e in entries]
    from xsoilsm.mapping.inputs import select

    bounds = degrees_of(next(iter(Plan(job).tiles.values())))
    days = job.configuration.days
    chosen = select([*entries, *far], bounds, *days)
    assert chosen
    assert not [file for _, _, file in chosen if file.startswith("far-")]
    with narrowed(job.inputs, chosen) as catalog:
        assert all(service.kind == "stac-static" for service in catalog.services.values())
        service, collection, file = chosen[0]
        held = catalog.services[service]
        ever = date(1950, 1, 1), date(2100, 1, 1)
        found = [item.id for item in find_items(held, collection, (-180, -90, 180, 90), *ever)]
        assert json.loads((job.inputs / file).read_text())["id"] in found
    with pytest.raises(CatalogError):
        find_items(held, collection, (-180, -90, 180, 90), *ever)


def test_files_depend_neither_on_workers_nor_on_the_folder_nor_on_the_provider(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path, scene: dict[str, str]
) -> None:
    """Once a job is made, the provider's catalog may change or vanish."""
    _, files = undisturbed
    job = begin(tmp_path / "again")
    root = Path(scene["XSOILSM_CACHE_DIR"], "landscapes", "demo")
    (root / "stac").rename(root / "hidden")
    try:
        summary = run_job(job, workers=1)
    finally:
        (root / "hidden").rename(root / "stac")
    assert summary.is_complete, summary
    assert files_of(job.folder) == files


def test_an_api_is_asked_once_for_the_whole_region(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path, scene: dict[str, str]
) -> None:
    """What a STAC API answers is kept whole: links, companions, series before the first pass."""
    import pystac

    from xsoilsm import load_cube
    from xsoilsm.mapping.inputs import select

    static, _ = undisturbed
    root = Path(scene["XSOILSM_CACHE_DIR"], "landscapes", "demo")
    catalog = open_catalog("demo")
    with loopback.serve(root) as server:
        for item in pystac.Catalog.from_file(root / "catalog.json").get_items(recursive=True):
            item.make_asset_hrefs_absolute()
            content = item.to_dict(transform_hrefs=False)
            content["links"] = [
                {"rel": link.rel, "href": link.get_absolute_href()}
                for link in item.get_links("derived_from")
            ]
            server.items.append(content)
        api = catalog.services["landscape"].model_copy(
            update={"kind": "stac-api", "href": f"{server.url}/stac"}
        )
        job = begin(
            tmp_path / "job", catalog=catalog.model_copy(update={"services": {"landscape": api}})
        )
        searches = len(server.searches)
        assert searches == len({e.collection for e in job.entries})
    # The server is gone. A unit of the job is loaded from what was kept.
    assert [a.id for a in job.acquisitions] == [a.id for a in static.acquisitions]
    known = {(e.collection, e.id, e.start, e.end, e.role) for e in static.entries}
    assert {(e.collection, e.id, e.start, e.end, e.role) for e in job.entries} == known
    tile = next(iter(Plan(job).tiles.values()))
    first, last = job.configuration.days
    with narrowed(job.inputs, select(job.entries, degrees_of(tile), first, last)) as kept:
        cube = load_cube(tile.geobox, (str(first), str(last)), catalog=kept)
        assert cube.sizes["time"] == 2
        assert np.isfinite(cube.sigma0_vv.compute(scheduler="synchronous")).any()


# --------------------------------------------------------------------------- composites


def _result(mean: list[float], flags: list[int]) -> xr.Dataset:
    values = np.array([mean], np.float32)
    return xr.Dataset(
        {
            "soil_moisture": (("y", "x"), values),
            "soil_moisture_std": (("y", "x"), values / 10),
            "quality_flag": (("y", "x"), np.array([flags], np.uint32)),
        }
    )


def test_composites_say_what_they_are_made_of() -> None:
    nothing, clipped = int(QualityFlag.NO_SCENE), int(QualityFlag.INPUTS_CLIPPED)
    nan, failed = float("nan"), int(QualityFlag.READ_FAILED)
    composite = Composite()
    composite.add(_result([0.1, 0.2, nan, nan, nan], [0, clipped, nothing, failed, nothing]))
    composite.add(_result([0.3, nan, 0.25, nan, nan], [0, failed, 0, nothing, nothing]))
    made = composite.finish()
    np.testing.assert_allclose(made.soil_moisture[0], [0.2, 0.2, 0.25, nan, nan])
    np.testing.assert_allclose(made.soil_moisture_std[0], [0.02, 0.02, 0.025, nan, nan])
    assert made.observations.values.tolist() == [[2, 1, 1, 0, 0]]
    assert made.quality_flag.values.tolist() == [[0, clipped, 0, failed, nothing]]
    with pytest.raises(ValueError, match="no acquisition"):
        Composite().finish()


@pytest.mark.parametrize(
    ("composite", "names"),
    [
        ("daily", ["20200405P1D", "20200411P1D"]),
        ("8day", ["20200329P8D", "20200406P8D"]),
        ("monthly", ["20200401P1M"]),
    ],
)
def test_periods_of_composites(
    undisturbed: tuple[Job, dict[str, bytes]], composite: str, names: list[str]
) -> None:
    job, _ = undisturbed
    chosen = replace(job.configuration, composite=composite)
    assert [p.id for p in Plan(replace(job, configuration=chosen)).products] == names


def test_a_monthly_job_is_the_mean_of_its_acquisitions(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    single, _ = undisturbed
    job = begin(tmp_path / "monthly", composite="monthly")
    assert run_job(job, workers=2).is_complete
    for tile in Plan(job).tiles:
        singles = []
        for product in Plan(single).products:
            with rasterio.open(single.tiles / product.id / tile / "soil_moisture.tif") as file:
                singles.append(file.read(1))
        stack = np.ma.masked_invalid(singles)
        folder = job.tiles / "20200401P1M" / tile
        with rasterio.open(folder / "soil_moisture.tif") as file:
            np.testing.assert_allclose(file.read(1), stack.mean(0).filled(np.nan), rtol=1e-6)
            assert file.tags()["period"] == "P1M"
            assert file.tags()["time_utc"] == "2020-04-01"
            assert len(file.tags()["acquisitions"].split()) == 2
        with rasterio.open(folder / "observations.tif") as file:
            np.testing.assert_array_equal(file.read(1), stack.count(0))


# --------------------------------------------------------------------------- verify, retry


def test_verify_finds_damage_and_the_next_run_mends_it(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    import shutil

    job, files = undisturbed
    copy = tmp_path / "copy"
    shutil.copytree(job.folder, copy)
    victims = [copy / name for name in sorted(files)[::5]]
    content = bytearray(victims[0].read_bytes())
    content[len(content) // 2] ^= 0xFF
    victims[0].write_bytes(content)
    victims[1].write_bytes(victims[1].read_bytes()[:-50])
    victims[2].unlink()
    summary, damaged = verify_job(copy)
    places = {(v.parent.parent.name, v.parent.name) for v in victims}
    assert {(product, tile) for product, tile, _ in damaged} <= places
    assert summary.pending == len(places) == 3
    before = places_of(copy)
    again = run_job(copy, workers=1)
    assert (again.made, again.is_complete) == (3, True)
    assert files_of(copy) == files
    after = places_of(copy)
    assert all(after[key] == before[key] for key in before if key not in places)
    assert verify_job(copy)[1] == []


def test_a_source_that_cannot_be_read_is_flagged_named_and_mended_later(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path, scene: dict[str, str]
) -> None:
    _, files = undisturbed
    job = begin(tmp_path / "job")
    radar = sorted(Path(scene["XSOILSM_CACHE_DIR"]).glob("landscapes/demo/data/**/*iw-vv.rtc*"))
    assert radar
    hidden = radar[0].with_suffix(".hidden")
    radar[0].rename(hidden)
    try:
        summary = run_job(job, workers=2, attempts=1)
    finally:
        hidden.rename(radar[0])
    assert summary.partial > 0
    assert summary.done == summary.total - summary.partial
    assert radar[0].parents[1].name in str(summary)
    assert "xsoilsm map retry" in str(summary)
    partial = [n for n in files if files_of(job.folder)[n] != files[n]]
    flags = next(name for name in partial if name.endswith("quality_flag.tif"))
    with rasterio.open(job.folder / flags) as file:
        assert (file.read(1) & int(QualityFlag.READ_FAILED)).any()
        assert radar[0].parents[1].name in file.tags()["incomplete"]
    # A ledger that is made anew does not take them for undisturbed.
    job.ledger.unlink()
    assert verify_job(job)[0].partial == summary.partial
    again = run_job(job, workers=2)
    assert again.is_complete
    assert files_of(job.folder) == files


def test_a_pass_across_midnight_is_one_product(tmp_path: Path, scene: dict[str, str]) -> None:
    """Its time is the same in all tiles, also where the slices are of the next day."""
    world = World(tmp_path / "world")
    world.fill()
    world.radar("2020-06-03T23:59:40", 33000, rows=(0, 200))
    world.radar("2020-06-04T00:00:05", 33000, rows=(220, 500), part=2)
    world.write()
    job = begin(
        tmp_path / "job",
        region=WORLD,
        time="2020-06",
        catalog=str(world.catalog_file()),
        tile_size=1,
    )
    (acquisition,) = job.acquisitions
    assert acquisition.time == "2020-06-03T23:59:52"
    tiles = {tile: p.acquisitions[0] for tile, p in _products(job).items()}
    later = [
        tile
        for tile, one in tiles.items()
        if one.items_over(shapely.box(*degrees_of(Plan(job).tiles[tile]))) == ("S1_033000_2_rtc",)
    ]
    assert later
    unit = next(u for u in Plan(job).units(lambda *_: True, job.ensemble()) if u.tile == later[0])
    (made,) = make_unit(unit)
    assert (made.state, made.error) == ("done", "")
    with rasterio.open(job.tiles / acquisition.id / later[0] / "soil_moisture.tif") as file:
        assert file.tags()["time_utc"] == acquisition.time
        assert file.tags()["input_items"] == "S1_033000_2_rtc"
        assert np.isfinite(file.read(1)).all()


def _products(job: Job) -> dict[str, Any]:
    plan = Plan(job)
    return {name: p for name, tile in plan.tiles.items() for p in plan.products_of(tile)}
