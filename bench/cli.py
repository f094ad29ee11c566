"""`python -m bench`: measure, print the table, write RESULTS.md and results.json."""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import click

from bench.measures.link import ROOT, SideError
from bench.measures.results import Figure, from_json, put_into_readme, table, write
from bench.measures.rows import NAMES, measure
from bench.measures.workload import Session, find, prepare
from janus.common.files import write_text
from janus.device import processor
from janus.model.config import PRESETS

RESULTS = ROOT / "bench" / "RESULTS.md"
PEERS = ROOT / ".venv-bench" / "bin" / "python"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice(NAMES),
    help="Only this row; may be given several times.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, help="Turns of each side; medians are of these."
)
@click.option("--size", type=click.Choice(list(PRESETS)), default="bench", help="Preset to measure.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, help="Where the table goes."
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "data" / "bench",
    show_default="data/bench",
    help="Where shards, peers' copies and logs go; kept for the next time.",
)
@click.option(
    "--peers",
    metavar="PYTHON",
    default=str(PEERS) if PEERS.exists() else sys.executable,
    show_default=".venv-bench's, which `make bench` makes; else this one",
    help="Interpreter that holds torch and the other loaders, which do not fit beside MindSpore.",
)
@click.option("--readme", is_flag=True, help="Measure nothing: put the table of --out into README.md.")
def main(
    names: tuple[str, ...], rounds: int, size: str, out: Path, work: Path, peers: str, readme: bool
) -> None:
    """Measure the project beside its peers, all sides in one session, taking turns.

    Writes the table to OUT and results.json beside it. Peers that are not installed are skipped and named.
    """
    if readme:
        _fill_readme(out.with_name("results.json"))
        return
    began = time.perf_counter()
    session = Session(find(size, work.resolve()), rounds, peers)
    prepare(session.workload)
    click.echo(f"workload: {session.workload.data}, {time.perf_counter() - began:.0f} s to prepare")
    figures: list[Figure] = []
    try:
        for measured in measure(session, names or NAMES):
            figures += measured
            for figure in measured:
                click.echo(f"{time.perf_counter() - began:6.0f} s  {_line(figure)}")
            # After each measurement: should a later one fail, what was measured is kept.
            write(out, figures, _facts(session, time.perf_counter() - began))
    except SideError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"\n{table(figures)}")
    click.echo(f"\nwritten: {out}, {out.with_name('results.json')}")


def _line(figure: Figure) -> str:
    value = "not measured" if figure.value is None else f"{figure.value:.4g}{figure.unit}"
    return f"{figure.row}: {value} (target {figure.target.shown(figure.unit)})"


def _facts(session: Session, seconds: float) -> dict[str, str]:
    """What a reader must know to judge or repeat the figures."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True, capture_output=True
    )
    return {
        "machine": f"{processor()}, {_memory_gb():.0f} GB, {platform.system()}",
        "commit": commit.stdout.strip() or "unknown",
        "date": date.today().isoformat(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "data": session.workload.data,
        "rounds": f"{session.rounds}, {seconds / 60:.0f} minutes in all",
    }


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _fill_readme(results: Path) -> None:
    if not results.is_file():
        raise click.ClickException(f"{results} is not there; `make bench` writes it")
    content = json.loads(results.read_text(encoding="utf-8"))
    path = ROOT / "README.md"
    filled = put_into_readme(path.read_text(encoding="utf-8"), from_json(content), content["session"])
    write_text(path, filled)
    click.echo(f"filled: {path}")
