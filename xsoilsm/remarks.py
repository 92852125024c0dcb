"""Step 6 of 7 (explain): what is to be said of a Dataset, and the remarks on a result.

A remark has one form for cubes and results: what was found, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xsoilsm.quality import ADVICE, MEANINGS, QualityFlag, name_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Violation", "explain_result", "violation_table"]


@dataclass(frozen=True)
class Violation:
    """One way in which a Dataset departs from the schema.

    Parameters
    ----------
    variable : str
        Name of the variable or coordinate, or ``"cube"``.
    found, expected, remedy : str
    """

    variable: str
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        """One line: what was found, what was expected, what to do."""
        return f"`{self.variable}` {self.found}; expected {self.expected}; {self.remedy}"


def violation_table(violations: list[Violation]) -> pd.DataFrame:
    """Put violations into a table with one row each."""
    import pandas as pd

    columns = ["variable", "found", "expected", "remedy"]
    rows = [[getattr(v, c) for c in columns] for v in violations]
    return pd.DataFrame(rows, columns=columns)


def explain_result(result: xr.Dataset) -> list[Violation]:
    """Explain the flags, the domain and the spread of a retrieval.

    Lazy: values only of variables that are in memory already.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve`.

    Returns
    -------
    list of Violation
        One for each flag that is set somewhere, with the share of cells and the condition; one
        for each that was not evaluated; and what the layers hold.
    """
    flags = result["quality_flag"]
    if flags.chunks is not None:
        found, remedy = "is not computed yet", "call .compute(), or .sm.check() on a part"
        return [Violation("quality_flag", found, "values in memory", remedy)]
    said = dict(
        entry.split(": ", 1)
        for entry in str(flags.attrs.get("flags_evaluated_from", "")).split("; ")
        if ": " in entry
    )
    idle = str(flags.attrs.get("flags_not_evaluated", "")).split()
    values = np.asarray(flags.values)
    remarks = []
    for flag in QualityFlag:
        name = name_of(flag)
        share = float(np.mean((values & values.dtype.type(flag)) != 0)) if values.size else 0.0
        if share:
            found = f"has {name} in {share:.1%} of the cells: {MEANINGS[flag]}"
            without = f"cells without it ({said.get(name, 'any retrieval')})"
            remarks.append(Violation("quality_flag", found, without, ADVICE[flag]))
        elif name in idle:
            found = f"was not evaluated for {name}: nothing is known of it"
            remedy = "do not take a missing bit for a good sign"
            remarks.append(Violation("quality_flag", found, "its inputs in the cube", remedy))
    return remarks + list(_layers(result))


_LAYERS = {
    "domain_distance": (
        "about 1, the average over training",
        "it is no error estimate; xsoilsm.domain.domain_table(cube, model) names unusual inputs",
    ),
    "clipped_inputs": ("0", "xsoilsm.domain.domain_table(cube, model) names unusual inputs"),
    "soil_moisture_std": (
        "small where the networks agree",
        "the spread is not an error: networks that agree can all be wrong",
    ),
}


def _layers(result: xr.Dataset) -> Iterator[Violation]:
    for name, (expected, remedy) in _LAYERS.items():
        if name not in result or result[name].chunks is not None:
            continue
        values = result[name].values[np.isfinite(result[name].values)]
        if values.size:
            middle, high = np.quantile(values, (0.5, 0.95))
            found = f"has median {middle:.3g} and 95 % quantile {high:.3g}"
            yield Violation(name, found, expected, remedy)
