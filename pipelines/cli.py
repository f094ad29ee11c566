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

from janus.common.options import DEVICE, DEVICE_ID, FILE, FOLDER, Group, add_options, option

PIXELS = ("webp", "raw")
"""The codecs of `shards.pictures.CODECS`, which takes longer to import."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_rows = partial(option, group="Rows and shards")
_compute = partial(option, group="Computation")
_TOKENIZER = click.Path(exists=True, file_okay=False, path_type=Path)
_TOKENIZER.name = "dir"  # as help shows it


@dataclass(frozen=True)
class BuildOptions:
    """All options of a build; each stage takes its share."""

    data: Path = option(Path("data/hub"), "Folder of the raw data.", FOLDER, group="Folders")
    work: Path = option(Path("data/work"), "Stages' outputs, reused by later runs.", FOLDER, group="Folders")
    out: Path = option(Path("data/shards"), "Folder to write the shards to.", FOLDER, group="Folders")
    tokenizer: Path = option(
        None, "A checkpoint's folder, or the sample's tokenizer.", _TOKENIZER, required=True, group="Folders"
    )
    sources: tuple[str, ...] = _rows(
        (),
        "Use only this source; may be repeated.",
        flag="--source",
        metavar="NAME",
        shown="all that are there",
    )
    sources_file: Path = option(
        None,
        "Your own sources: a YAML file, see docs/data.md.",
        FILE,
        flag="--sources",
        metavar="FILE",
        shown="DATA/sources.yaml, else the four datasets in DATA, else the one file there",
        group="Folders",
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
    keep_images: bool = _rows(
        False, "Keep the originals of drawn pictures in the shards, besides their codes."
    )
    pixels: str = _rows(
        "webp", "How prepared pictures are kept: coded without loss, or raw.", click.Choice(PIXELS)
    )
    strict_size: bool = _rows(
        False, "Reject drawn pictures that do not have the model's size; else scale and crop them."
    )
    train_begin: bool = _rows(
        False, "Interleaved: also train the model to begin a picture by itself, which Janus-Pro never learnt."
    )
    model: str = _compute(
        "tiny", "Model that gives the image codes; a preset's mean nothing.", metavar="DIR|HUB_ID|PRESET"
    )
    device: str = _compute("auto", "Device of the VQ encoder.", DEVICE)
    device_id: int = _compute(0, "Which Ascend, where there are several.", DEVICE_ID)
    workers: int = _compute(
        CORES, "Worker processes; they leave no mark on the shards.", click.IntRange(min=1), shown="all cores"
    )


_options = partial(add_options, BuildOptions)


@click.group(cls=Group)
def main() -> None:
    """From raw datasets to training shards.

    Stages run in the order download, ingest, tokenize, images, vq, write; `build` runs all but the
    download. A stage whose inputs and parameters have not changed is skipped; where there are only more
    rows, they are appended. Unusable rows go to WORK/rejects.arrow with a reason and are counted in the
    manifest.
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


@main.command("inspect-source")
@click.argument("path", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--form", metavar="FORM", help="Read PATH as this form, or with this plug-in (FILE.py).")
@_options("sources_file", "sources")
def inspect_source(path: Path | None, form: str | None, sources_file: Path, sources: tuple[str, ...]) -> None:
    """Show how a file or folder would be read: form, counts, five samples. Builds nothing.

    With --sources, its sources are shown: all, those that read PATH, or those named by --source.
    """
    from pipelines.stages.inspect import inspect

    inspect(path, form, sources_file, sources)


@main.command()
@_options("data", "sources")
def download(data: Path, sources: tuple[str, ...]) -> None:
    """Fetch the real datasets from the hub at their pinned commits; resumable."""
    from pipelines.datafolder import download

    download(data, sources)


def _run(stages: list[str], **options: Any) -> None:
    from pipelines.stage import run_stages

    run_stages(stages, options)


STAGES = {
    "ingest": (
        "Read the raw data into one table of rows, each picture once.",
        "data work sources sources_file max_reject_rate",
    ),
    "tokenize": (
        "Encode conversations into ids and supervised spans.",
        "work tokenizer max_length train_begin max_reject_rate workers",
    ),
    "images": (
        "Decode each picture and scale it to the model's square.",
        "work tokenizer pixels strict_size max_reject_rate workers",
    ),
    "vq": (
        "Encode drawn pictures into VQ codes to train on; an interrupted run resumes.",
        "work model device device_id",
    ),
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
