"""Outside the seven steps (simulate): a virtual landscape where no provider can be reached.

A small world with terrain, soils, land cover, seasons, weather and soil water, and what the data
providers would serve of it: a static STAC catalog whose collections, items and files have the
forms of the real ones, and the true soil moisture beside them. Seeded and reproducible to the
byte. It serves tests and demonstrations; nothing in it is an observation.

How it is made, and where to change it: `noise` draws fields, `land` terrain, soils and seasons,
`climate` weather, `bucket` soil water, `backscatter` the radar's answer, `orbit` the geometry of
passes, `scene` their images; `annotation`, `items` and `files` give forms; `ground`, `composites`,
`reanalysis` and `radar` write the collections; `build` puts everything together.

`stations` and `smap` write the files that truth is read from. `twin` makes several landscapes with
stations and SMAP for experiments with training: `twin_plan` says which, `twin_land` how the land
differs from what is told of it, `twin_radar` and `twin_region` write a landscape with large pixels
and daily truth, `twin_truth` the archives and granules.
"""

from __future__ import annotations

from xsoilsm.simulate.build import landscape_folder, simulate_landscape
from xsoilsm.simulate.climate import (
    CLIMATES,
    CONTINENTAL,
    MEDITERRANEAN,
    SEMIARID,
    TEMPERATE,
    Climate,
)

__all__ = [
    "CLIMATES",
    "CONTINENTAL",
    "MEDITERRANEAN",
    "SEMIARID",
    "TEMPERATE",
    "Climate",
    "landscape_folder",
    "simulate_landscape",
]
