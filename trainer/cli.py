"""The `trainer` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError
from trainer.config import CONFIG, resolve
from trainer.options import GroupedCommand, add_options, find_recipe, load_recipe
from trainer.run.signals import StopSignals


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Fine-tune Janus-Pro on shards of text, vqa and t2i samples."""


@main.command(cls=GroupedCommand)
@click.option(
    "--config",
    "recipe",
    metavar="FILE|NAME",
    help="A YAML file of the options below (`learning_rate: 1e-4`), or the name of a recipe that comes "
    "with the program: text, vqa, t2i, mixed, radiology, sample, demo. The command line goes before it.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the newest whole checkpoint in --out, with that run's options.",
)
@click.option(
    "--resume-with",
    "accepted",
    metavar="FIELD",
    multiple=True,
    help="Accept that this field differs from the run that is resumed, so that its numbers will too; may be "
    "given more than once, and is recorded.",
)
@add_options
def train(recipe: str | None, resume: bool, accepted: tuple[str, ...], **options: Any) -> None:
    """Train on a folder of shards.

    SIGTERM and Ctrl-C save after the step and end with 0 and 130; a second Ctrl-C ends at once.

    An option that is given nowhere has the value of its stage in the technical report, or the default in
    brackets.
    """
    given = {name: value for name, value in options.items() if value is not None}
    path = find_recipe(recipe) if recipe else None
    if resume and path is None and (Path(given.get("out", "")) / CONFIG).is_file():
        path = Path(given["out"]) / CONFIG
    config = resolve({**(load_recipe(path) if path else {}), **given})

    if accepted and not resume:
        raise UserError("--resume-with: is for --resume")
    with StopSignals() as stop:
        from trainer.train import train as run

        run(config, stop, resume, accepted)
    raise SystemExit(stop.exit_code)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="OUT [OUT2 ...]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The page; PNGs stand beside it. [OUT/report/report.html, of several OUT/report/compared.html]",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write a page and PNGs that show how runs went.

    Loss per task with validation, learning rate, gradient norm, rates, padding, waiting, memory. A run
    that is still going is shown as far as it came; several are laid over each other.
    """
    from trainer.report.page import progress_line, write_report

    page = write_report(runs, out)
    for line in filter(None, map(progress_line, runs)):
        click.echo(line)
    click.echo(page)


@main.command("eval")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--model", metavar="DIR|HUB_ID", help="Evaluate this model.  [default: OUT's newest checkpoint]"
)
@click.option(
    "--shards",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of shards.  [default: what OUT was trained on]",
)
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="validation",
    show_default=True,
    help="Which samples; neither is trained on.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="At most so many of each task: always the same ones, by the hash of their id.",
)
@click.option(
    "--pubmedqa-test",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PubMedQA's test_ground_truth.json: yes, no or maybe for its questions, by the likelihood of each.",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Draw so many of the held-out captions, beside the pictures they belong to.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Longest vqa answer."
)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Samples at a time.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the pictures' draws."
)
def evaluate(out: Path, model: str | None, shards: Path | None, **options: Any) -> None:
    """Evaluate the run OUT, or with --model and --shards any model, on held-out samples.

    \b
    text   loss and token accuracy
    vqa    and exact match and token F1 of greedy answers, closed (yes, no) and open questions apart,
           beside always giving the commonest training answer
    t2i    loss and token accuracy of the image tokens, and a grid of pictures
    PubMedQA  accuracy and macro F1 on its published test list (--pubmedqa-test)

    Writes OUT/eval/SPLIT.json, SPLIT.arrow (a row for each sample) and SPLIT-pictures.png.
    """
    from trainer.evaluate.run import EvalConfig
    from trainer.evaluate.run import evaluate as run
    from trainer.run.folder import evaluated

    run(EvalConfig(out, *evaluated(out, model, shards), **options))
