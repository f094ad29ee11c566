"""What the known mistakes cost: `python -m bench.mistakes` trains with each and writes docs/mistakes.md.

One small setting (the embedded sample, `tiny`), the same first weights and the same order of samples for all;
one more run without a mistake sees other samples, and so shows how much a figure moves by chance.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click

from bench.measures.link import ROOT
from bench.measures.workload import run as run_command
from bench.mistaken import LOW_RATE, Bench, Case, Outcome, mean_scales, rounded, without_first_tokens
from bench.mistakes_chart import TASKS, draw
from janus.common.files import write_file, write_text

RIGHT, OTHER, FIRST = "right", "right, other samples", "first token untrained"
EMPTY, MEANS, BFLOAT16 = "empty caption as null prompt", "per-task means", "bfloat16 weights"
LOW, LOW_BFLOAT16 = "right at 1e-5", "bfloat16 weights at 1e-5"
CHANCE = 3
"""A difference shows where it is larger than so many times what other samples make."""

LOW_CASES = (Case(LOW, rate=LOW_RATE), Case(LOW_BFLOAT16, rate=LOW_RATE, bfloat16=True))
"""Runs from the end of the right one, its weights rounded to bfloat16 as published checkpoints are."""


def cases(steps: int) -> list[Case]:
    """The runs from the first weights on."""
    return [
        Case(RIGHT),
        Case(OTHER, first=steps + 1),
        Case(FIRST, edit=without_first_tokens),
        Case(EMPTY, empty_captions=True),
        Case(MEANS, scales=mean_scales),
        Case(BFLOAT16, bfloat16=True),
    ]


@dataclass(frozen=True)
class Measure:
    """A figure that a mistake should move. worse: the sign of what is worse, 0 where neither is."""

    case: str
    name: str
    words: str
    worse: int = 1


MEASURES = (
    Measure(FIRST, "first", "−log p of a picture's first token"),
    Measure(FIRST, "t2i", "t2i loss, all tokens"),
    Measure(EMPTY, "unprompted", "−log p of codes after the sampler's unconditional prompt"),
    Measure(EMPTY, "guided", "−log p of codes under guidance 5"),
    Measure(EMPTY, "guided accuracy", "accuracy of codes under guidance 5", -1),
    Measure(MEANS, "gradient of vqa", "vqa's share of the tasks' gradient norms (training step)", 0),
    Measure(MEANS, "gradient of text", "text's share", 0),
    Measure(MEANS, "gradient of t2i", "t2i's share", 0),
    *(Measure(case, task, f"{task} loss") for case in (MEANS, BFLOAT16) for task in TASKS),
)

PANELS = {
    FIRST: (RIGHT, OTHER, "first", "−log p of the first token"),
    EMPTY: (RIGHT, OTHER, "unprompted", "−log p without a prompt"),
    MEANS: (RIGHT, OTHER, "gradient of t2i", "t2i's share of gradients"),
    BFLOAT16: (RIGHT, OTHER, "lost", "changes lost to rounding"),
    LOW_BFLOAT16: (LOW, None, "lost", "changes lost to rounding"),
}
"""For each mistake: what it is drawn beside, what chance does, and its own figure."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--steps", type=click.IntRange(min=2), default=120, help="Optimizer steps of a run.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "docs" / "mistakes.md",
    show_default="docs/mistakes.md",
    help="Where the text goes; the picture goes to images/ beside it.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "data" / "mistakes",
    show_default="data/mistakes",
    help="Where sample, shards and all figures (figures.json) go.",
)
@click.option(
    "--shards",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    show_default="the embedded sample's, built in --work",
    help="Shards to train on.",
)
@click.option("--model", default="tiny", help="Preset or folder that the shards were built for.")
def main(steps: int, out: Path, work: Path, shards: Path | None, model: str) -> None:
    """Train with each known mistake and without, and write what each cost."""
    began = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(shards or build_shards(work), model, steps, work / "run")
    outcomes: dict[str, Outcome] = {}

    def note(case: Case, outcome: Outcome) -> None:
        outcomes[case.name] = outcome
        losses = ", ".join(f"{task} {outcome.points[-1][task]:.3f}" for task in TASKS)
        click.echo(f"{time.perf_counter() - began:6.0f} s  {case.name}: {losses}")

    for case in cases(steps):
        note(case, bench.train(case, bench.initial, steps))
    for case in LOW_CASES:
        note(case, bench.train(case, rounded(outcomes[RIGHT].weights), max(2, steps // 3)))
    figures = {name: {"points": outcome.points, "end": outcome.end} for name, outcome in outcomes.items()}
    session = _session(steps, time.perf_counter() - began)
    text = json.dumps({"session": session, "runs": figures}, indent=1) + "\n"
    write_text(work / "figures.json", text)
    write(out, outcomes, session)
    click.echo(f"written: {out}, {picture_of(out)}, {work / 'figures.json'}")


def build_shards(work: Path) -> Path:
    """The embedded sample's shards in `work`; what is there already is skipped."""
    sample, shards = work / "sample", work / "shards"
    run_command("pipelines", "sample", "--data", str(sample))
    folders = ["--data", str(sample), "--work", str(work / "work"), "--out", str(shards)]
    tokenizer = ["--tokenizer", str(sample / "tokenizer")]
    run_command("pipelines", "build", *folders, *tokenizer, "--model", "tiny")
    return shards


def _session(steps: int, seconds: float) -> dict[str, str]:
    """What a reader must know to repeat it."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, text=True, capture_output=True)
    return {
        "command": f"python -m bench.mistakes --steps {steps}",
        "commit": commit.stdout.strip() or "unknown",
        "date": date.today().isoformat(),
        "time": f"{seconds / 60:.0f} minutes",
        "machine": f"{os.cpu_count()} cores (load average {os.getloadavg()[1]:.1f})",
    }


def picture_of(out: Path) -> Path:
    """Where the picture of a text goes."""
    return out.parent / "images" / f"{out.stem}.png"


def write(out: Path, outcomes: Mapping[str, Outcome], session: Mapping[str, str]) -> None:
    """The text and its picture."""
    picture = picture_of(out)
    picture.parent.mkdir(parents=True, exist_ok=True)
    content = draw({name: outcome.points for name, outcome in outcomes.items()}, PANELS)
    write_file(picture, lambda beside: beside.write_bytes(content))
    text = page(outcomes, session, f"images/{picture.name}")
    write_text(out, text)


def page(outcomes: Mapping[str, Outcome], session: Mapping[str, str], picture: str) -> str:
    """docs/mistakes.md."""
    losses = "\n".join(
        f"| {name} | " + " | ".join(f"{run.points[-1][task]:.3f}" for task in TASKS) + " |"
        for name, run in outcomes.items()
    )
    return TEXT.format(
        **session,
        picture=picture,
        losses=losses,
        damages="\n".join(_damage(measure, outcomes) for measure in MEASURES),
        rounding=_rounding(outcomes),
        silent=_silent(outcomes),
    )


def verdict(right: float, other: float, mistaken: float, worse: int) -> str:
    """Whether the mistake moved a figure by more than chance does, and which way."""
    moved = mistaken - right
    if abs(moved) <= CHANCE * abs(other - right):
        return "does not show"
    if worse == 0:
        return "higher" if moved > 0 else "lower"
    return "worse" if moved * worse > 0 else "better"


def _values(measure: Measure, outcomes: Mapping[str, Outcome]) -> tuple[float, float, float]:
    """The figure of the right run, of the one on other samples, and with the mistake."""
    runs = [outcomes[name] for name in (RIGHT, OTHER, measure.case)]
    right, other, mistaken = ({**run.points[-1], **run.end}[measure.name] for run in runs)
    return right, other, mistaken


def _damage(measure: Measure, outcomes: Mapping[str, Outcome]) -> str:
    values = _values(measure, outcomes)
    cells = " | ".join(f"{value:.3f}" for value in values)
    return f"| {measure.case} | {measure.words} | {cells} | {verdict(*values, measure.worse)} |"


def _silent(outcomes: Mapping[str, Outcome]) -> str:
    """The mistakes that make none of their figures worse, in a sentence."""
    hurt = {x.case for x in MEASURES if verdict(*_values(x, outcomes), x.worse) == "worse"}
    silent = [case for case in (FIRST, EMPTY, MEANS, BFLOAT16) if case not in hurt]
    if not silent:
        return "Each mistake makes at least one of its figures worse by more than chance."
    return f"Makes no figure of this table worse by more than chance: {', '.join(silent)}."


def _rounding(outcomes: Mapping[str, Outcome]) -> str:
    """What rounding undoes at the recipe's rate and at 1e-5."""
    rows = []
    for right, mistaken, rate in ((RIGHT, BFLOAT16, "the recipe's"), (LOW, LOW_BFLOAT16, f"{LOW_RATE:g}")):
        falls = [
            " / ".join(f"{run.points[0][task] - run.points[-1][task]:.4f}" for task in TASKS)
            for run in (outcomes[right], outcomes[mistaken])
        ]
        rows.append(f"| {rate} | {outcomes[mistaken].end['lost in all']:.1%} | {falls[0]} | {falls[1]} |")
    return "\n".join(rows)


TEXT = """# What the known mistakes cost

Each mistake was made in a run of its own: the embedded sample, the `tiny` network, recipe `sample`, the same
first weights and the same samples in the same order. *right, other samples* makes no mistake and takes the
plan's next steps: what it differs by is chance. One run each, so small differences mean nothing.

`{command}`, commit {commit}, {date}, {time} on {machine}. Not measured on Ascend.

![Validation loss of each task, and each mistake's own figure, beside the right run]({picture})

Grey: right; dotted: right, other samples; colour: the mistake. The last row starts from the right run's end.

## Validation loss at the end

| run | vqa | text | t2i |
|---|---|---|---|
{losses}

The last two runs start where *right* ended (rounded to bfloat16, as published checkpoints are), take a third
as many steps at a constant 1e-5, and compare with each other only.

## Each mistake's own figure

A difference counts where it is more than three times what other samples make.

| mistake | figure, held out | right | other samples | with the mistake | |
|---|---|---|---|---|---|
{damages}

{silent}

- **First token untrained.** The labels of each picture's first token are ignored, N is one fewer a picture.
- **Empty caption as null prompt.** Where a prompt is nulled, a whole prompt with an empty caption is trained
  on, while guidance subtracts BOS, pads and `<begin_of_image>`. Codes are scored each after the true ones.
  In the sample there is little to guide: a shape's caption is one of 108, so it decides at most ln 108 = 4.7
  nats of a picture's 576 tokens, 0.008 a token, which is less than other samples make.
- **Per-task means.** A vqa answer has a few supervised tokens, a picture 576: a mean for each task weighs a
  vqa token more than a hundred times a picture's. The few may gain what the many lose, so a task's loss
  alone is no judge of it; shares of the gradient say what is trained.
- **bfloat16 weights.** The CPU has no bfloat16 kernels, so this is emulated: float32 weights rounded to
  bfloat16 (nearest, ties to even) after each update. What a weight holds is then exact; products and moments
  stay float32.

## What rounding undoes

Of the weights that an update changed, the share that rounding put back, mean of all steps; and by how much
validation loss fell (vqa / text / t2i).

| learning rate | changes lost | fall in float32 | fall in bfloat16 |
|---|---|---|---|
{rounding}
"""


if __name__ == "__main__":
    main()
