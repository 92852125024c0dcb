"""Step 5 of 7 (networks): from stations to a local ensemble, validated on sites it did not see.

`finetune` is the whole way in one call: samples of the cells that hold stations (`gather`),
cross-validation by site (`folds`), the calibration of the spread, the training on all samples and
the report (`local`). `finetune_files` does the same from a table of stations and a catalog.
"""

from __future__ import annotations

from xsoilsm.finetuning.command import finetune_files
from xsoilsm.finetuning.gather import read_truth
from xsoilsm.finetuning.local import Finetuned, FinetuningWarning, finetune

__all__ = ["Finetuned", "FinetuningWarning", "finetune", "finetune_files", "read_truth"]
