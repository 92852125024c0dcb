"""The static STAC catalog: valid, the same bytes every time, and it opens in other tools."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr
import odc.stac
import pystac
import pytest
import stackstac
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from output_tiles import ASCENDING, DESCENDING, WEEK, pieces_of_two, region, truth, write_tiles
from pystac.validation import RegisteredValidator, validate_dict
from stac_rules import broken_rules

import xsoilsm
from xsoilsm.card import EnsembleCard, read_card
from xsoilsm.catalog import catalogs_dir
from xsoilsm.outputs.mosaic import MosaicFile, write_mosaics
from xsoilsm.outputs.pieces import Acquisition, InputItem
from xsoilsm.outputs.provenance import input_items, item_address
from xsoilsm.outputs.stac import plain_items, write_stac


@pytest.fixture(scope="module")
def card() -> EnsembleCard:
    return read_card(catalogs_dir() / "ensembles" / "densesm-e-coarse.yaml")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def mosaics(out: Path) -> list[MosaicFile]:
    return write_mosaics(pieces_of_two(), out / "mosaics")


@pytest.fixture(scope="module")
def catalog(mosaics: list[MosaicFile], out: Path, card: EnsembleCard) -> Path:
    return write_stac(mosaics, out, card=card)


def documents(catalog: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(catalog.parent).as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(catalog.parent.rglob("*.json"))
    }


def items(catalog: Path) -> list[pystac.Item]:
    root = pystac.Catalog.from_file(str(catalog))
    (collection,) = root.get_children()
    return sorted(collection.get_items(), key=lambda item: item.id)


def test_every_document_is_valid(catalog: Path) -> None:
    found = documents(catalog)
    assert len(found) == 1 + 1 + 2 + 1  # catalog, collection, items, model
    core = RegisteredValidator.get_validator()
    for document in found.values():
        kind = {"Feature": "Item"}.get(document["type"], document["type"])
        core.validate_core(document, getattr(pystac.STACObjectType, kind.upper()), "1.1.0")
        validate_dict(document, extensions=[])
        if kind != "Catalog":
            assert broken_rules(document) == []


def test_the_rules_find_what_is_wrong(catalog: Path) -> None:
    item = next(d for n, d in documents(catalog).items() if "/items/S1A" in n)
    item["properties"]["proj:shape"] = [1.5, 2]
    item["assets"]["soil_moisture"]["mlm:name"] = "x"
    item["stac_extensions"].append("https://stac-extensions.github.io/mlm/v1.4.0/schema.json")
    text = " ".join(broken_rules(item))
    assert "proj:shape" in text
    assert "no mlm:input" in text
    assert "mlm:model" in text


def test_links_are_relative_and_lead_somewhere(catalog: Path, out: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    for name, document in documents(moved / "catalog.json").items():
        here = (moved / name).parent
        links = [(link["rel"], link["href"]) for link in document["links"]]
        links += [("asset", asset["href"]) for asset in document.get("assets", {}).values()]
        for rel, href in links:
            if "://" in href:
                assert rel in ("derived_from", "asset")
                continue
            assert not os.path.isabs(href)
            assert (here / href).resolve().is_relative_to(moved.resolve())
            assert (here / href).is_file(), (name, rel, href)
    assert str(out) not in "".join(
        path.read_text(encoding="utf-8") for path in moved.rglob("*") if path.suffix == ".json"
    )


def test_pystac_reads_what_was_written(catalog: Path) -> None:
    root = pystac.Catalog.from_file(str(catalog))
    ascending, descending = sorted(items(catalog), key=lambda item: item.id, reverse=True)
    assert (descending.id, ascending.id) == (DESCENDING.id, ASCENDING.id)
    assert descending.datetime is not None
    assert descending.datetime.isoformat() == "2020-04-05T06:20:04+00:00"
    assert descending.properties["platform"] == "sentinel-1a"
    assert descending.properties["sat:relative_orbit"] == 52
    assert descending.ext.proj.code == "EPSG:6933"
    assert descending.ext.proj.shape == list(region().shape)
    assert descending.assets["quality_flag"].roles == ["data-mask", "metadata"]
    collection = next(iter(root.get_children()))
    assert isinstance(collection, pystac.Collection)
    assert collection.extent.temporal.intervals[0][0] == descending.datetime
    assert collection.ext.sci.publications[0].doi == "10.1016/j.rse.2023.113944"
    licence = collection.get_single_link("license")
    assert licence is not None
    text = Path(catalog.parent, collection.id, "licences.txt").read_text(encoding="utf-8")
    assert "sentinel-1-rtc: CC-BY-4.0" in text
    assert "Neither of the two repositories" in text


def test_provenance_leads_to_the_inputs_and_the_model(catalog: Path, card: EnsembleCard) -> None:
    ascending, descending = sorted(items(catalog), key=lambda item: item.id, reverse=True)
    links = {link.href: link for link in descending.get_links("derived_from")}
    assert "https://stac.example/collections/s1/items/S1A_scene" in links
    assert descending.properties["xsoilsm:input_items"] == ["MOD13Q1_a", "S1A_scene"]
    assert len(ascending.get_links("derived_from")) == 1
    (link,) = (found for found in links.values() if "mlm:name" in found.extra_fields)
    model = link.resolve_stac_object().target
    assert isinstance(model, pystac.Item)
    assert model.properties["mlm:name"] == link.extra_fields["mlm:name"] == card.name
    assert [i.input.shape for i in model.ext.mlm.input] == [[-1, 18], [-1, 3, 46]]
    assert len([a for a in model.assets.values() if "mlm:model" in (a.roles or [])]) == 25
    member = model.assets["member-1-8"]
    assert member.extra_fields["file:checksum"] == f"1220{card.members[0].sha256}"
    written = catalog.parent / "models" / model.assets["card"].href
    assert read_card(written) == card


def test_bytes_do_not_depend_on_order_or_time(
    mosaics: list[MosaicFile], catalog: Path, out: Path, card: EnsembleCard
) -> None:
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    write_stac(mosaics[::-1], out, card=card)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_odc_stac_opens_it_on_the_same_cells(catalog: Path) -> None:
    loaded = odc.stac.load(items(catalog))
    assert loaded.odc.geobox == region()
    for index, acquisition in enumerate((DESCENDING, ASCENDING)):
        for name, expected in truth(acquisition, region()).items():
            np.testing.assert_array_equal(loaded[name].values[index], expected)
            assert loaded[name].dtype == expected.dtype
    assert loaded["time"].values.astype("datetime64[s]").tolist() == [
        DESCENDING.start.item(),
        ASCENDING.start.item(),
    ]


@pytest.mark.filterwarnings("ignore")  # stackstac 0.5.1 calls what its dependencies give up
def test_stackstac_opens_it_on_the_same_cells(catalog: Path) -> None:
    stack = stackstac.stack(
        plain_items(catalog),
        assets=["soil_moisture"],
        snap_bounds=False,
        xy_coords="center",
        dtype="float32",
        fill_value=np.float32("nan"),
        rescale=False,
    )
    assert stack.shape == (2, 1, *region().shape)
    box = region()
    np.testing.assert_allclose(stack["x"], box.coords["x"].values, atol=1e-3)
    np.testing.assert_allclose(stack["y"], box.coords["y"].values, atol=1e-3)
    for index, acquisition in enumerate((DESCENDING, ASCENDING)):
        expected = truth(acquisition, region())["soil_moisture"]
        np.testing.assert_array_equal(stack.values[index, 0], expected)


@pytest.mark.filterwarnings("ignore")
def test_scaled_integers_are_unscaled_by_their_readers(tmp_path: Path) -> None:
    pieces = write_tiles(tmp_path, (DESCENDING,), region((20, 25)))
    written = write_mosaics(pieces, tmp_path / "mosaics", numbers="int16")
    catalog = write_stac(written, tmp_path)
    (item,) = plain_items(catalog)
    (band,) = item["assets"]["soil_moisture"]["raster:bands"]
    assert (band["data_type"], band["scale"], band["nodata"]) == ("int16", 1e-4, -32768)
    expected = truth(DESCENDING, region((20, 25)))["soil_moisture"]
    stack = stackstac.stack([item], assets=["soil_moisture"], snap_bounds=False)
    np.testing.assert_allclose(stack.values[0, 0], expected, atol=0.501e-4)
    loaded = odc.stac.load(items(catalog), ["soil_moisture"])["soil_moisture"]
    assert loaded.attrs["nodata"] == -32768  # odc-stac gives the stored numbers
    np.testing.assert_allclose(
        xr.where(loaded == -32768, np.nan, loaded * band["scale"])[0], expected, atol=0.501e-4
    )


def test_composites_and_results_without_a_card(tmp_path: Path) -> None:
    pieces = write_tiles(tmp_path, (WEEK,), region((10, 12)))
    catalog = write_stac(write_mosaics(pieces, tmp_path / "m"), tmp_path)
    (item,) = plain_items(catalog)
    properties = item["properties"]
    assert properties["start_datetime"] == properties["datetime"] == "2020-04-01T00:00:00Z"
    assert properties["end_datetime"] == "2020-04-08T23:59:59Z"
    assert properties["processing:level"] == "L3"
    assert "platform" not in properties
    validate_dict(item, extensions=[])
    assert broken_rules(item) == []
    assert not (tmp_path / "models").exists()
    with pytest.raises(ValueError, match="no collection 'x'"):
        plain_items(catalog, "x")


def test_what_cannot_be_a_catalog_is_refused(mosaics: list[MosaicFile], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mosaics"):
        write_stac([], tmp_path)
    with pytest.raises(ValueError, match="are both soil_moisture"):
        write_stac([*mosaics, mosaics[0]], tmp_path)
    close = dataclasses.replace(ASCENDING, id=DESCENDING.id + "/")
    with pytest.raises(ValueError, match="same file name"):
        write_stac([mosaics[0], mosaics[3]._replace(acquisition=close)], tmp_path)
    assert not list(tmp_path.iterdir())


@settings(max_examples=12)
@given(st.text(min_size=1), st.text(), st.text(), st.text())
def test_no_text_leads_out_of_the_folder(
    mosaics: list[MosaicFile],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    platform: str,
    ensemble: str,
    item: str,
) -> None:
    folder = tmp_path_factory.mktemp("names")
    (folder / "out").mkdir()
    text = [part.encode("utf-8", "replace").decode() for part in (name, platform, ensemble, item)]
    odd = Acquisition(
        text[0],
        DESCENDING.start,
        platform=f"../{text[1]}",
        orbit_state=text[1],
        items=(InputItem(text[3], "", text[3]),),
    )
    about = {"ensemble": f"../../{text[2]}", "source": f"xsoilsm ../{text[2]}, x"}
    pieces = [dataclasses.replace(p, acquisition=odd) for p in pieces_of_two()[:1]]
    (written,) = write_mosaics(pieces, folder / "out" / "m", attributes=about)
    write_stac([written], folder / "out", attributes=about)
    assert [p.name for p in folder.iterdir()] == ["out"]
    assert written.path.resolve().parent == (folder / "out" / "m").resolve()
    assert len(list((folder / "out").rglob("*.json"))) == 3
    shutil.rmtree(folder)


def test_addresses_of_input_items() -> None:
    catalog = xsoilsm.open_catalog("planetary-computer")
    href = item_address(catalog, "planetary-computer", "sentinel-1-rtc", "S1A/odd name")
    assert href == (
        "https://planetarycomputer.microsoft.com/api/stac/v1/collections/sentinel-1-rtc/items/"
        "S1A%2Fodd%20name"
    )
    assert item_address(catalog, "earth-data-hub", "era5", "x") == ""
    with pytest.raises(ValueError, match="no service"):
        item_address(catalog, "nowhere", "a", "b")


def test_items_of_a_cube_are_found_where_their_collection_is_known() -> None:
    catalog = xsoilsm.open_catalog("planetary-computer")
    cube = xr.Dataset(
        {
            "sigma0_vv": ("time", [0.0], {"items": "S1A_b S1A_a"}),
            "ndvi": ("time", [0.0], {"items": "MOD_1"}),
            "sand": ("time", [0.0], {"items": "soil"}),
        },
        attrs={"licence": "sentinel-1-rtc: CC-BY-4.0; modis-13Q1-061: free; soilgrids-2.0: CC"},
    )
    found = {item.id: item for item in input_items(cube, catalog)}
    assert list(found) == ["MOD_1", "S1A_a", "S1A_b", "soil"]
    assert found["S1A_a"].collection == "sentinel-1-rtc"
    assert found["S1A_a"].href.endswith("/collections/sentinel-1-rtc/items/S1A_a")
    assert found["MOD_1"].href.endswith("/collections/modis-13Q1-061/items/MOD_1")
    assert found["soil"] == InputItem("soil", "", "soilgrids-2.0")
    cube.attrs["licence"] += "; sentinel-1-grd: CC-BY-4.0"
    unclear = {item.id: item for item in input_items(cube, catalog)}
    assert unclear["S1A_a"] == InputItem("S1A_a")
