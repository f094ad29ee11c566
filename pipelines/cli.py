"""The command line: each stage a command, all of them together `pipelines build`.

pipelines sample --data data/sample
pipelines build --data data/sample --tokenizer data/sample/tokenizer
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from janus.common.options import DEVICE, FOLDER, Group, add_options, option
from pipelines.sources import load_sources

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_rows = partial(option, group="Rows and shards")
_compute = partial(option, group="Computation")
_TOKENIZER = click.Path(exists=True, file_okay=False, path_type=Path)
_TOKENIZER.name = "dir"  # as help shows it
_SOURCES = click.Choice([source.name for source in load_sources()])


@dataclass(frozen=True)
class BuildOptions:
    """All options of a build; each stage takes its share."""

    data: Path = option(Path("data/hub"), "Folder of the raw datasets.", FOLDER, group="Folders")
    work: Path = option(Path("data/work"), "Stages' outputs, reused by later runs.", FOLDER, group="Folders")
    out: Path = option(Path("data/shards"), "Folder to write the shards to.", FOLDER, group="Folders")
    tokenizer: Path = option(
        None, "A checkpoint's folder, or the sample's tokenizer.", _TOKENIZER, required=True, group="Folders"
    )
    sources: tuple[str, ...] = _rows(
        (), "Use only this dataset; may be repeated.", _SOURCES, flag="--source", shown="all that are there"
    )
    max_length: int = _rows(
        1024, "Longest sample in tokens. Longer ones are rejected, never cut.", click.IntRange(min=1)
    )
    max_reject_rate: float = _rows(
        0.05,
        "Stop when more than this share of the rows is unusable. Pictures that medical-vqa lacks, duplicates "
        "and leaks do not count.",
        click.FloatRange(0, 1),
    )
    validation_fraction: float = _rows(
        0.05, "Share of rows for validation, where upstream has no splits.", click.FloatRange(0, 1)
    )
    seed: int = _rows(0, "Seed of the split and of the shuffle.", metavar="N")
    format: str = _rows("arrow", "Format of the shards.", click.Choice(["arrow", "webdataset"]))
    keep_images: bool = _rows(False, "Keep text-to-image originals in the shards, next to their codes.")
    model: str = _compute(
        "tiny", "Model that gives the image codes; a preset's mean nothing.", metavar="DIR|HUB_ID|PRESET"
    )
    device: str = _compute("auto", "Device of the VQ encoder.", DEVICE)
    workers: int = _compute(
        CORES, "Worker processes; they leave no mark on the shards.", click.IntRange(min=1), shown="all cores"
    )


_options = partial(add_options, BuildOptions)


@click.group(cls=Group)
def main() -> None:
    """From raw datasets to training shards.

    Stages run in the order download, ingest, tokenize, images, vq, write; `build` runs all but the
    download. A stage whose inputs and parameters have not changed is skipped. Unusable rows go to
    WORK/rejects.arrow with a reason and are counted in the manifest.
    """


@main.command()
@_options("data")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of the pictures and facts.")
def sample(data: Path, seed: int) -> None:
    """Write a small synthetic data set, in the four datasets' own layouts, with its tokenizer.

    The tokenizer goes to DATA/tokenizer.
    """
    from pipelines.sample import write_sample

    write_sample(data, seed)


@main.command()
@_options("data", "sources")
def download(data: Path, sources: tuple[str, ...]) -> None:
    """Fetch the real datasets from the hub at their pinned commits; resumable."""
    from pipelines.sources import download

    download(data, sources)


def _run(stages: list[str], **options: Any) -> None:
    from pipelines.stage import run_stages

    run_stages(stages, options)


STAGES = {
    "ingest": ("Read the raw datasets into a table of rows.", "data work sources max_reject_rate"),
    "tokenize": ("Encode texts into ids and spans.", "work tokenizer max_length max_reject_rate workers"),
    "images": ("Scale each picture to the model's square.", "work tokenizer max_reject_rate workers"),
    "vq": ("Encode text-to-image pictures into VQ codes; resumes where it stopped.", "work model device"),
    "write": (
        "Split, shuffle and write the shards and their manifest.",
        "work out tokenizer validation_fraction seed format keep_images",
    ),
}
"""Help and options of each stage's command."""

for _stage, (_help, _names) in STAGES.items():
    main.command(_stage, help=_help)(_options(*_names.split())(partial(_run, [_stage])))
_build = _options()(partial(_run, list(STAGES)))
main.command("build", help="All stages from raw datasets to shards, then a summary.")(_build)
