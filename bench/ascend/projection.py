"""The counted operations of docs/ascend.md: `python -m bench.ascend.projection [--write]`.

A projection, not measured: `janus info MODEL --device Ascend` gives each row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from bench.measures.link import ROOT
from janus.common.files import write_text
from janus.inspect.ascend import llama_layer
from janus.inspect.costs import Load
from janus.inspect.kernels import GROUPS, Kernel, Part
from janus.inspect.projection import LABEL, Card, MicroBatch, Step, project
from janus.model.config import PRESETS, TextConfig

PAGE = ROOT / "docs" / "ascend.md"
START, END = "<!-- counted operations: start -->", "<!-- counted operations: end -->"
PEAKS = (313.0, 376.0)  # of the 910B's products, from the lowest stated for an Atlas 800T A2 to the highest
ELEMENT_WISE = ("norms", "rotary", "activations", "adds", "moves")


class Row(NamedTuple):
    """A published step, as the same samples make it here. seconds: published. goal: at the lower peak."""

    name: str
    preset: str
    batches: tuple[MicroBatch, ...]
    seconds: str
    goal: float | None = None

    @property
    def command(self) -> str:
        """What prints this row's projection."""
        return f"janus info {self.preset} --device Ascend " + " ".join(f"--batch {b}" for b in self.batches)


def _of(task: str, rows: int) -> MicroBatch:
    """Mean lengths of the published recipe's samples: 632 tokens; 660, of them 5 targets; 115, of them 50."""
    length, answer = {"t2i": (632, 1), "vqa": (660, 5), "text": (115, 50)}[task]
    return MicroBatch(task, rows, length, answer)


ROWS = (
    Row("1B t2i, 8", "1b", (_of("t2i", 8),), "0.66", 0.34),
    Row("1B vqa, 4", "1b", (_of("vqa", 4),), "0.59", 0.28),
    Row("1B text, 8", "1b", (_of("text", 8),), "0.50"),
    Row("1B mixed, 2 + 2 + 2", "1b", (_of("t2i", 2), _of("vqa", 2), _of("text", 2)), "2.36 / 3.05", 0.30),
    Row("7B t2i, 1", "7b", (_of("t2i", 1),), "0.49"),
    Row("7B vqa, 1", "7b", (_of("vqa", 1),), "0.66"),
    Row("7B text, 1", "7b", (_of("text", 1),), "0.53"),
)


def projected(row: Row, card: Card) -> dict[str, Any]:
    """What `janus info` says of the row."""
    step = Step(batch=row.batches)
    return project(PRESETS[row.preset], Load(dtype="bfloat16"), step, card, train_gen_embed=True)


def cpu_layer_bytes(config: TextConfig, positions: int, spans: Iterable[int]) -> int:
    """Element-wise bytes of a trained Llama layer in the forms of `cpu.py`, as bfloat16 would run them.

    Bytes of an element: a norm casts, squares and spreads, 40 forward and 76 backward; rotary 22 each way for
    q and for k; heads move between tokens and slots in eight gathers of 4; sums of branches and gradients 38;
    SwiGLU 16 and 42. A score is cast, masked, put through softmax and cast, 32, and multiplied backwards, 6.
    """
    a_position = 2 * (40 + 76) + 2 * (22 + 22) + 8 * 4 + 38
    scores = config.num_heads * sum(span**2 for span in spans)
    inner = positions * config.intermediate_size
    return positions * config.hidden_size * a_position + inner * (16 + 42) + scores * (32 + 6)


def layer_kernels(row: Row) -> list[Kernel]:
    """Of a layer of the Llama in the row's first micro-batch, forward and backward."""
    config, batch = PRESETS[row.preset].text, row.batches[0]
    spans = [batch.length] * batch.rows
    return list(llama_layer(config, sum(spans), spans, Part(2, trained=True)))


def element_wise_share(row: Row) -> float:
    """Element-wise bytes of a layer of the Llama over those of the CPU's forms."""
    config, batch = PRESETS[row.preset].text, row.batches[0]
    own = sum(k.reads + k.writes for k in layer_kernels(row) if k.group in ELEMENT_WISE)
    return own / cpu_layer_bytes(config, batch.rows * batch.length, [batch.length] * batch.rows)


def section() -> Iterator[str]:
    """The lines between the page's markers."""
    yield f"All but the published seconds: **{LABEL}**, at a peak of 376 to 313 TFLOP/s."
    yield ""
    yield "| step | published, s | projected, s | goal | TFLOP | GB moved | launches | GiB of 58 | host GiB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    found = {row: [projected(row, Card(peak_tflops=peak)) for peak in PEAKS] for row in ROWS}
    for row, (slow, fast) in found.items():
        step, memory = slow["step"], slow["memory"]
        seconds = f"{fast['step']['seconds']:.2f} to {step['seconds']:.2f}"
        verdict = "" if row.goal is None else f"≤ {row.goal:.2f}: {_met(step['seconds'], row.goal)}"
        yield (
            f"| {row.name} | {row.seconds} | {seconds} | {verdict} | {step['operations'] / 1e12:.1f} "
            f"| {step['bytes'] / 1e9:.0f} | {step['launches']:,} | {memory['total'] / 2**30:.1f} "
            f"| {memory['host'] / 2**30:.1f} |"
        )
    quicker = Card(adamw_bandwidth=Card().bandwidth)
    goals = [f"{row.name} {projected(row, quicker)['step']['seconds']:.2f}" for row in ROWS if row.goal]
    yield from (
        "",
        f"Most rests on AdamW's bandwidth. With that of other kernels, at 313: {'; '.join(goals)}.",
    )
    yield from ("", "Milliseconds by kernel group, at 313 TFLOP/s:", "")
    yield "| step | " + " | ".join(GROUPS) + " |"
    yield "|---" * (len(GROUPS) + 1) + "|"
    for row, (slow, _) in found.items():
        milliseconds = (f"{1e3 * slow['groups'][group]['seconds']:.1f}" for group in GROUPS)
        yield f"| {row.name} | " + " | ".join(milliseconds) + " |"
    yield from ("", *_layer())
    yield from ("", f"A row again, here the mixed one: `{ROWS[3].command}`.")


def _layer() -> Iterator[str]:
    kernels = layer_kernels(ROWS[0])
    names = Counter(kernel.name for kernel in kernels)
    share = element_wise_share(ROWS[0])
    yield f"A trained layer of the Llama, forward and backward, is {len(kernels)} launches (goal ≤ 40):"
    yield ", ".join(f"{name} {count}" for name, count in names.items()) + "."
    yield f"Its element-wise bytes ({', '.join(ELEMENT_WISE)}) are {share:.2f} of those of the CPU's forms"
    yield f"(goal ≤ 0.20: {_met(share, 0.2)})."


def _met(value: float, goal: float) -> str:
    return "met" if round(value, 2) <= goal else "not met"


def fill(page: str) -> str:
    """The page with today's lines between its markers. Raises ValueError if it has none."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"no {START} … {END}")
    return f"{before}{START}\n" + "\n".join(section()) + f"\n{END}{after}"


@click.command()
@click.option("--write", is_flag=True, help="Put the lines into docs/ascend.md.")
def main(write: bool) -> None:
    """Print the counted operations of docs/ascend.md."""
    if write:
        write_text(PAGE, fill(Path(PAGE).read_text(encoding="utf-8")))
    else:
        click.echo("\n".join(section()))


if __name__ == "__main__":
    main()
