"""Outside the seven steps (evaluation): how well retrievals agree with stations, and saying so.

`evaluate` measures a table of samples, `evaluate_file` a file of them, `evaluate_dataset` a map
or a cube; `write_report` makes
one HTML file of the result, `write_qa4sm` a file for QA4SM's tools.
"""

from __future__ import annotations

from xsoilsm.evaluation.command import evaluate_file, read_samples
from xsoilsm.evaluation.qa4sm import qa4sm_dataset, write_qa4sm
from xsoilsm.evaluation.report import Page, require_independent, write_report
from xsoilsm.evaluation.scores import (
    GROUPS,
    TARGET_RMSE,
    Evaluation,
    Independence,
    compare,
    evaluate,
    evaluate_dataset,
)
from xsoilsm.evaluation.table import COLUMNS, is_simulated, match_days, tabulate

__all__ = [
    "COLUMNS",
    "GROUPS",
    "TARGET_RMSE",
    "Evaluation",
    "Independence",
    "Page",
    "compare",
    "evaluate",
    "evaluate_dataset",
    "evaluate_file",
    "is_simulated",
    "match_days",
    "qa4sm_dataset",
    "read_samples",
    "require_independent",
    "tabulate",
    "write_qa4sm",
    "write_report",
]
