"""Step 7 of 7 (write): the command line; each command parses, calls one function, prints.

Errors that a user can mend end in one line and a status other than 0. Heavy libraries are
imported inside the commands, so that help comes at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

__all__ = ["main"]

P = ParamSpec("P")
R = TypeVar("R")

ENSEMBLE = click.argument("name", default="DenseSM-E")


class _Echo(logging.Handler):
    """Messages of the package, on the terminal's error channel."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors that name their remedy into one line on the terminal.

    Parameters
    ----------
    command : callable

    Returns
    -------
    callable
    """

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from xsoilsm.state import WeightsError

        try:
            return command(*args, **kwargs)
        except (WeightsError, ValueError, OSError, ModuleNotFoundError) as error:
            raise click.ClickException(str(error)) from error

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xsoilsm")
def main() -> None:
    """Soil moisture at high resolution from Sentinel-1 with the DenseSM-E networks."""
    logger = logging.getLogger("xsoilsm")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.addHandler(_Echo())


@main.group()
def weights() -> None:
    """Download, import, list and verify the weights of ensembles."""


@weights.command("list")
@one_line_errors
def weights_list() -> None:
    """List the known ensembles and how many of their members are here."""
    from xsoilsm.ensemble import list_ensembles

    table = list_ensembles()
    table["weights"] = [
        f"{here} of {total}" for here, total in zip(table["weights"], table["members"], strict=True)
    ]
    click.echo(table.drop(columns=["members", "path"]).to_string(index=False))


@weights.command("fetch")
@ENSEMBLE
@click.option("--member", "labels", multiple=True, metavar="DEPTH-WIDTH", help="Only this member.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@one_line_errors
def weights_fetch(name: str, labels: tuple[str, ...], quiet: bool) -> None:
    """Download the weights of the ensemble NAME, check and convert them.

    Files that are here and verified are not downloaded again.
    """
    from xsoilsm.ensemble import get_ensemble
    from xsoilsm.supply import fetch_weights, select_members
    from xsoilsm.weights import weights_folder

    card = get_ensemble(name).card
    chosen = select_members(card, labels)
    fetched = fetch_weights(card, chosen, progress=not quiet, notify=_notice)
    click.echo(
        f"{card.name}: {len(fetched)} downloaded, {len(chosen) - len(fetched)} were here and "
        f"verified, in {weights_folder(card)}"
    )


@weights.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("name", required=False)
@click.option("--member", "labels", multiple=True, metavar="DEPTH-WIDTH", help="Only this member.")
@one_line_errors
def weights_import(path: Path, name: str | None, labels: tuple[str, ...]) -> None:
    """Take the published files of the ensemble NAME from a folder or zip archive at PATH.

    Without NAME, a folder with card.yaml is installed as an ensemble of its own.
    """
    from xsoilsm.ensemble import CARD, get_ensemble, install_ensemble
    from xsoilsm.supply import import_weights, select_members
    from xsoilsm.weights import weights_folder

    if name is None and (path / CARD).is_file():
        ensemble = install_ensemble(path)
        click.echo(f"{ensemble.name}: installed in {ensemble.folder}")
        return
    card = get_ensemble(name or "DenseSM-E").card
    chosen = select_members(card, labels)
    imported = import_weights(card, path, chosen)
    _notice(card.licence.statement)
    click.echo(
        f"{card.name}: {len(imported)} imported, {len(chosen) - len(imported)} were here and "
        f"verified, in {weights_folder(card)}"
    )


@weights.command("verify")
@ENSEMBLE
@one_line_errors
def weights_verify(name: str) -> None:
    """Read every file of the ensemble NAME and compare it with the card."""
    from xsoilsm.ensemble import get_ensemble
    from xsoilsm.weights import examine, explain

    ensemble = get_ensemble(name)
    found = examine(ensemble.card, ensemble.folder)
    for entry in found:
        click.echo(f"{entry.member.label:>6}  {entry.state:<8} {entry.reason}".rstrip())
    bad = [entry for entry in found if entry.state != "ok"]
    if bad:
        raise click.ClickException(explain(ensemble.card, ensemble.folder, bad))
    click.echo(f"{ensemble.name}: all {len(found)} members are as the card says")


def _notice(text: str) -> None:
    click.echo(f"Licence: {text}", err=True)


@main.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default="demo-out", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress bars.")
@one_line_errors
def demo(out: Path, quiet: bool) -> None:
    """Map the virtual landscape at 1 km and 100 m and compare with its simulated truth."""
    from xsoilsm.demo import run_demo

    table = run_demo(out, say=click.echo, progress=not quiet)
    click.echo("\nretrieved against SIMULATED truth, m3 m-3")
    click.echo(table.round(3).to_string(index=False))


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--centre", nargs=2, type=float, default=(-5.4, 41.3), show_default=True, metavar="LON LAT"
)
@click.option("--size", "size_km", type=float, default=30.0, show_default=True, help="In km.")
@click.option("--acquisitions", type=int, default=3, show_default=True)
@click.option("--start", default="2020-04-01", show_default=True, help="First day of passes.")
@click.option("--spacing", type=float, default=10.0, show_default=True, help="Radar pixel in m.")
@click.option(
    "--land",
    type=click.Choice(["100m", "500m", "1km"]),
    default="100m",
    show_default=True,
    help="Grid on which soil, plants and water are simulated; coarse ones suit large regions.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace another landscape at PATH.")
@click.option(
    "--twin",
    type=click.Choice(["tiny", "small", "full"]),
    help="Regions, years and stations for training instead, in this size.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@one_line_errors
def simulate(path: Path | None, twin: str | None, quiet: bool, **options: Any) -> None:
    """Simulate a landscape with its satellite data, as a static STAC catalog at PATH.

    Without PATH it becomes the landscape of the catalog "demo". A twin goes on where an interrupted
    run of it ended.
    """
    from xsoilsm.progress import share_bar
    from xsoilsm.simulate import landscape_folder, simulate_landscape

    if twin:
        from xsoilsm.simulate.twin import simulate_twin

        with share_bar(not quiet, "twin") as report:
            folder = simulate_twin(
                path or Path("twin"), twin, seed=options["seed"], progress=report
            )
        click.echo(f"twin experiment (simulated): {folder}")
        return
    with share_bar(not quiet, "simulate") as report:
        catalog = simulate_landscape(path or landscape_folder(), progress=report, **options)
    click.echo(f"virtual landscape (simulated): {catalog}")


@main.group()
def cache() -> None:
    """Remove what is kept on this machine."""


@cache.command("clear-layers")
@one_line_errors
def cache_clear_layers() -> None:
    """Remove the kept terrain, soil and land cover; they are read anew when needed."""
    from xsoilsm.sources.ground.layers import clear_layers, layers_dir

    click.echo(f"{clear_layers() / 1e6:.1f} MB removed from {layers_dir()}")


@main.command("search")
@click.option(
    "--bbox", nargs=4, type=float, required=True, metavar="WEST SOUTH EAST NORTH", help="Degrees."
)
@click.option("--time", required=True, help="Days in UTC, for instance 2020-04 or START/END.")
@click.option("--catalog", default="planetary-computer", show_default=True, help="Name or path.")
@one_line_errors
def search_command(bbox: tuple[float, float, float, float], time: str, catalog: str) -> None:
    """List what a catalog has for a region and a time, with its gaps, before anything is read."""
    from xsoilsm.inventory import describe, search

    click.echo(describe(search(bbox, time, catalog)))


WHERE = click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
WORKERS = click.option("--workers", type=int, help="Processes; by default one for each processor.")
THREADS = click.option("--threads", is_flag=True, help="Threads of one process as workers instead.")
SCHEDULER = click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler instead.")
QUIET = click.option("--quiet", is_flag=True, help="No progress bar.")


@main.group("map", invoke_without_command=True)
@click.option("--bbox", nargs=4, type=float, metavar="WEST SOUTH EAST NORTH", help="Degrees.")
@click.option(
    "--region",
    type=click.Path(path_type=Path),
    help="File with polygons: GeoJSON, GeoPackage, GeoParquet.",
)
@click.option("--time", help="Days in UTC, for instance 2020-04 or START/END.")
@click.option("--res", default="1km", show_default=True, help="9km, 1km, 500m or 100m.")
@click.option("--catalog", default="planetary-computer", show_default=True, help="Name or path.")
@click.option("--model", default="DenseSM-E", show_default=True, help="Ensemble: name or path.")
@click.option(
    "--composite",
    type=click.Choice(["none", "daily", "8day", "monthly"]),
    default="none",
    show_default=True,
    help="Map acquisitions, or means over periods.",
)
@click.option("--mask", multiple=True, metavar="FLAG", help="Blank cells with this quality flag.")
@click.option("--asof", metavar="MOMENT", help="Use only what had come by then, in UTC.")
@click.option("--tile-size", type=int, help="Cells along the side of a tile.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the job.")
@click.option("--estimate", is_flag=True, help="Say what the job takes; makes one unit of it.")
@WORKERS
@THREADS
@SCHEDULER
@QUIET
@one_line_errors
def map_group(mask: tuple[str, ...], quiet: bool, **options: Any) -> None:
    """Map soil moisture over a region, tile by tile, and go on where the last run ended."""
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        return
    absent = [f"--{name}" for name in ("time", "out") if options[name] is None]
    if absent:
        msg = f"Missing option {' and '.join(absent)}."
        raise click.UsageError(msg, context)
    from xsoilsm.mapping.commands import map_job

    options["mask"] = list(mask) or "default"
    if _finish(lambda: map_job(**options, say=_say, progress=not quiet)):
        _publish(options["out"])


@map_group.command("status")
@WHERE
@one_line_errors
def map_status(out: Path) -> None:
    """Say how the job in OUT stands, also while it runs."""
    from xsoilsm.mapping.commands import status

    click.echo(status(out))


@map_group.command("retry")
@WHERE
@WORKERS
@THREADS
@SCHEDULER
@QUIET
@one_line_errors
def map_retry(quiet: bool, **options: Any) -> None:
    """Make what is missing, failed or damaged of the job in OUT."""
    from xsoilsm.mapping.commands import retry

    if _finish(lambda: retry(**options, say=_say, progress=not quiet)):
        _publish(options["out"])


@map_group.command("verify")
@WHERE
@one_line_errors
def map_verify(out: Path) -> None:
    """Read every file of the job in OUT and list what is damaged."""
    from xsoilsm.mapping.commands import verify

    def check() -> Any:
        summary, damaged = verify(out)
        for line in damaged:
            click.echo(line)
        return summary

    _finish(check)


@map_group.command("explain", context_settings={"ignore_unknown_options": True})
@WHERE
@click.argument("lon", type=float)
@click.argument("lat", type=float)
@click.argument("date")
@one_line_errors
def map_explain(out: Path, lon: float, lat: float, date: str) -> None:
    """Say why the pixel of the job in OUT at LON LAT is empty or flagged on DATE."""
    from xsoilsm.mapping.commands import explain_cell

    click.echo(explain_cell(out, lon, lat, date))


@map_group.command("export")
@WHERE
@click.option(
    "--form",
    "forms",
    type=click.Choice(["cog", "stac", "zarr", "netcdf"]),
    multiple=True,
    default=("cog", "stac"),
    show_default=True,
)
@click.option(
    "--numbers",
    type=click.Choice(["float32", "int16"]),
    default="float32",
    show_default=True,
    help="int16: steps of 0.0001 m3 m-3.",
)
@one_line_errors
def map_export(out: Path, **options: Any) -> None:
    """Put the tiles of the job in OUT together, as they are now."""
    _publish(out, **options)


def _publish(out: Path, **options: Any) -> None:
    from xsoilsm.mapping.publish import publish

    for files in publish(out, **options).values():
        for file in files:
            click.echo(file)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _finish(action: Callable[[], Any]) -> bool:
    """Run a job and say how it stands; ends with a status where it is not complete.

    Returns
    -------
    bool
        Whether a job was run.
    """
    from xsoilsm.mapping import InterruptedJobError

    try:
        summary = action()
    except InterruptedJobError as stop:
        click.echo(f"stopped. {stop}", err=True)
        raise SystemExit(130) from None
    if summary is not None:
        _say(str(summary))
        if not summary.is_complete:
            raise SystemExit(1)
    return summary is not None


@main.command("train")
@click.argument("samples", type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["transfer", "coarse", "benchmark", "adaptation"]),
    default="transfer",
    show_default=True,
)
@click.option("--base", help="Ensemble to start from. [default: DenseSM-E, the published one]")
@click.option("--coarse", type=click.Path(exists=True, path_type=Path), help="9 km samples.")
@click.option("--target", type=click.Path(exists=True, path_type=Path), help="Unlabelled samples.")
@click.option("--contract", help="Feature contract, where samples are in physical units.")
@click.option("--member", "members", multiple=True, metavar="DEPTH-WIDTH", help="Only this one.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Of the recipe.")
@click.option("--truth", default="", help="What the labels are, for the card.")
@click.option("--period", default="", help="When they were measured, for the card.")
@click.option("--licence", help="SPDX name of the terms of the new ensemble.")
@click.option("--simulated", is_flag=True, help="The samples are simulated.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace an ensemble of this name.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@one_line_errors
def train_command(samples: Path, name: str, quiet: bool, **options: Any) -> None:
    """Train the ensemble NAME on the file SAMPLES; run again, it goes on where it stopped."""
    from xsoilsm.progress import share_bar
    from xsoilsm.training.command import describe_ensemble, train_files

    with share_bar(not quiet, name) as report:
        ensemble = train_files(samples, name, progress=report, **options)
    click.echo(describe_ensemble(ensemble))


@main.command("finetune")
@click.argument("stations", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option("--cube", type=click.Path(exists=True, path_type=Path), help="Cube: .zarr or .nc.")
@click.option("--catalog", default="planetary-computer", show_default=True, help="Name or path.")
@click.option("--time", help="Days in UTC, for instance 2020 or START/END. [default: all]")
@click.option("--res", help="9km, 1km, 500m or 100m. [default: that of the cube, else 1km]")
@click.option("--base", default="DenseSM-E", show_default=True, help="Ensemble to start from.")
@click.option("--folds", default=5, show_default=True, help="Of the cross-validation by site.")
@click.option("--block", help="Hold out sites in one cell of this grid together: 9km, 1km, 500m.")
@click.option("--no-validation", is_flag=True, help="Make an ensemble of which nothing is known.")
@click.option("--member", "members", multiple=True, metavar="DEPTH-WIDTH", help="Only this one.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Of the recipe.")
@click.option("--report", type=click.Path(path_type=Path), help="HTML file.")
@click.option("--licence", help="SPDX name of the terms of the new ensemble.")
@click.option("--simulated", is_flag=True, default=None, help="The data are simulated.")
@click.option("--together", is_flag=True, help="Read what lies between dense stations too.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run left.")
@click.option("--overwrite", is_flag=True, help="Replace an ensemble and report of this name.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@one_line_errors
def finetune_command(
    stations: tuple[Path, ...], name: str, no_validation: bool, quiet: bool, **options: Any
) -> None:
    """Tune an ensemble on STATIONS, a table or archives of the ISMN, and validate it by site.

    The new ensemble gets the NAME. Run again, it goes on where it stopped.
    """
    from xsoilsm.finetuning import finetune_files
    from xsoilsm.progress import share_bar

    truth = stations[0] if len(stations) == 1 else list(stations)
    validation = None if no_validation else "sites"
    with share_bar(not quiet, name) as report:
        made = finetune_files(truth, name, validation=validation, progress=report, **options)
    click.echo(made)


@main.command("evaluate")
@click.argument("table", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--report", type=click.Path(path_type=Path), help="HTML or Markdown file to write.")
@click.option("--qa4sm", type=click.Path(path_type=Path), help="NetCDF file to write.")
@click.option("--truth", default="soil_moisture", show_default=True, help="Column of the truth.")
@click.option("--predicted", default="predicted", show_default=True, help="Column compared.")
@click.option(
    "--independence",
    type=click.Choice(["sites", "years", "none", "not stated"]),
    default="not stated",
    show_default=True,
    help="What the samples do not share with those of training.",
)
@click.option("--simulated", is_flag=True, default=None, help="The samples are simulated.")
@click.option("--overwrite", is_flag=True, help="Replace files of the same names.")
@click.option(
    "--scenario",
    type=click.Choice(["dependent", "on-site", "off-site"]),
    help="Run this scenario instead, on --data.",
)
@click.option("--data", type=click.Choice(["twin"]), default="twin", show_default=True)
@click.option(
    "--size", type=click.Choice(["tiny", "small", "full"]), default="small", show_default=True
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default="validation", show_default=True
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@one_line_errors
def evaluate_command(
    table: Path | None,
    scenario: Any,
    data: str,
    size: Any,
    out: Path,
    device: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare retrievals with truth in the file TABLE: overall, by cell, year, network.

    With --scenario, train and validate on the simulated twin in the folder OUT instead; the same
    line again goes on where it stopped.
    """
    if (table is None) == (scenario is None):
        msg = "Name a TABLE or a --scenario, one of both."
        raise click.UsageError(msg)
    if table is not None:
        from xsoilsm.evaluation import evaluate_file

        click.echo(evaluate_file(table, **options))
        return
    from xsoilsm.progress import share_bar
    from xsoilsm.validation import rank_members, validate_twin

    with share_bar(not quiet, scenario) as report:
        page = validate_twin(
            scenario, out, size, device=device, report=options["report"], progress=report
        )
    ranks = rank_members(out / "coarse")
    click.echo(
        f"{len(ranks)} coarse networks, validation RMSE {ranks['rmse'].max():.4f} to "
        f"{ranks['rmse'].min():.4f} m3 m-3; rank correlation with the published ones: "
        f"{ranks.attrs['spearman']:.2f}"
    )
    click.echo(f"{data} (simulated): {page}")


@main.command("bench")
@click.argument("name", required=False)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--threads", type=int, help="By default all processors.")
@one_line_errors
def bench_command(name: str | None, device: str, threads: int | None) -> None:
    """Say how the networks run here: the way, its rate, its share of the machine's peak.

    Without NAME of an ensemble, networks of the published shapes with made-up weights run.
    """
    from xsoilsm.ensemble import get_ensemble
    from xsoilsm.speed import report

    ensemble = None if name is None else get_ensemble(name)
    click.echo(report(ensemble, device=device, threads=threads))


@main.command("view")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=0, help="By default a free one.")
@one_line_errors
def view_command(folder: Path, port: int) -> None:
    """Show the results in FOLDER in a web page on this machine, until Ctrl-C.

    FOLDER is that of a mapping job, or one that holds GeoTIFFs of results.
    """
    from xsoilsm.mapping.explain import explain_text
    from xsoilsm.viewing import view

    def explain(lon: float, lat: float, time: str) -> str:
        return explain_text(folder, lon, lat, time[:10])

    is_job = (folder / "job.json").is_file()
    view(
        folder,
        port,
        explain=explain if is_job else None,
        started=lambda address: click.echo(f"{address}  (Ctrl-C ends it)"),
    )


if __name__ == "__main__":
    main()
