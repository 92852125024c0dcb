"""Step 7 of 7 (write): the ensemble as a STAC item, so that results can point to their model.

Specification: STAC 1.1.0 with the Machine Learning Model extension (mlm) 1.4.0 and file 2.1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xsoilsm.card import EnsembleCard

__all__ = ["model_item"]

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
SCIENTIFIC = "https://stac-extensions.github.io/scientific/v1.0.0/schema.json"

_NETWORK = "application/octet-stream; framework=pytorch"


def model_item(
    card: EnsembleCard, bbox: Sequence[float], interval: tuple[str, str], parent: str
) -> dict[str, Any]:
    """Describe an ensemble as a STAC item.

    Lazy: reads nothing.

    Parameters
    ----------
    card : EnsembleCard
    bbox : (west, south, east, north)
        Degrees; where the model was used.
    interval : (str, str)
        First and last time for which it was used.
    parent : str
        Relative address of the catalog.

    Returns
    -------
    dict
        The item. Its assets are the card, ``CARD.yaml`` beside it, and the members where the card
        knows their public addresses.
    """
    west, south, east, north = bbox
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    doi = {"doi": card.citation.doi} if card.citation.doi else {}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, FILE, SCIENTIFIC],
        "id": card.name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(bbox),
        "properties": {
            "title": card.title or card.name,
            "description": f"Terms of use: {card.licence.statement}",
            "datetime": None,
            "start_datetime": interval[0],
            "end_datetime": interval[1],
            "license": card.licence.spdx or "other",
            "sci:publications": [{"citation": card.citation.text} | doi],
            **_properties(card),
        },
        "links": [
            {"rel": "root", "href": parent, "type": "application/json"},
            {"rel": "parent", "href": parent, "type": "application/json"},
        ],
        "assets": _assets(card),
    }


def _properties(card: EnsembleCard) -> dict[str, Any]:
    """Fields of the mlm extension."""
    contract = card.get_contract()
    settings = dict(sorted(card.training.settings.items()))
    return {
        "mlm:name": card.name,
        "mlm:architecture": "DenseSM",
        "mlm:tasks": ["regression"],
        "mlm:framework": "PyTorch",
        "mlm:pretrained": True,
        "mlm:pretrained_source": card.training.truth or card.training.kind,
        "mlm:accelerator": None,
        "mlm:hyperparameters": {
            "ensemble_members": len(card.members),
            "ensemble_digest": card.digest,
            "feature_contract": contract.name,
            "trained_at": card.resolution,
            **settings,
        },
        "mlm:input": [
            {
                "name": "snapshot",
                "description": ", ".join(entry.name for entry in contract.snapshot),
                "bands": [],
                "input": {
                    "shape": [-1, len(contract.snapshot)],
                    "dim_order": ["batch", "feature"],
                    "data_type": "float32",
                },
            },
            {
                "name": "series",
                "description": ", ".join(entry.name for entry in contract.series.channels),
                "bands": [],
                "input": {
                    "shape": [-1, len(contract.series.channels), contract.series.steps],
                    "dim_order": ["batch", "channel", "time"],
                    "data_type": "float32",
                },
            },
        ],
        "mlm:output": [
            {
                "name": "soil_moisture",
                "description": "mean of the members, m3 m-3",
                "tasks": ["regression"],
                "result": {"shape": [-1], "dim_order": ["batch"], "data_type": "float32"},
            }
        ],
    }


def _assets(card: EnsembleCard) -> dict[str, Any]:
    """List the members by their public addresses, where the card knows them, and the card."""
    assets: dict[str, Any] = {}
    if card.source is not None:
        for member in card.members:
            assets[f"member-{member.label}"] = {
                "href": card.source.address(member.file),
                "type": _NETWORK,
                "title": f"network of depth {member.depth} and width {member.width}",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "torch.save",
                "file:checksum": f"1220{member.sha256}",
            }
    described = {"href": f"./{card.name}.yaml", "type": "application/yaml", "title": "card"}
    if assets:
        return assets | {"card": described | {"roles": ["metadata"]}}
    model = {"roles": ["mlm:model", "metadata"], "mlm:artifact_type": "card"}
    return {"card": described | model}
