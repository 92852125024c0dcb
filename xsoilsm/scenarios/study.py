"""Outside the seven steps (scenarios): a list of trainings that can be interrupted at any time.

A study is a folder. Each run, one training and its retrievals of the samples that validate it, is
one Parquet file, which appears when it is complete. Files are bound to the samples and to the
trainer by digests, so results of different data never mix. Started again, a study does what is
missing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xsoilsm.evaluation import Evaluation, evaluate, tabulate
from xsoilsm.metrics import agreement, inversion_rate, measures, unit_sums, valid
from xsoilsm.scenarios.plan import Predictor, Run, Task, Trainer
from xsoilsm.scenarios.splits import make_split
from xsoilsm.wholefile import UNFINISHED, whole_file

__all__ = ["Result", "Study", "cell_measures"]

Samples = pd.DataFrame | xr.Dataset
Floats = npt.NDArray[np.floating[Any]]


class Result(NamedTuple):
    """What a run left.

    Parameters
    ----------
    run : Run
    rows : (sample,) ndarray of int
        Rows of the study's samples that validate it.
    predicted, spread : (sample,) ndarray
        m3 m-3.
    record : dict
        Numbers of samples and sites, seconds, measures of the members where they are known.
    """

    run: Run
    rows: npt.NDArray[np.int64]
    predicted: Floats
    spread: Floats
    record: dict[str, Any]


@dataclass
class Study:
    """A folder with the samples of a study and the results of its runs.

    Parameters
    ----------
    folder : Path
    samples : DataFrame
        `xsoilsm.evaluation.COLUMNS`, without retrievals.
    simulated : bool
    trainer : str
        What the results were trained with, for people and to tell results apart.
    digest : str
        Of samples and trainer.
    """

    folder: Path
    samples: pd.DataFrame
    simulated: bool
    trainer: str
    digest: str
    _coarse: dict[str, tuple[Floats, Floats]] = field(default_factory=dict, repr=False)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        samples: Samples,
        *,
        trainer: str,
        truth: str = "soil_moisture",
        simulated: bool | None = None,
    ) -> Study:
        """Begin a study, or take up one of the same samples and trainer.

        Computes.

        Parameters
        ----------
        folder : path
        samples : DataFrame or Dataset (sample)
            With truth, ``cell``, ``time``, and what else `xsoilsm.evaluation.COLUMNS` names.
        trainer : str
            Name of the trainer with all of its settings, for instance a digest of its recipe.
        truth : str, default "soil_moisture"
        simulated : bool, optional
            By default what the samples say.

        Returns
        -------
        Study

        Raises
        ------
        ValueError
            When a truth is missing, or the folder holds a study of other samples or another
            trainer.
        """
        table = _study_table(samples, truth)
        said = bool(table.attrs["simulated"]) if simulated is None else simulated
        digest = _digest(table, trainer)
        folder = Path(folder)
        if (folder / "study.json").exists():
            found = cls.open(folder)
            if found.digest != digest or found.simulated != said:
                msg = (
                    f"{folder} holds a study of other samples or another trainer "
                    f"({len(found.samples)} samples, {found.trainer!r}; now {len(table)} and "
                    f"{trainer!r}); choose another folder"
                )
                raise ValueError(msg)
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "samples.parquet", overwrite=True) as scratch:
            table.to_parquet(scratch)
        about = {"trainer": trainer, "simulated": said, "digest": digest, "form": 1}
        with whole_file(folder / "study.json") as scratch:
            scratch.write_text(json.dumps(about, indent=1), encoding="utf-8")
        return cls(folder, table, said, trainer, digest)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Study:
        """Open a study, for instance to report on it.

        Computes: reads the samples.

        Raises
        ------
        ValueError
            When the folder holds no study, or a damaged one.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
            table = pd.read_parquet(folder / "samples.parquet")
        except (OSError, ValueError) as error:
            msg = f"{folder} holds no study that can be read: {error}"
            raise ValueError(msg) from error
        if _digest(table, about["trainer"]) != about["digest"]:
            msg = f"the samples in {folder} are not those that the study began with"
            raise ValueError(msg)
        return cls(folder, table, about["simulated"], about["trainer"], about["digest"])

    # ----------------------------------------------------------------------- running

    def run(
        self,
        runs: Sequence[Run],
        samples: Samples,
        train: Trainer,
        *,
        progress: Callable[[float | str], None] | None = None,
    ) -> int:
        """Do those runs that have no result yet.

        Computes. May be interrupted at any time, and called again.

        Parameters
        ----------
        runs : sequence of Run
            Of `plan`.
        samples : DataFrame or Dataset (sample)
            Those that the study was created with, in the same order, with the inputs.
        train : Trainer
        progress : callable, optional
            Takes shares from 0 to 1, and texts.

        Returns
        -------
        int
            Number of runs that were done now.

        Raises
        ------
        ValueError
            When `samples` are others, a split cannot be made, or a predictor gives something
            else than two numbers for each sample.
        OSError
            When another process works on the study.
        """
        count = len(samples) if isinstance(samples, pd.DataFrame) else samples.sizes["sample"]
        if count != len(self.samples):
            msg = f"the study has {len(self.samples)} samples; {count} were passed"
            raise ValueError(msg)
        with self._alone():
            for leftover in self.folder.glob(f"results/{UNFINISHED}*"):
                leftover.unlink()
            missing = [run for run in runs if self.result(run) is None]
            for number, run in enumerate(missing):
                if progress is not None:
                    progress(run.key)
                    progress(number / len(missing))
                self._one(run, samples, train)
            if progress is not None:
                progress(1.0)
        return len(missing)

    def _one(self, run: Run, samples: Samples, train: Trainer) -> None:
        split = make_split(self.samples, run.scenario, run.size, run.seed, run.network)
        begin = time.perf_counter()
        scratch = self.folder / "scratch" / run.key
        scratch.mkdir(parents=True, exist_ok=True)
        task = Task(run.arm, run.scenario, scratch)
        record: dict[str, Any] = {
            "samples_trained": int(split.train.size),
            "samples_validated": int(split.test.size),
            "sites_trained": int(self.samples["cell"].iloc[split.train].nunique()),
            "sites_validated": int(self.samples["cell"].iloc[split.test].nunique()),
            "independence": split.independence,
            "split": split.digest,
        }
        try:
            if run.arm == "coarse":
                mean, spread = self._as_they_are(samples, train, task)
                mean, spread = mean[split.test], spread[split.test]
            else:
                predict = train(_take(samples, split.train), task, run.seed)
                held_out = _take(samples, split.test)
                mean, spread = _checked(predict(held_out), split.test.size)
                record |= self._members(predict, held_out, split.test)
        except Exception as error:
            error.add_note(f"in the run {run.key} of the study in {self.folder}")
            raise
        record["seconds"] = round(time.perf_counter() - begin, 3)
        self._keep(Result(run, split.test, mean, spread, record))
        shutil.rmtree(scratch, ignore_errors=True)

    def _as_they_are(self, samples: Samples, train: Trainer, task: Task) -> tuple[Floats, Floats]:
        """Retrieve all samples without training, which is the same in every run."""
        if "all" not in self._coarse:
            predict = train(_take(samples, np.arange(0)), task, 0)
            self._coarse["all"] = _checked(predict(samples), len(self.samples))
        return self._coarse["all"]

    def _members(
        self, predict: Predictor, samples: Samples, rows: npt.NDArray[np.int64]
    ) -> dict[str, Any]:
        members = getattr(predict, "members", None)
        if members is None:
            return {}
        truth = self.samples["truth"].to_numpy()[rows]
        found = [agreement(np.where(valid(one), one, np.nan), truth) for one in members(samples)]
        return {"member_r": [m.r for m in found], "member_rmse": [m.rmse for m in found]}

    # ----------------------------------------------------------------------- results

    def _path(self, run: Run) -> Path:
        return self.folder / "results" / f"{run.key}.parquet"

    def _keep(self, result: Result) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"run": asdict(result.run), "study": self.digest, "record": result.record}
        table = pa.table(
            {
                "row": pa.array(result.rows.astype(np.int32)),
                "predicted": pa.array(result.predicted.astype(np.float32)),
                "spread": pa.array(result.spread.astype(np.float32)),
            }
        ).replace_schema_metadata({"xsoilsm": json.dumps(about)})
        with whole_file(self._path(result.run), overwrite=True) as scratch:
            pq.write_table(table, scratch, compression="zstd", write_page_checksum=True)

    def result(self, run: Run) -> Result | None:
        """Read what a run left; None where it is not done or its file is damaged.

        Computes: reads and checks one file.

        Raises
        ------
        ValueError
            When the file belongs to another study.
        """
        import pyarrow.parquet as pq
        from pyarrow import ArrowInvalid

        path = self._path(run)
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
            about = json.loads(table.schema.metadata[b"xsoilsm"])
        except FileNotFoundError:
            return None
        except (ArrowInvalid, OSError, KeyError, TypeError, ValueError):
            return None  # damaged: it is done again
        if about["study"] != self.digest or Run(**about["run"]) != run:
            msg = f"{path} belongs to another study; remove it, or choose another folder"
            raise ValueError(msg)
        columns = [table[name].to_numpy() for name in ("row", "predicted", "spread")]
        return Result(run, columns[0].astype(np.int64), columns[1], columns[2], about["record"])

    def results(self) -> Iterator[Result]:
        """All results, in the order of their runs. Reads one file at a time."""
        import pyarrow.parquet as pq

        runs = []
        for path in self.folder.glob("results/*.parquet"):
            if path.name.startswith(UNFINISHED):
                continue
            try:
                held = pq.read_schema(path).metadata[b"xsoilsm"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged: a further call of `run` does it again
            runs.append(Run(**json.loads(held)["run"]))
        for run in sorted(runs, key=lambda run: run.order):
            result = self.result(run)
            if result is not None:
                yield result

    def scores(self) -> pd.DataFrame:
        """One row for each run that is done.

        Computes.

        Returns
        -------
        DataFrame
            scenario, network, size, seed, arm; n, bias, r, rmse, ubrmse, inversion_rate of all
            samples; cells, cell_r, cell_rmse (medians over cells with more than 15 valid
            pairs); best_member_r (NaN where members are not known); and the run's record.
        """
        truth = self.samples["truth"].to_numpy()
        cell = pd.factorize(self.samples["cell"])[0]
        rows = []
        for result in self.results():
            y = truth[result.rows]
            usable = np.where(valid(result.predicted), result.predicted, np.nan)
            found = agreement(usable, y)
            per_cell = cell_measures(result, truth, cell)
            members = result.record.get("member_r", [])
            rows.append(
                {
                    **asdict(result.run),
                    **found._asdict(),
                    "inversion_rate": inversion_rate(result.predicted),
                    "cells": len(per_cell),
                    "cell_r": float(per_cell["r"].dropna().median()),
                    "cell_rmse": float(per_cell["rmse"].median()),
                    "best_member_r": max(members, default=np.nan),
                    **{k: v for k, v in result.record.items() if not isinstance(v, list)},
                }
            )
        return pd.DataFrame(rows)

    def evaluation(self, run: Run) -> Evaluation:
        """Evaluate one run in full, see `xsoilsm.evaluation.evaluate`.

        Computes.

        Raises
        ------
        ValueError
            When the run is not done.
        """
        result = self.result(run)
        if result is None:
            msg = f"{run.key} is not done; the study in {self.folder} has no result of it"
            raise ValueError(msg)
        # What a diverged network says may lie in any range, which is no question of units.
        usable = np.where(valid(result.predicted), result.predicted, np.nan)
        table = self.samples.iloc[result.rows].assign(predicted=usable, spread=result.spread)
        return evaluate(
            table,
            truth="truth",
            name=run.key.replace("_", " "),
            independence=result.record["independence"],
            simulated=self.simulated,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from working on the study; the kernel ends the lock with us."""
        with open(self.folder / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                msg = f"another process works on the study in {self.folder}; wait until it ends"
                raise OSError(error.errno or errno.EBUSY, msg) from error
            yield


def cell_measures(
    result: Result, truth: npt.NDArray[np.float64], cell: npt.NDArray[np.int64]
) -> pd.DataFrame:
    """R, RMSE, ubRMSE and bias of each cell with more than 15 valid pairs, by number of cell."""
    from xsoilsm.evaluation.scores import MORE_THAN

    sums = unit_sums(result.predicted, truth[result.rows], cell[result.rows], int(cell.max()) + 1)
    enough = np.flatnonzero(sums[:, 1] > MORE_THAN)
    return pd.DataFrame(measures(sums[enough]), index=pd.Index(enough, name="cell"))


def _study_table(samples: Samples, truth: str) -> pd.DataFrame:
    count = len(samples) if isinstance(samples, pd.DataFrame) else samples.sizes["sample"]
    nothing = np.full(count, np.nan)
    if isinstance(samples, pd.DataFrame):
        held: Samples = samples.assign(predicted=nothing)
    else:
        held = samples.assign(predicted=("sample", nothing))
    table = tabulate(held, truth=truth)
    attrs = table.attrs
    if len(table) != count:
        msg = f"{count - len(table)} of {count} samples have no truth; leave them out of a study"
        raise ValueError(msg)
    if "time" not in table:
        msg = "the samples of a study need the column 'time'"
        raise ValueError(msg)
    table = table.drop(columns=["predicted", "spread"], errors="ignore")
    table.attrs = attrs
    return table


def _digest(table: pd.DataFrame, trainer: str) -> str:
    held = hashlib.blake2b(trainer.encode(), digest_size=12)
    for name in ("truth", "cell", "time", "network", "station"):
        if name in table:
            hashes = pd.util.hash_pandas_object(table[name], index=False)
            held.update(name.encode() + hashes.to_numpy().astype("<u8").tobytes())
    return held.hexdigest()


def _take(samples: Samples, rows: npt.NDArray[np.int64]) -> Any:
    if isinstance(samples, pd.DataFrame):
        return samples.iloc[rows]
    return samples.isel(sample=rows)


def _checked(found: tuple[Floats, Floats], count: int) -> tuple[Floats, Floats]:
    mean, spread = np.asarray(found[0]), np.asarray(found[1])
    if mean.shape != (count,) or spread.shape != (count,):
        msg = (
            f"a predictor gives mean and spread of each of {count} samples; found the shapes "
            f"{mean.shape} and {spread.shape}"
        )
        raise ValueError(msg)
    return mean, spread
