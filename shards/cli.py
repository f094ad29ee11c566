"""`shards`: inspect, preview and verify a folder of shards; seal one that was edited on purpose."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from janus.common.errors import UserError
from janus.common.options import DEVICE, FILE, FOLDER, Group, nearest

if TYPE_CHECKING:  # Arrow, polars and rich load only for the command that needs them
    import polars as pl
    from rich.table import Table

    from shards.manifest import Manifest
    from shards.read import ShardSet
    from shards.schema import Sample

_FOLDER = click.argument("folder", type=FOLDER, metavar="DIR")


@click.group(cls=Group)
def main() -> None:
    """Inspect, preview and verify folders of shards."""


@main.command()
@_FOLDER
@click.option(
    "--length", type=click.IntRange(1), metavar="N", default=1024, help="Count padding up to N tokens a row."
)
def inspect(folder: Path, length: int) -> None:
    """Print what DIR holds.

    Rows, tokens, padding and bytes per task and source, and why rows were rejected.
    """
    from rich.console import Console

    from shards.preview.summary import row_table, summarize, vq_summary
    from shards.read import ShardSet

    shards = ShardSet.open(folder)
    manifest = shards.manifest
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False)
    click.echo(f"{folder}: {manifest.format}, {len(manifest.shards)} shards")
    click.echo(f"VQ codes: {_printable(vq_summary(manifest))}")
    console.print(_rows_table(summarize(row_table(shards), length), length))
    console.print(_counts_table(manifest))


@main.command()
@_FOLDER
@click.argument("sample_id")
@click.option("--image", "picture", type=FILE, help="Save the sample's image as PNG.")
def show(folder: Path, sample_id: str, picture: Path | None) -> None:
    """Print one sample of DIR.

    Its texts, its image, and its tokens with the supervised ones in [[ ]].
    """
    from tokenizers import Tokenizer

    from shards.manifest import TOKENIZER
    from shards.preview.gallery import marked_pieces
    from shards.read import ShardSet

    sample = _find(ShardSet.open(folder), sample_id)
    names = ("sample_id", "task", "source", "split", "source_key", "sha256", "image_sha256")
    facts = [(name, str(getattr(sample, name))) for name in names]
    for user, assistant in sample.history:
        facts += [("user", user), ("assistant", assistant)]
    image = "none"
    if sample.image is not None:
        height, width, _ = sample.image.shape
        colour = sample.image.mean((0, 1)).round().astype(int).tolist()
        image = f"{height}×{width}, mean colour {tuple(colour)}"
    facts += [("prompt", sample.prompt), ("answer", sample.answer), ("image", image)]
    codes = "none" if sample.image_tokens is None else f"{len(sample.image_tokens)} codes"
    spans = ", ".join(f"{start}–{end}" for start, end in sample.supervised.tolist())
    facts += [("image_tokens", codes)]
    facts += [("input_ids", f"{len(sample.input_ids)} tokens, supervised {spans or 'none'}")]
    for name, text in facts:
        click.echo(f"{name:13}{_printable(text)}")
    pieces = marked_pieces(sample, Tokenizer.from_file(str(folder / TOKENIZER)))
    click.echo(_printable("".join(f"[[{text}]]" if supervised else text for text, supervised in pieces)))
    if picture:
        _save_image(sample, picture)


@main.command()
@_FOLDER
@click.option("--out", type=FILE, help="The page to write.", show_default="DIR/preview.html")
@click.option(
    "--model", metavar="DIR|PRESET", help="The model that made the VQ codes: also show the decoded codes."
)
@click.option(
    "--samples", type=click.IntRange(1, 2000), metavar="N", default=240, help="Samples in the gallery."
)
@click.option("--device", type=DEVICE, default="auto", help="Where to decode the codes.")
def preview(folder: Path, out: Path | None, model: str | None, samples: int, device: str) -> None:
    """Write a page to look at DIR in a browser.

    Counts, token lengths, rejects, and a gallery of samples, drawn evenly from every task, source and split.
    One file that needs no network.
    """
    from janus.device import use
    from shards.preview.page import write_preview

    if model:
        use(device)
    page = out or folder / "preview.html"
    shown, rows = write_preview(folder, page, model, samples)
    click.echo(f"{page}: {shown:,} of {rows:,} samples, {page.stat().st_size / 1e6:.1f} MB")


@main.command()
@_FOLDER
@click.option("--workers", type=click.IntRange(1), metavar="N", default=2, help="Threads that hash.")
@click.option("--leaks", is_flag=True, help="Also name train samples that another split nearly repeats.")
def verify(folder: Path, workers: int, leaks: bool) -> None:
    """Hash every file and row of DIR again and name those that differ; exit 1 if any does."""
    from shards.check import verify_folder

    problems = verify_folder(folder, workers)
    if leaks and not problems:
        from shards.duplicates import find_leaks, has_hashes

        if not has_hashes(folder):
            click.echo(f"{folder}: holds no hashes of its pictures; only equal files are found")
        problems = [_printable(line) for line in find_leaks(folder)]
    for problem in problems:
        click.echo(problem)
    if problems:
        raise SystemExit(1)
    click.echo(f"{folder}: all as written")


@main.command()
@_FOLDER
def seal(folder: Path) -> None:
    """Accept DIR as found, after shards were edited on purpose.

    Writes changed shards again with new row hashes, and a manifest that records date and differences. Token
    ids are not computed again: an edited text has no effect unless its ids were edited too.
    """
    from shards.check import seal as seal_folder

    differences = seal_folder(folder)
    for difference in differences:
        click.echo(f"accepted: {_printable(difference)}")
    click.echo(f"{folder}: {'sealed' if differences else 'all as written, nothing to seal'}")


def _rows_table(summary: pl.DataFrame, length: int) -> Table:
    from rich.table import Table

    table = Table(title="rows per split, tokens per row")
    for name in summary.columns:
        title = f"padding at {length}" if name == "padding" else name
        table.add_column(title, justify="left" if name in ("task", "source") else "right")
    for row in summary.iter_rows(named=True):
        row |= {"padding": f"{row['padding']:.1%}", "median": f"{row['median']:g}"}
        table.add_row(*[f"{v:,}" if isinstance(v, int) else _printable(v) for v in row.values()])
    return table


def _counts_table(manifest: Manifest) -> Table:
    from rich.table import Table

    table = Table("source", "raw rows", "count", title="raw rows, used and rejected")
    for source, counts in sorted(manifest.counts.items()):
        table.add_row(_printable(source), "read", f"{counts.read:,}")
        table.add_row("", "written", f"{counts.written:,}")
        for reason, number in sorted(counts.rejected.items()):
            table.add_row("", f"rejected: {_printable(reason)}", f"{number:,}")
    return table


def _find(shards: ShardSet, sample_id: str) -> Sample:
    """The sample with that id. Raises UserError with the nearest id if there is none."""
    ids: list[str] = []
    for split, task in shards.splits_tasks():
        rows = shards.rows(split, task)
        found = rows.sample_ids.to_pylist()
        if sample_id in found:
            return rows.read(found.index(sample_id))
        ids += found
    near = nearest(sample_id, ids)
    hint = f"; did you mean {_printable(near)}?" if near else f"; ids look like {_printable(ids[0])}"
    raise UserError(f"{shards.folder}: no sample {sample_id!r}{hint}")


def _save_image(sample: Sample, path: Path) -> None:
    from PIL import Image

    if sample.image is None:
        raise UserError(f"{sample.sample_id}: has no image to save; leave --image out")
    try:
        Image.fromarray(sample.image).save(path, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot save the image ({error.strerror}); choose another file") from None
    click.echo(f"{'saved':13}{path}")


def _printable(text: str) -> str:
    """Text from the data, safe for a terminal: control and direction marks become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
