"""Step 5 of 7 (networks): an ensemble as a STAC item, for catalogs of models.

The item follows version 1.4.0 of the Machine Learning Model extension,
https://github.com/stac-extensions/mlm: inputs with units and scaling from the feature contract,
one output, the training record as hyperparameters, one asset per member.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xsoilsm.contract import Contract
from xsoilsm.ensemble import CARD, Ensemble
from xsoilsm.state import state_shapes
from xsoilsm.wholefile import write_whole

if TYPE_CHECKING:
    import pystac

__all__ = ["ensemble_item", "write_item"]

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
SCIENTIFIC = "https://stac-extensions.github.io/scientific/v1.0.0/schema.json"
NORTH = 85.04  # degrees; the limit of the EASE-Grid 2.0 global grid
SINCE = datetime.datetime(2014, 10, 3, tzinfo=datetime.UTC)
"""First day of data by Sentinel-1: the networks can be applied from there on."""


def ensemble_item(ensemble: Ensemble) -> pystac.Item:
    """Describe an ensemble as a STAC item.

    Lazy: reads no weights.

    Parameters
    ----------
    ensemble : Ensemble

    Returns
    -------
    pystac.Item
        Its footprint is that of the grid, its time that of Sentinel-1: where and when the
        ensemble can be applied, not where it was trained. Files beside the card have relative
        addresses.
    """
    import pystac

    card = ensemble.card
    ring = [[-180.0, -NORTH], [180.0, -NORTH], [180.0, NORTH], [-180.0, NORTH], [-180.0, -NORTH]]
    item = pystac.Item(
        id=card.name,
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=[-180.0, -NORTH, 180.0, NORTH],
        datetime=None,
        start_datetime=SINCE,
        end_datetime=datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC),
        properties=_properties(ensemble),
        stac_extensions=[MLM, FILE, SCIENTIFIC],
    )
    for member in card.members:
        href = card.source.address(member.file) if card.source else f"./{member.file}"
        framework = "pytorch" if member.file.endswith(".pt") else "safetensors"
        fields = {
            "mlm:artifact_type": "torch.save" if framework == "pytorch" else "safetensors",
            "mlm:name": f"DenseSM-{member.label}",
        }
        if member.sha256 is not None:
            fields["file:checksum"] = "1220" + member.sha256  # multihash of SHA-256
        item.add_asset(
            Path(member.file).stem,
            pystac.Asset(
                href=href,
                title=f"Parameters of DenseSM-{member.label}",
                media_type=f"application/octet-stream; application={framework}",
                roles=["mlm:model", "mlm:weights"],
                extra_fields=fields,
            ),
        )
    item.add_asset(
        "card",
        pystac.Asset(
            href=f"./{CARD}",
            title="Card of the ensemble: contract, members, training, licence",
            media_type="application/yaml",
            roles=["metadata"],
        ),
    )
    if card.citation.doi:
        item.add_link(pystac.Link("cite-as", f"https://doi.org/{card.citation.doi}", "text/html"))
    return item


def _properties(ensemble: Ensemble) -> dict[str, Any]:
    card, contract = ensemble.card, ensemble.contract
    parameters = sum(_parameters(member.depth, member.width) for member in card.members)
    training = card.training.model_dump(mode="json", exclude_defaults=True)
    properties: dict[str, Any] = {
        "title": card.title or card.name,
        "description": (
            f"{len(card.members)} DenseSM networks, trained at {card.resolution} "
            f"({card.training.kind}); soil moisture is the mean of their outputs."
            + (" Trained on SIMULATED data." if card.simulated else "")
        ),
        # STAC knows SPDX names and "other", which stands for the terms in words beside it.
        "license": card.licence.spdx or "other",
        "xsoilsm:licence_statement": card.licence.statement,
        "xsoilsm:digest": ensemble.digest,
        "xsoilsm:contract_digest": contract.digest,
        "xsoilsm:simulated": card.simulated,
        "mlm:name": card.name,
        "mlm:architecture": "DenseSM-E",
        "mlm:tasks": ["regression"],
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": parameters,
        "mlm:memory_size": 4 * parameters,
        "mlm:pretrained": True,
        "mlm:pretrained_source": card.training.truth or card.training.kind,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_snapshot(contract), _series(contract)],
        "mlm:output": [
            {
                "name": "soil_moisture",
                "tasks": ["regression"],
                "variables": ["soil_moisture"],
                "result": {"shape": [-1], "dim_order": ["batch"], "data_type": "float32"},
                "description": "volumetric soil moisture of the top 5 cm, daily mean, m3 m-3",
            }
        ],
        "mlm:hyperparameters": {"kind": card.training.kind, **training.get("settings", {})},
        "xsoilsm:training": training,
        "sci:citation": card.citation.text,
    }
    if card.created:
        properties["created"] = f"{card.created}T00:00:00Z"
    if card.citation.doi:
        properties["sci:doi"] = card.citation.doi
    return properties


def _snapshot(contract: Contract) -> dict[str, Any]:
    scaling: list[dict[str, Any]] = []
    for entry in contract.snapshot:
        if entry.range is not None:
            scaling.append(_min_max(entry.range))
        elif entry.cycle is not None:
            wave = f"({entry.encoding}(2*pi*{entry.source}/{entry.cycle:g}) + 1) / 2"
            scaling.append({"type": "processing", "format": "text", "expression": wave})
        else:
            text = f"{entry.summary} of the scaled series of {entry.source}"
            scaling.append({"type": "processing", "format": "text", "expression": text})
    return {
        "name": "snapshot",
        "bands": [],
        "variables": [entry.name for entry in contract.snapshot],
        "input": {
            "shape": [-1, len(contract.snapshot)],
            "dim_order": ["batch", "feature"],
            "data_type": "float32",
        },
        "value_scaling": scaling,
        "description": "; ".join(f"{e.name}: {e.source}, {e.units}" for e in contract.snapshot),
    }


def _series(contract: Contract) -> dict[str, Any]:
    channels = contract.series.channels
    return {
        "name": "series",
        "bands": [],
        "variables": [channel.name for channel in channels],
        "input": {
            "shape": [-1, len(channels), contract.series.steps],
            "dim_order": ["batch", "channel", "time"],
            "data_type": "float32",
        },
        "value_scaling": [_min_max(channel.range) for channel in channels],
        "description": (
            f"the {contract.series.steps} latest eight-day periods, oldest first; "
            + "; ".join(f"{c.name}: {c.source}, {c.units}" for c in channels)
        ),
    }


def _min_max(span: tuple[float, float]) -> dict[str, Any]:
    return {"type": "min-max", "minimum": span[0], "maximum": span[1]}


def _parameters(depth: int, width: int) -> int:
    total = 0
    for name, shape in state_shapes(depth, width).items():
        if name.endswith((".weight", ".bias")):
            size = 1
            for length in shape:
                size *= length
            total += size
    return total


def write_item(ensemble: Ensemble, path: str | Path | None = None) -> Path:
    """Write the STAC item of an ensemble.

    Parameters
    ----------
    ensemble : Ensemble
    path : path, optional
        Default: ``item.json`` beside the card, where the relative addresses lead to the files.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        When no path is given for an ensemble whose files lie in the cache.
    """
    if path is None:
        if ensemble.folder is None:
            msg = f"{ensemble.name!r} has no folder of its own; pass the path of the item"
            raise ValueError(msg)
        path = ensemble.folder / "item.json"
    path = Path(path).expanduser()
    text = json.dumps(ensemble_item(ensemble).to_dict(include_self_link=False), indent=1)
    write_whole(path, text)
    return path
