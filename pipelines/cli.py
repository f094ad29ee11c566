"""The command line: each stage a command, all of them together `pipelines build`.

pipelines sample --data data/sample
pipelines build --data data/sample --tokenizer data/sample/tokenizer
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipelines.sources import load_recipe

Command = TypeVar("Command", bound=Callable[..., Any])

SOURCES = [source.name for source in load_recipe()]
FOLDER = click.Path(file_okay=False, path_type=Path)

_OPTIONS: dict[str, Any] = {
    "data": click.option(
        "--data", type=FOLDER, default="data/hub", help="Folder of the raw datasets (PubMedQA, artwork, …)."
    ),
    "work": click.option(
        "--work",
        type=FOLDER,
        default="data/work",
        help="Folder of the stages' outputs, reused by later runs.",
    ),
    "out": click.option(
        "--out", type=FOLDER, default="data/shards", help="Folder the shards are written to."
    ),
    "tokenizer": click.option(
        "--tokenizer",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        required=True,
        help="Folder with tokenizer.json and preprocessor_config.json: a checkpoint's, or the sample's.",
    ),
    "model": click.option(
        "--model",
        default="tiny",
        help="Checkpoint folder, hub id or preset whose VQ encoder gives the image codes; a preset has "
        "none: its codes are of a palette, or of random weights.",
    ),
    "workers": click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        show_default="all cores",
        help="Processes; the shards are the same whatever their number.",
    ),
    "max_length": click.option(
        "--max-length",
        type=click.IntRange(min=1),
        default=1024,
        help="Tokens of a sample; longer ones are set aside, never cut.",
    ),
    "max_reject_rate": click.option(
        "--max-reject-rate",
        type=click.FloatRange(0, 1),
        default=0.05,
        help="Stop when more than this share of the rows cannot be used. Pictures that medical-vqa "
        "lacks, duplicates and leaks do not count.",
    ),
    "validation_fraction": click.option(
        "--validation-fraction",
        type=click.FloatRange(0, 1),
        default=0.05,
        help="Share of rows for validation, where upstream has no splits.",
    ),
    "seed": click.option("--seed", type=int, default=0, help="Of the split and the shuffle."),
    "format": click.option(
        "--format", type=click.Choice(["arrow", "webdataset"]), default="arrow", help="Of the shards."
    ),
    "keep_images": click.option(
        "--keep-images/--no-keep-images",
        default=False,
        help="Keep text-to-image originals in the shards; their codes are there anyway.",
    ),
    "source": click.option(
        "--source",
        "sources",
        multiple=True,
        type=click.Choice(SOURCES),
        help="Only this dataset; may be given several times. Default: all that are there.",
    ),
}


def _options(*names: str) -> Callable[[Command], Command]:
    """The named shared options, in that order in the help."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
def main() -> None:
    """From raw datasets to training shards.

    Stages run in the order download, ingest, tokenize, images, vq, write; `build` runs all but the
    download. A stage whose inputs and parameters have not changed is skipped. Rows that cannot be used
    are set aside in WORK/rejects.arrow with a reason and counted in the manifest.
    """


@main.command()
@_options("data")
@click.option("--seed", type=int, default=0, help="Of the drawn pictures and invented facts.")
def sample(data: Path, seed: int) -> None:
    """Write a small synthetic data set, in the four datasets' own layouts, with its tokenizer.

    The tokenizer goes to DATA/tokenizer.
    """
    from pipelines.sample import write_sample

    write_sample(data, seed)


@main.command()
@_options("data", "source")
def download(data: Path, sources: tuple[str, ...]) -> None:
    """Fetch the real datasets from the hub at their pinned commits; resumable."""
    from pipelines.download import download

    download(data, sources)


@main.command()
@_options("data", "work", "source", "max_reject_rate")
def ingest(**options: Any) -> None:
    """Read the raw datasets into one table of rows, each picture once."""
    _run(["ingest"], options)


@main.command()
@_options("work", "tokenizer", "max_length", "workers", "max_reject_rate")
def tokenize(**options: Any) -> None:
    """Encode prompts and answers into ids and supervised spans."""
    _run(["tokenize"], options)


@main.command()
@_options("work", "tokenizer", "workers", "max_reject_rate")
def images(**options: Any) -> None:
    """Decode each picture and bring it to the model's square."""
    _run(["images"], options)


@main.command()
@_options("work", "model")
def vq(**options: Any) -> None:
    """Encode text-to-image pictures into the VQ codes that are trained on.

    A run that was stopped resumes after the pictures it has encoded.
    """
    _run(["vq"], options)


@main.command()
@_options("work", "out", "tokenizer", "format", "keep_images", "validation_fraction", "seed")
def write(**options: Any) -> None:
    """Split, shuffle and write the shards and their manifest."""
    _run(["write"], options)


@main.command()
@_options(
    *("data", "work", "out", "tokenizer", "model", "source", "workers", "max_length", "max_reject_rate"),
    *("validation_fraction", "seed", "format", "keep_images"),
)
def build(**options: Any) -> None:
    """All stages from raw datasets to shards, then a summary."""
    _run(["ingest", "tokenize", "images", "vq", "write"], options)


def _run(stages: list[str], options: dict[str, Any]) -> None:
    """Run stages in order; after each, stop if too many rows cannot be used."""
    from pipelines.build import run_stages

    run_stages(stages, options)
