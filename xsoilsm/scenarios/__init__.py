"""Outside the seven steps (scenarios): the three experiments of Zhu et al. (2024), repeatable.

`splits` says which samples train and which validate, and proves that no site leaks; `plan` lists
the trainings of a scenario; `study` runs a list of them that can be interrupted at any time;
`summary` makes one report of them. How a network is trained is not known to them: a study is handed
a function (`Trainer`), for instance `networks.NetworkTrainer`.
"""

from __future__ import annotations

from xsoilsm.scenarios.plan import ARMS, Predictor, Run, Task, Trainer, plan
from xsoilsm.scenarios.splits import Split, dependent, make_split, off_site, on_site, site_folds
from xsoilsm.scenarios.study import Study
from xsoilsm.scenarios.summary import run_scenario, write_study_report

__all__ = [
    "ARMS",
    "Predictor",
    "Run",
    "Split",
    "Study",
    "Task",
    "Trainer",
    "dependent",
    "make_split",
    "off_site",
    "on_site",
    "plan",
    "run_scenario",
    "site_folds",
    "write_study_report",
]
