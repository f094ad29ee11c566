"""The same graphs under MindSpore's real simulation, where CANN is installed: `make ascend-dryrun`.

Whole networks of 1B and 7B, as rank 0 of 8 (https://www.mindspore.cn/tutorials/en/r2.10.0/debug/dryrun.html):
level 0 compiles, level 1 adds the device memory that a step would take. No card is used. Where CANN is not
installed this says so and ends with 2: stand-ins would prove nothing here.
"""

import os
import sys
import tempfile
from pathlib import Path

import click

from bench.ascend.audit import standins
from bench.ascend.audit.compiling import Compiled, Graph, compile_all
from bench.ascend.audit.graph import GRAPHS
from janus.model.config import PRESETS

RANK = {"RANK_ID": "0", "RANK_SIZE": "8"}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--preset", "presets", multiple=True, type=click.Choice(list(PRESETS)), default=("1b", "7b"))
@click.option("--only", "names", multiple=True, type=click.Choice(GRAPHS), help="Only this graph.")
def main(presets: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Compile every graph with the CANN that is installed, under simulation. A line for each graph."""
    path = standins.library_path(os.environ.get("LD_LIBRARY_PATH", ""))
    if absent := standins.absent_libraries(path):
        click.echo(
            f"CANN is not here, nothing was compiled: {', '.join(sorted(absent))} not found; "
            "source CANN's set_env.sh (docs/ascend.md)",
            err=True,
        )
        sys.exit(2)
    failed = 0
    for level in ("0", "1"):
        environment = os.environ | RANK | {"LD_LIBRARY_PATH": path, "MS_SIMULATION_LEVEL": level}
        graphs = [Graph(name, preset, "O1") for preset in presets for name in names or GRAPHS]
        with tempfile.TemporaryDirectory(prefix="ascend-dryrun-") as scratch:
            for one in compile_all(graphs, Path(scratch), environment):
                click.echo(f"level {level}: {_line(one)}")
                failed += not one.facts.get("done")
    sys.exit(failed > 0)


def _line(one: Compiled) -> str:
    if not one.facts.get("done"):
        return f"{one.graph.label} FAILED: {one.words}"
    peak = one.facts.get("peak") or 0
    memory = f", {peak / 2**30:.2f} GiB of device memory at most" if peak else ""
    return f"{one.graph.label} compiled, {one.seconds:.0f} s{memory}"


if __name__ == "__main__":
    main()
