"""`python -m bench.ascend.audit`: MindSpore's Ascend compiler looks at every graph of the product."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

from bench.ascend.audit import standins
from bench.ascend.audit.compiling import Compiled, Graph, compile_all
from bench.ascend.audit.graph import DTYPES, GRAPHS, LEVELS
from bench.ascend.audit.rules import RULES, count_faults, end_faults, kernels, layer_faults
from bench.ascend.audit.support import Support
from janus.inspect.ascend import llama_layer
from janus.inspect.kernels import Kernel, Part
from janus.model.config import PRESETS

LAYERED, LAYERS, OWN_LEVEL = "accumulate text", 2, "O1"
"""The graph whose Llama layers are counted, the layers of every other graph, and the product's own level."""
ACCEPTED = "accepted by MindSpore's Ascend compiler with CANN stubbed"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--preset", type=click.Choice(list(PRESETS)), default="tiny", help="Sizes, with two layers.")
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), default=LEVELS)
@click.option(
    "--dtype", type=click.Choice(DTYPES), default=DTYPES[0], help="float32: as `janus verify` has it."
)
@click.option("--only", "names", multiple=True, type=click.Choice(GRAPHS), help="Only this graph.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keeps dumps and logs here.")
def main(preset: str, levels: tuple[str, ...], dtype: str, names: tuple[str, ...], keep: Path | None) -> None:
    """Show every graph of the product to MindSpore's Ascend compiler; CANN's libraries are empty stand-ins.

    A line for each graph. Ends with 1 if a rule is broken. Of an Ascend nothing is shown: no kernel ran, no
    number, no time and no memory was seen.
    """
    began, compiled, broken = time.perf_counter(), list[Compiled](), 0
    with tempfile.TemporaryDirectory(prefix="ascend-audit-") as scratch:
        environment, accepted = dict(os.environ), ACCEPTED
        if missing := standins.missing_tools():
            levels, accepted = (
                (OWN_LEVEL,),
                "names and dtypes of the front end are in order; nothing was compiled",
            )
            click.echo(
                f"{', '.join(missing)} missing, so there are no stand-ins: only the front end is asked"
            )
        else:
            environment = standins.environment(standins.build(Path(scratch) / "cann"))
        graphs = [*_graphs(preset, levels, names or GRAPHS, dtype)]
        at_once = 1 if preset == "7b" else 2  # each takes 10 GB
        dumps = keep or Path(scratch) / "dumps"
        for one in compile_all(graphs, dumps, environment, bool(missing), at_once):
            compiled.append(one)
            broken += _report(one)
    broken += 0 if missing else _report_layers(compiled)
    minutes = (time.perf_counter() - began) / 60
    verdict = f"{broken} faults" if broken else accepted
    click.echo(f"{len(compiled)} graphs, {minutes:.1f} minutes: {verdict}")
    sys.exit(broken > 0)


def _graphs(preset: str, levels: Sequence[str], names: Sequence[str], dtype: str) -> Iterator[Graph]:
    for level in levels:
        yield from (Graph(name, preset, level, LAYERS, dtype) for name in names)
        if LAYERED in names and dtype == DTYPES[0]:
            yield Graph(LAYERED, preset, level, LAYERS - 1)


def _report(one: Compiled) -> int:
    """Print what the rules say of a graph; how often they were broken."""
    launched = kernels(one.nodes)
    primitives = len({node.primitive for node in launched})
    click.echo(
        f"{one.graph.label:54} {len(one.nodes):5} nodes {len(launched):4} kernels "
        f"{primitives:3} primitives {one.seconds:4.0f} s"
    )
    faults = [*_faults(one)]
    for fault in faults:
        click.echo(f"    {fault}")
    return len(faults)


def _faults(one: Compiled) -> Iterator[str]:
    if not one.nodes:
        yield f"left no whole dump: {one.words}"
        return
    support = Support.load()
    for rule in RULES:
        yield from rule(one.nodes, support)
    if one.facts.get("ends"):
        yield from end_faults(one.facts["ends"], one.facts["tokens"])


def _report_layers(compiled: Sequence[Compiled]) -> int:
    """Print the kernels of a Llama layer at each level; at the product's own they are bounded."""
    own = {(g.level, g.layers): one for one in compiled if (g := one.graph).name == LAYERED and one.nodes}
    faults: list[str] = []
    for level in sorted({level for level, _ in own}):
        if not {(level, LAYERS - 1), (level, LAYERS)} <= set(own):
            continue  # that one was not compiled is a fault already
        one, two = own[level, LAYERS - 1].nodes, own[level, LAYERS].nodes
        click.echo(f"a Llama layer at {level}: {len(kernels(two)) - len(kernels(one))} kernels")
        if level == OWN_LEVEL:
            faults += [*layer_faults(one, two), *count_faults(one, two, _counted(own[level, LAYERS]))]
    for fault in faults:
        click.echo(f"    {fault}")
    return len(faults)


def _counted(one: Compiled) -> list[Kernel]:
    """A layer of the Llama in that graph, by count."""
    config, spans = PRESETS[one.graph.preset].text, np.diff(one.facts["ends"], prepend=0).tolist()
    return list(llama_layer(config, one.facts["tokens"], spans, Part(2, trained=True)))


if __name__ == "__main__":
    main()
