"""The `trainer` command."""

from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError
from janus.common.options import FILE, FOLDER, Group, add_options
from trainer.config import CONFIG, EvalConfig, TrainConfig, load_recipe, resolve
from trainer.run.signals import StopSignals


@click.group(cls=Group)
def main() -> None:
    """Fine-tune Janus-Pro on shards of text, vqa and t2i samples."""


@main.command()
@click.option(
    "--config",
    "recipe",
    metavar="FILE|NAME",
    help="A YAML file of the options below, or a shipped recipe: text, vqa, t2i, mixed, radiology, sample, "
    "demo. Options on the command line override it.",
)
@click.option(
    "--resume", is_flag=True, help="Resume the run in --out, with its options, from its newest checkpoint."
)
@click.option(
    "--resume-with",
    "accepted",
    metavar="FIELD",
    multiple=True,
    help="Accept that this field and so the numbers differ from the resumed run's; recorded. Repeatable.",
)
@add_options(TrainConfig, only_given=True)
def train(recipe: str | None, resume: bool, accepted: tuple[str, ...], **given: Any) -> None:
    """Train on a folder of shards.

    SIGTERM and Ctrl-C save after the current step and exit with 0 and 130; a second Ctrl-C exits at once.
    """
    own = Path(given.get("out", "")) / CONFIG
    if resume and own.is_file():
        recipe = recipe or str(own)
    config = resolve((load_recipe(recipe) if recipe else {}) | given)
    if accepted and not resume:
        raise UserError("--resume-with: is for --resume")
    with StopSignals() as stop:
        from trainer.train import train as run  # with signals blocked before any thread starts

        run(config, stop, resume, accepted)
    raise SystemExit(stop.exit_code)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="OUT [OUT2 ...]")
@click.option(
    "--out",
    type=FILE,
    help="The page to write, with its PNGs in the same folder.",
    show_default="OUT/report/report.html, of several OUT/report/compared.html",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write a page and PNGs that show how runs went; several runs share the charts.

    They show training and validation loss, learning rate, gradient norm, rates, padding, waiting and memory.
    A run in progress is shown up to its last step.
    """
    from trainer.report.page import progress_line, write_report

    page = write_report(runs, out)
    for line in filter(None, map(progress_line, runs)):
        click.echo(line)
    click.echo(page)


@main.command("eval")
@click.argument("out", type=FOLDER)
@add_options(EvalConfig)
def evaluate(out: Path, **options: Any) -> None:
    """Evaluate the run OUT, or with --model and --shards any model, on held-out samples.

    \b
    text   loss and token accuracy
    vqa    also exact match and token F1 of greedy answers, for closed (yes, no) and open questions,
           against a baseline that always gives the commonest training answer
    t2i    loss and token accuracy of the image tokens, and a grid of pictures
    PubMedQA  accuracy and macro F1 on its published test list (--pubmedqa-test)

    Writes OUT/eval/SPLIT.json, SPLIT.arrow (a row for each sample) and SPLIT-pictures.png.
    """
    from trainer.evaluate.run import evaluate as run
    from trainer.run.open import evaluated

    options["model"], options["shards"] = evaluated(out, options["model"], options["shards"])
    run(EvalConfig(out, **options))
