"""Outside the seven steps (truth): archives of the International Soil Moisture Network.

Files are read by the network's own package, ``ismn``, which knows both formats (header and
values; CEOP records). Its interface to whole archives is passed by: that one leaves a cache in
the archive's folder, which may be read-only, prints, and skips what it cannot read. Here every
file is read by itself, and one that is damaged stands in the report with its reason.

Source of the rules: Zhu et al. (2024, doi 10.1016/j.rse.2023.113944): sensors within the top
5 cm, quality flag G, means over sensors and then over the stations of a cell, by calendar day.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm.timespan import Time, days_of
from xsoilsm.truth.table import (
    MAX_DEPTH,
    STATION_COLUMNS,
    Remarks,
    Subject,
    Truth,
    combine_sensors,
    daily_means,
    drop_ambiguous,
    judge_places,
    judge_values,
)

__all__ = ["read_ismn"]

_NAME = re.compile(
    r"^(?P<sensor>.+_(?P<variable>[A-Za-z_]+?)_(?P<top>-?\d+\.\d+)_(?P<bottom>-?\d+\.\d+)_.+)"
    r"_\d{8}_\d{8}\.stm$"
)
_GOOD = "G"
_DEPTH_SLACK = 1e-3  # m: headers and names of files round differently
_DAMAGE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)
"""What reading a damaged file can raise in the package, in pandas and in zip archives."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class _Entry:
    """One file of an archive: where it lies, and what its path and name say."""

    archive: Path
    member: str
    network: str
    station: str
    sensor: str
    top: float
    bottom: float

    @property
    def subject(self) -> Subject:
        """The file, for reports."""
        return Subject(f"{self.archive.name}/{self.member}", self.network, self.station)


@dataclass(frozen=True)
class _Series:
    """What a file holds."""

    lat: float
    lon: float
    time: npt.NDArray[np.datetime64]
    values: npt.NDArray[np.float64]
    flags: npt.NDArray[Any]


def read_ismn(
    path: Paths,
    *,
    networks: str | Sequence[str] | None = None,
    time: Time | None = None,
    max_depth: float = MAX_DEPTH,
    min_values: int = 1,
) -> Truth:
    """Read archives of the International Soil Moisture Network.

    Computes: reads one station after another, about 0.1 s for six years of one sensor. Writes
    nothing beside the archives.

    Parameters
    ----------
    path : path or sequence of paths
        Zip archives as downloaded, or folders with their content; either format. Files of one
        sensor in several archives are put together.
    networks : str or sequence of str, optional
        Names of the networks to read.
    time : str, (start, end) or slice, optional
        Days to keep, see `xsoilsm.load_cube`.
    max_depth : float, default 0.05
        Lower end in m of the deepest sensor that counts.
    min_values : int, default 1
        Good values that a sensor must have on a day.

    Returns
    -------
    Truth
        Daily means of each station over its sensors, by UTC day. `land_cover` is the class of
        ESA CCI of 2010, `climate` that of Koeppen and Geiger. The report names every file and
        all values that were left out: those of other flags than G, negative or above 1,
        contradicting ones; and sensors whose values are in percent.

    Raises
    ------
    FileNotFoundError
        When a path does not exist.
    ValueError
        When a path is no archive of this kind, or nothing in it can be used.
    ImportError
        When the package ``ismn`` is not installed.
    """
    _require()
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    remarks = Remarks()
    entries = [entry for one in paths for entry in _entries(Path(one), remarks)]
    if networks is not None:
        networks = [networks] if isinstance(networks, str) else networks
        known = sorted({entry.network for entry in entries})
        unknown = sorted(set(networks) - set(known))
        if unknown:
            msg = (
                f"the archive has no network {', '.join(unknown)}; it has {', '.join(known)} "
                "(with soil moisture)"
            )
            raise ValueError(msg)
        entries = [entry for entry in entries if entry.network in set(networks)]
    stations: dict[tuple[str, str], list[_Entry]] = {}
    for entry in entries:
        stations.setdefault((entry.network, entry.station), []).append(entry)
    days = None if time is None else days_of(time)
    tables = []
    for name in sorted(stations):
        table = _station(stations[name], remarks, max_depth, min_values)
        if table is not None and days is not None:
            dates = table["date"].to_numpy()
            inside = (dates >= np.datetime64(days[0])) & (dates <= np.datetime64(days[1]))
            table = table[inside]
        if table is not None and len(table):
            tables.append(table)
    if not tables:
        raise ValueError(_nothing(paths, len(entries), remarks.table(), max_depth))
    return Truth(pd.concat(tables, ignore_index=True), remarks.table())


def _require() -> None:
    try:
        import ismn.filehandlers  # noqa: F401
    except ImportError as error:
        msg = (
            "reading archives of the International Soil Moisture Network needs the package "
            "'ismn'; install it with: pip install 'xsoilsm[train]'"
        )
        raise ImportError(msg) from error


def _nothing(paths: Sequence[Any], files: int, report: pd.DataFrame, max_depth: float) -> str:
    where = ", ".join(str(path) for path in paths)
    if not files:
        return (
            f"{where} holds no file of soil moisture; expected folders NETWORK/STATION with "
            "files *_sm_*.stm, as the network's downloads have them"
        )
    reasons = "; ".join(report["reason"].value_counts().index[:3])
    return (
        f"{where} holds {files} file(s) of soil moisture, but no value with flag G at "
        f"{max_depth:g} m or above that can be used"
        + (f": {reasons}" if reasons else "; look at max_depth and time")
    )


# --------------------------------------------------------------------------- archives


def _entries(archive: Path, remarks: Remarks) -> Iterator[_Entry]:
    """Files of soil moisture in an archive."""
    if not archive.exists():
        msg = f"{archive} does not exist; expected a zip archive or folder of the network"
        raise FileNotFoundError(msg)
    if archive.is_dir():
        found = sorted(archive.rglob("*.stm"))
        members = [file.relative_to(archive).as_posix() for file in found]
    else:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = sorted(n for n in opened.namelist() if n.endswith(".stm"))
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            msg = (
                f"{archive} is not a whole zip archive ({error}); download it again, or give "
                "the folder that it was unpacked to"
            )
            raise ValueError(msg) from error
    for member in members:
        place = PurePosixPath(member)
        if place.name.startswith("."):
            continue  # what desktop systems put into archives beside each file
        match = _NAME.match(place.name)
        if match is None or len(place.parts) < 3:
            remarks.add(
                "the file's place or name is not NETWORK/STATION/..._sm_0.05_0.05_..., as the "
                "network's downloads have it",
                Subject(f"{archive.name}/{member}"),
            )
        elif match["variable"] == "sm":
            yield _Entry(
                archive,
                member,
                place.parts[-3],
                place.parts[-2],
                match["sensor"],
                float(match["top"]),
                float(match["bottom"]),
            )


@contextmanager
def _unpacked(entry: _Entry) -> Iterator[tuple[Any, str]]:
    """Root for the package, and the file's path in it: two folders and a name."""
    from ismn.base import IsmnRoot

    parts = PurePosixPath(entry.member).parts
    inner = "/".join(parts[-3:])
    if entry.archive.is_dir():
        yield IsmnRoot(entry.archive.joinpath(*parts[:-3])), inner
        return
    with (
        tempfile.TemporaryDirectory(prefix="xsoilsm-ismn-") as folder,
        zipfile.ZipFile(entry.archive) as opened,
    ):
        opened.extract(entry.member, folder)
        yield IsmnRoot(Path(folder).joinpath(*parts[:-3])), inner


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what pandas says to the package, which users cannot mend.

    That columns are of mixed types and dates of no common form is told apart by the caller.
    """
    with warnings.catch_warnings():
        for kind in (pd.errors.DtypeWarning, UserWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


# --------------------------------------------------------------------------- stations


def _station(
    entries: list[_Entry], remarks: Remarks, max_depth: float, min_values: int
) -> pd.DataFrame | None:
    network, station = entries[0].network, entries[0].station
    shallow = [entry for entry in entries if _is_shallow(entry, max_depth, remarks)]
    if not shallow:
        remarks.add(
            f"has no sensor at {max_depth:g} m or above",
            Subject(entries[0].archive.name, network, station),
        )
        return None
    sensors: dict[str, list[tuple[_Entry, _Series]]] = {}
    for entry in shallow:
        series = _read(entry, remarks)
        if series is not None:
            sensors.setdefault(entry.sensor, []).append((entry, series))
    read = [series for pairs in sensors.values() for _, series in pairs]
    if not read:
        return None
    wrong = judge_places([s.lat for s in read], [s.lon for s in read])
    if wrong:
        remarks.add(wrong, Subject(entries[0].archive.name, network, station))
        return None
    daily = [
        part
        for pairs in sensors.values()
        if (part := _sensor(pairs, remarks, min_values)) is not None
    ]
    if not daily:
        return None
    land_cover, climate = _surroundings(shallow[0], remarks)
    table = combine_sensors(daily).assign(
        network=network,
        station=station,
        lat=float(np.median([s.lat for s in read])),
        lon=float(np.median([s.lon for s in read])),
        land_cover=land_cover,
        climate=climate,
    )
    return table[list(STATION_COLUMNS)]


def _is_shallow(entry: _Entry, max_depth: float, remarks: Remarks) -> bool:
    if entry.bottom < 0 or entry.top > entry.bottom + 1e-9:
        remarks.add(
            f"depths from {entry.top:g} to {entry.bottom:g} m are none",
            entry.subject,
        )
        return False
    return entry.bottom <= max_depth + 1e-6


def _read(entry: _Entry, remarks: Remarks) -> _Series | None:
    """Read one file through the package; what goes wrong becomes a remark."""
    from ismn.filehandlers import DataFile

    try:
        with _unpacked(entry) as (root, inner), _quiet():
            file = DataFile(root, inner)
            data = file.read_data()
            depth = _stated_depth(file)
        series = _Series(
            float(file.metadata["latitude"].val),
            float(file.metadata["longitude"].val),
            data.index.to_numpy(dtype="datetime64[ns]"),
            pd.to_numeric(data["soil_moisture"], errors="coerce").to_numpy(dtype=np.float64),
            data["soil_moisture_flag"].astype(str).str.strip().to_numpy(dtype=object),
        )
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EMFILE):
            raise
        remarks.add(
            f"cannot be read: {_told(error)}",
            entry.subject,
        )
        return None
    if max(abs(depth[0] - entry.top), abs(depth[1] - entry.bottom)) > _DEPTH_SLACK:
        remarks.add(
            f"depths {depth[0]:g} to {depth[1]:g} m inside contradict {entry.top:g} to "
            f"{entry.bottom:g} m in the file's name",
            entry.subject,
        )
        return None
    return series


def _stated_depth(file: Any) -> tuple[float, float]:
    """Depths in m that the content states; of CEOP records the package reads the name only."""
    if file.file_type == "ceop_sep":
        first = file.get_elements_from_file()[0]
        return float(first[10]), float(first[11])
    depth = file.metadata["instrument"].depth
    return float(depth.start), float(depth.end)


def _told(error: BaseException) -> str:
    """Last line of an error: the package puts whole traces into its messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _sensor(
    pairs: list[tuple[_Entry, _Series]], remarks: Remarks, min_values: int
) -> pd.DataFrame | None:
    """Daily means of one sensor, from all files that hold a part of it."""
    entry = pairs[0][0]
    subject = entry.subject
    time = np.concatenate([series.time for _, series in pairs])
    values = np.concatenate([series.values for _, series in pairs])
    flags = np.concatenate([series.flags for _, series in pairs])
    good = flags == _GOOD
    if not good.all():
        counts = pd.Series(flags[~good]).replace("nan", "none").value_counts()
        named = ", ".join(f"{flag} {number}" for flag, number in counts.iloc[:4].items())
        remarks.add(
            f"other flags than G ({named}{', ...' if len(counts) > 4 else ''})",
            subject,
            values=int((~good).sum()),
        )
    stamped = ~np.isnat(time)
    if (good & ~stamped).any():
        remarks.add("no time", subject, values=int((good & ~stamped).sum()))
    usable = good & stamped
    verdict = judge_values(values[usable])
    if verdict.refused:
        remarks.add(verdict.refused, subject, values=int(usable.sum()))
        return None
    time, values = time[usable][verdict.keep], values[usable][verdict.keep]
    clear, doubled = drop_ambiguous(time, values)
    for reason, number in [*verdict.dropped, *doubled]:
        remarks.add(reason, subject, values=number)
    days = daily_means(time[clear], values[clear], min_values)
    if days.empty:
        remarks.add("has no day with enough good values", subject)
        return None
    return days.assign(depth_from=entry.top, depth_to=entry.bottom)


def _surroundings(entry: _Entry, remarks: Remarks) -> tuple[str, str]:
    """Land cover and climate of a station, from its static variables."""
    from ismn.const import LANDCOVER
    from ismn.filehandlers import StaticMetaFile

    names = {code: name for name, code in LANDCOVER.items()}
    folder = PurePosixPath(entry.member).parent
    subject = Subject(f"{entry.archive.name}/{folder}", entry.network, entry.station)
    try:
        static = _static_member(entry, folder)
        if static is None:
            remarks.add("has no file of static variables", subject, left_out=False)
            return "", ""
        whole = _Entry(entry.archive, static, "", "", "", 0, 0)
        with _unpacked(whole) as (root, inner), _quiet():
            found = {v.name: v.val for v in StaticMetaFile(root, inner).metadata.metadata}
    except _DAMAGE as error:
        reason = f"static variables cannot be read: {_told(error)}"
        remarks.add(reason, subject, left_out=False)
        return "", ""
    code = next(
        (
            int(found[key])
            for key in ("lc_2010", "lc_2005", "lc_2000")
            if found.get(key) is not None and np.isfinite(found[key])
        ),
        None,
    )
    on_site = str(found.get("lc_insitu", "unknown"))
    land_cover = names.get(code, str(code)) if code is not None else on_site
    climate = str(found.get("climate_KG", "unknown"))
    return _known(land_cover), _known(climate)


def _known(name: str) -> str:
    return "" if name in ("unknown", "nan") else name


def _static_member(entry: _Entry, folder: PurePosixPath) -> str | None:
    if entry.archive.is_dir():
        files = sorted(entry.archive.joinpath(*folder.parts).glob("*.csv"))
        names = [file.relative_to(entry.archive).as_posix() for file in files]
    else:
        with zipfile.ZipFile(entry.archive) as opened:
            prefix = f"{folder.as_posix()}/"
            names = sorted(
                n for n in opened.namelist() if n.startswith(prefix) and n.endswith(".csv")
            )
    return names[0] if names else None
