"""Run benchmarks, print a table each and keep the rows as JSON."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--full", action="store_true", help="full sizes, takes much longer")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"), help="folder for JSON")
    own = parser.add_argument_group("of regions alone")
    own.add_argument("--size", default="", help="8km, 40km, 60km or 300km")
    own.add_argument("--work", default="", metavar="FOLDER", help="keeps landscape and maps")
    own.add_argument("--kills", type=int, default=-1, help="other than usual for the size")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; expected of {', '.join(NAMES)}")
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {p: version(p) for p in ("xsoilsm", "numpy", "numba", "torch")},
    }
    print(json.dumps(machine))
    arguments.out.mkdir(parents=True, exist_ok=True)
    differs = False
    for name in arguments.names or NAMES:
        run = import_module(f"benchmarks.bench_{name}").run
        known = set(inspect.signature(run).parameters) & {"size", "work", "kills"}
        rows = run(arguments.full, **{key: getattr(arguments, key) for key in known})
        print(f"\n{name}")
        _print_table(rows)
        path = arguments.out / f"{name}.json"
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")
        differs |= any(row.get("differs") for row in rows)
    return int(differs)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _print_table(rows: list[dict[str, object]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
