"""Run benchmarks, print a table each and keep the rows as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--full", action="store_true", help="full sizes, takes much longer")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"), help="folder for JSON")
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
    for name in arguments.names or NAMES:
        rows = import_module(f"benchmarks.bench_{name}").run(arguments.full)
        print(f"\n{name}")
        _print_table(rows)
        path = arguments.out / f"{name}.json"
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")


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
    main()
