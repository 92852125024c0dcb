"""Outside the seven steps (scenarios): the three scenarios on the twin, from files to a report.

Everything in it is simulated. The article's full size is hundreds of hours of two cores; `STUDIES`
holds smaller tables of the same study, which run the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from xsoilsm.ensemble import CARD, Ensemble, get_ensemble
from xsoilsm.scenarios import run_scenario
from xsoilsm.scenarios.networks import NetworkTrainer
from xsoilsm.scenarios.splits import Scenario
from xsoilsm.simulate.twin import simulate_twin, twin_samples
from xsoilsm.training import DEFAULT_SHAPES, Recipe, Samples, train_ensemble

__all__ = ["STUDIES", "TwinStudy", "rank_members", "validate_twin"]

Progress = Callable[[float | str], None]
StudySize = Literal["tiny", "small", "full"]

CONTRACT = "paper"
PUBLISHED_ENSEMBLE = "densesm-e-coarse"


@dataclass(frozen=True)
class TwinStudy:
    """How large a study is.

    Parameters
    ----------
    shapes : tuple of (int, int)
        Depth and width of each network.
    coarse_epochs, transfer_epochs, benchmark_epochs : int
    transfer_rate : float
        Learning rate of the transfer; fewer epochs want a higher one than the article's 1e-5.
    sizes : mapping of str to tuple of float
        For each scenario, see `xsoilsm.scenarios.splits.SIZES`.
    seeds : int
    networks : tuple of str
        Of the off-site scenario.
    batch : int, default 128
        Of the coarse training.
    """

    shapes: tuple[tuple[int, int], ...]
    coarse_epochs: int
    transfer_epochs: int
    transfer_rate: float
    benchmark_epochs: int
    sizes: Mapping[str, tuple[float, ...]]
    seeds: int
    networks: tuple[str, ...]
    batch: int = 128


STUDIES: dict[StudySize, TwinStudy] = {
    "tiny": TwinStudy(
        shapes=((1, 8), (2, 8)),
        coarse_epochs=3,
        transfer_epochs=3,
        transfer_rate=1e-3,
        benchmark_epochs=3,
        sizes={"dependent": (30.0,), "on-site": (1.0,), "off-site": (1.0,)},
        seeds=1,
        networks=("TWIN-WIDE",),
        batch=16,
    ),
    "small": TwinStudy(
        shapes=((1, 8), (1, 32), (3, 32), (3, 64)),
        coarse_epochs=30,
        transfer_epochs=300,
        transfer_rate=1e-4,
        benchmark_epochs=100,
        sizes={"dependent": (0.5, 1.5, 4.5), "on-site": (1, 5, 11), "off-site": (1, 5, 9)},
        seeds=2,
        networks=("TWIN-WIDE", "TWIN-SNOW"),
    ),
    "full": TwinStudy(
        shapes=tuple(DEFAULT_SHAPES),
        coarse_epochs=100,
        transfer_epochs=1000,
        transfer_rate=1e-5,
        benchmark_epochs=100,
        sizes={"dependent": (0.5, 1.5, 4.5), "on-site": (1, 5, 11), "off-site": (1, 5, 13)},
        seeds=3,
        networks=("TWIN-WIDE", "TWIN-SNOW"),
    ),
}
"""Studies by the name of the twin's size."""


def validate_twin(
    scenario: Scenario,
    folder: str | os.PathLike[str],
    size: StudySize = "small",
    *,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    report: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run a scenario on the twin, or what is missing of it.

    Computes: simulates the twin, takes its samples, trains the coarse networks, and runs the study.
    May be interrupted at any time, and called again.

    Parameters
    ----------
    scenario : {"dependent", "on-site", "off-site"}
    folder : path
        Gets ``twin``, ``coarse`` and ``study``; the scenarios may share it.
    size : {"tiny", "small", "full"}, default "small"
        Of the twin and of the study.
    device : {"auto", "cpu", "cuda"}, default "auto"
    threads : int, optional
        Of the training.
    workers : int, optional
        Processes that simulate and take samples.
    report : path, optional
        HTML, or Markdown where it ends in ``.md``; by default ``study/report.html`` in `folder`.
    progress : callable, optional
        Takes shares from 0 to 1, and texts.

    Returns
    -------
    Path
        The report, labelled as simulated.

    Raises
    ------
    ValueError
        For an unknown size or scenario, or a folder of another study.
    """
    if size not in STUDIES:
        msg = f"size {size!r} is unknown; expected {', '.join(STUDIES)}"
        raise ValueError(msg)
    study, root = STUDIES[size], Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    twin = simulate_twin(root / "twin", size, workers=workers, progress=progress)
    coarse, stations = twin_samples(twin, contract=CONTRACT, workers=workers, progress=progress)
    labelled = Samples.of_cube(coarse)
    base = _coarse_networks(labelled, study, root, device, threads, progress)
    trainer = NetworkTrainer.of_ensemble(
        base,
        study.shapes,
        coarse=labelled,
        transfer=Recipe.transfer(epochs=study.transfer_epochs, learning_rate=study.transfer_rate),
        benchmark=Recipe.benchmark(epochs=study.benchmark_epochs),
        device=device,
        threads=threads,
    )
    return run_scenario(
        scenario,
        stations,
        trainer,
        root / "study",
        trainer=trainer.label,
        sizes=study.sizes,
        seeds=study.seeds,
        networks=study.networks,
        report=report,
        progress=progress,
    )


def rank_members(ensemble: str | Path | Ensemble) -> pd.DataFrame:
    """Compare the order of an ensemble's networks with that of the published ones.

    Which depth and width fits soil moisture at 9 km better than which other is a property of the
    networks and the kind of data; an ensemble trained on other data should find a similar order.

    Lazy: reads cards, no weights.

    Parameters
    ----------
    ensemble : str, Path or Ensemble
        With the validation RMSE of its networks in its card.

    Returns
    -------
    DataFrame
        Index ``network`` (depth-width), columns ``rmse`` and ``published`` in m3 m-3: the mean
        of the last ten epochs on samples that were held back at random, which ranks networks
        and is no accuracy anywhere else. ``attrs["spearman"]`` is the rank correlation, NaN
        for fewer than three networks.

    Raises
    ------
    ValueError
        When no network of the ensemble has both figures.
    """
    ours, published = (
        {(m.depth, m.width): m.rmse for m in get_ensemble(one).card.members if m.rmse is not None}
        for one in (ensemble, PUBLISHED_ENSEMBLE)
    )
    shapes = sorted(ours.keys() & published.keys())
    if not shapes:
        msg = (
            f"no network of {get_ensemble(ensemble).name!r} has a validation RMSE in its card and "
            "the shape of a published one"
        )
        raise ValueError(msg)
    table = pd.DataFrame(
        {
            "rmse": [ours[shape] for shape in shapes],
            "published": [published[shape] for shape in shapes],
        },
        index=pd.Index([f"{depth}-{width}" for depth, width in shapes], name="network"),
    )
    correlation = np.corrcoef(table.rank().to_numpy().T)[0, 1] if len(shapes) > 2 else np.nan
    table.attrs["spearman"] = float(correlation)
    return table


def _coarse_networks(
    samples: Samples,
    study: TwinStudy,
    root: Path,
    device: str,
    threads: int | None,
    progress: Progress | None,
) -> Ensemble:
    """Train the networks at 9 km, or take those trained before."""
    home = root / "coarse"
    if (home / CARD).is_file():
        return get_ensemble(home)
    if progress is not None:
        progress("train the coarse networks")
    return train_ensemble(
        samples,
        "twin-coarse",
        Recipe.coarse(epochs=study.coarse_epochs, batch=study.batch),
        shapes=study.shapes,
        truth="simulated SMAP at 9 km",
        licence="Apache-2.0",
        simulated=True,
        folder=home,
        checkpoint=root / "coarse-checkpoint",
        log=root / "coarse.csv",
        device=device,
        threads=threads,
        progress=progress,
    )
