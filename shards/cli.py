"""`shards`: inspect, preview and verify a folder of shards; seal one that was edited on purpose."""

import sys
from collections import Counter
from pathlib import Path

import click

from janus.common.errors import UserError
from janus.common.options import DEVICE, DEVICE_ID, FILE, FOLDER, Group

_FOLDER = click.argument("folder", type=FOLDER, metavar="DIR")


@click.group(cls=Group)
def main() -> None:
    """Inspect, preview and verify folders of shards."""


@main.command()
@_FOLDER
@click.option("--length", type=click.IntRange(1), metavar="N", default=1024, help="Row length for padding.")
def inspect(folder: Path, length: int) -> None:
    """Print what DIR holds.

    Rows, tokens, padding and bytes per task and source, and why rows were rejected.
    """
    from rich.console import Console
    from rich.table import Table

    from shards.preview.page import row_table, summarize
    from shards.read import ShardSet

    shards = ShardSet.open(folder)
    manifest, summary, codes = shards.manifest, summarize(row_table(shards), length), "none"
    if manifest.vq:
        random = manifest.vq["weights"] == "random"
        meaning = "random weights, so they MEAN NOTHING" if random else "a checkpoint's weights"
        codes = f"encoder sha256 {_printable(manifest.vq['encoder_sha256'])}, {meaning}"
    click.echo(f"{folder}: {manifest.format}, {len(manifest.shards)} shards\nVQ codes: {codes}")
    lengths = Table(title="rows per split, tokens per row")
    for name in summary.columns:
        title = f"padding at {length}" if name == "padding" else name
        lengths.add_column(title, justify="left" if name in ("task", "source") else "right")
    for row in summary.iter_rows(named=True):
        row |= {"padding": f"{row['padding']:.1%}", "median": f"{row['median']:g}"}
        lengths.add_row(*[f"{v:,}" if isinstance(v, int) else _printable(v) for v in row.values()])
    used = Table("source", "raw rows", "count", title="raw rows, used and rejected")
    for source, counts in sorted(manifest.counts.items()):
        rejected = {f"rejected: {reason}": number for reason, number in sorted(counts.rejected.items())}
        figures = {"read": counts.read, "written": counts.written, **rejected}
        for what, number in figures.items():
            used.add_row(_printable(source) if what == "read" else "", _printable(what), f"{number:,}")
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(lengths, used)


@main.command()
@_FOLDER
@click.argument("sample_id")
@click.option("--image", "picture", type=FILE, help="Save the pictures it reads as a PNG.")
def show(folder: Path, sample_id: str, picture: Path | None) -> None:
    """Print one sample of DIR.

    Its conversation, and its tokens with the supervised ones in [[ ]].
    """
    import numpy as np
    from PIL import Image
    from tokenizers import Tokenizer

    from shards.manifest import TOKENIZER
    from shards.preview.gallery import marked_pieces
    from shards.read import ShardSet

    sample = ShardSet.open(folder).find(sample_id)
    names = ("sample_id", "task", "source", "split", "source_key", "sha256")
    facts = [(name, str(getattr(sample, name))) for name in names]
    images = iter(sample.images)
    for message in sample.messages:
        for name in message.pictures:
            drawn = message.role != "user"
            colour = "drawn" if drawn else next(images).mean((0, 1)).round().astype(int).tolist()
            facts.append((message.role, f"[picture {name}, {colour if drawn else f'mean colour {colour}'}]"))
        if message.text or not message.pictures:
            facts.append((message.role, message.text))
    spans = ", ".join(f"{start}–{end}" for start, end, _ in sample.supervised.tolist()) or "none"
    facts += [("image_tokens", f"{len(sample.image_tokens)} codes" if len(sample.image_tokens) else "none")]
    facts += [("input_ids", f"{len(sample.input_ids)} tokens, supervised {spans}")]
    for name, text in facts:
        click.echo(f"{name:13}{_printable(text)}")
    pieces = marked_pieces(sample, Tokenizer.from_file(str(folder / TOKENIZER)))
    click.echo(_printable("".join(f"[[{text}]]" if supervised else text for text, supervised in pieces)))
    if picture:
        if not sample.images:
            raise UserError(f"{sample.sample_id}: has no image to save; leave --image out")
        try:
            Image.fromarray(np.concatenate(sample.images, 1)).save(picture, format="PNG")
        except OSError as error:
            raise UserError(f"{picture}: cannot save it ({error.strerror}); choose another file") from None
        click.echo(f"{'saved':13}{picture}")


@main.command()
@_FOLDER
@click.option("--out", type=FILE, help="The page to write.", show_default="DIR/preview.html")
@click.option(
    "--model", metavar="DIR|PRESET", help="The model that made the VQ codes: show them decoded too."
)
@click.option("--samples", type=click.IntRange(1, 2000), metavar="N", default=240, help="Samples to show.")
@click.option("--device", type=DEVICE, default="auto", help="Where to decode the codes.")
@click.option("--device-id", type=DEVICE_ID, metavar="N", default=0, help="Which Ascend, of several.")
def preview(
    folder: Path, out: Path | None, model: str | None, samples: int, device: str, device_id: int
) -> None:
    """Write a page to look at DIR in a browser.

    Counts, token lengths, rejects, and a gallery of samples, drawn evenly from every task, source and split.
    One file that needs no network.
    """
    from janus.device import use
    from shards.preview.page import write_preview

    if model:
        use(device, "float32", device_id, deterministic=True)
    page = out or folder / "preview.html"
    shown, rows = write_preview(folder, page, model, samples)
    click.echo(f"{page}: {shown:,} of {rows:,} samples, {page.stat().st_size / 1e6:.1f} MB")


@main.command()
@_FOLDER
@click.option("--workers", type=click.IntRange(1), metavar="N", default=2, help="Threads that hash.")
@click.option("--leaks", is_flag=True, help="Also name train samples that another split nearly repeats.")
def verify(folder: Path, workers: int, leaks: bool) -> None:
    """Hash every file and row of DIR again and name those that differ; exit 1 if any does."""
    from shards.compare.check import verify_folder

    problems = verify_folder(folder, workers)
    if leaks and not problems:
        from shards.compare.duplicates import find_leaks
        from shards.manifest import HASHES

        if not (folder / HASHES).is_file():
            click.echo(f"{folder}: holds no hashes of its pictures; only equal files are found")
        problems = [_printable(line) for line in find_leaks(folder)]
    for problem in problems:
        click.echo(problem)
    if problems:
        raise SystemExit(1)
    click.echo(f"{folder}: all as written")


@main.command()
@click.argument("one", type=FOLDER, metavar="A")
@click.argument("other", type=FOLDER, metavar="B")
def diff(one: Path, other: Path) -> None:
    """Name the rows that B adds to A (+), lacks (-) or has otherwise (~); exit 1 if there are any."""
    from shards.compare.diff import differences
    from shards.read import ShardSet

    counts = Counter[str]()
    for line in differences(ShardSet.open(one), ShardSet.open(other)):
        click.echo(_printable(line))
        counts[line[0]] += 1
    click.echo(f"{counts['+']:,} rows added, {counts['-']:,} gone, {counts['~']:,} changed")
    if counts:
        raise SystemExit(1)


@main.command()
@_FOLDER
def seal(folder: Path) -> None:
    """Accept DIR as found, after shards were edited on purpose.

    Writes changed shards again with new row hashes, and a manifest that records date and differences. Token
    ids are not computed again: an edited text has no effect unless its ids were edited too.
    """
    from shards.compare.check import seal as seal_folder

    differences = seal_folder(folder)
    for difference in differences:
        click.echo(f"accepted: {_printable(difference)}")
    click.echo(f"{folder}: {'sealed' if differences else 'all as written, nothing to seal'}")


def _printable(text: str) -> str:
    """Text from the data, safe for a terminal: control and direction marks become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
