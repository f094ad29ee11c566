"""The same graphs under MindSpore's real simulation, where CANN is installed: `make ascend-dryrun`.

Whole networks of 1B and 7B, as rank 0 of 8 (https://www.mindspore.cn/tutorials/en/r2.10.0/debug/dryrun.html).
Level 0 ends with the front end, level 1 goes on to the memory that a step takes. No card is used. Where CANN
is not installed this says so and ends with 2: stand-ins would prove nothing here.
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
ENDED = "RuntimeError: Can't find run graph func"
"""With this MindSpore ends a call at level 0: there is a graph, and nothing to run it."""


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
                passed = one.facts.get("done", False) or (level == "0" and one.words.startswith(ENDED))
                click.echo(f"level {level}: {one.graph.label} {_outcome(one, passed)}")
                failed += not passed
    sys.exit(failed > 0)


def _outcome(one: Compiled, passed: bool) -> str:
    if not passed:
        return f"FAILED: {one.words}"
    peak = one.facts.get("peak")
    return f"passed, {one.seconds:.0f} s" + (
        f", at most {peak / 2**30:.2f} GiB of device memory" if peak else ""
    )


if __name__ == "__main__":
    main()
