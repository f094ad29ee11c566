"""`pipelines inspect-source`: what a build would make of a file, without building."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image

from janus.common.errors import UserError
from pipelines.datafolder import present_sources
from pipelines.forms.files import paths_of
from pipelines.forms.pictures import RowError
from pipelines.forms.read import read_source
from pipelines.sources import FORMS, Source, load_sources, source_of
from pipelines.stages.rules import Checked, Checker

SHOWN = 5
"""Rows that are shown in full."""

SHOWN_TEXT = 300
"""Characters of a text that are shown."""


def inspect(path: Path | None, form: str | None, file: Path | None, names: Sequence[str]) -> None:
    """Print form, counts and samples of every source chosen. Raises UserError if there is none."""
    root, sources = _choose(path, form, file, names)
    for source in sources:
        try:
            _print_source(root, source)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(f"{error.filename or root}: {error.strerror or error}") from error


def _choose(
    path: Path | None, form: str | None, file: Path | None, names: Sequence[str]
) -> tuple[Path, list[Source]]:
    if form and form not in FORMS and not form.endswith(".py"):
        raise UserError(f"--form {form}: expected one of {', '.join(FORMS)}, or a plug-in FILE.py")
    if file is not None:
        root, sources = file.parent, load_sources(names, file)
        if path is not None:
            sources = [source for source in sources if _reads(root, source, path)]
        if not sources:
            raise UserError(f"{file}: no source reads {path}")
        return root, sources
    if path is None:
        raise UserError("inspect-source: give a file or folder, or --sources FILE")
    if path.is_dir() and form is None and _is_data(path):
        return present_sources(path, names)
    form = str(Path(form).absolute()) if form and form.endswith(".py") else form
    return path.parent, [source_of(path, path.parent, form)]


def _is_data(folder: Path) -> bool:
    """Whether a build would take the folder as `--data` for what it says of itself."""
    return (folder / "sources.yaml").is_file() or any((folder / s.folder).is_dir() for s in load_sources())


def _reads(root: Path, source: Source, path: Path) -> bool:
    base = root / source.folder
    read = {base / source.path, *paths_of(base, source)}
    return path.resolve() in {one.resolve() for one in read}


def _print_source(root: Path, source: Source) -> None:
    checker, tags, reasons = Checker(), Counter[str](), Counter[str]()
    examples: dict[str, str] = {}
    shown: list[Checked] = []
    sizes: dict[str, str] = {}
    for raw in read_source(root, source).rows:
        try:
            checked = checker.check(raw, source)
        except RowError as error:
            reason, detail = error.args
            reasons[reason] += 1
            examples.setdefault(reason, f"{raw.key}: {detail}" if detail else str(raw.key))
            continue
        tags[checked.row["task"]] += 1
        if len(shown) < SHOWN:
            shown.append(checked)
            sizes |= {sha256: _size(data) for _, sha256, data in checked.pictures}
    usable, rejected = tags.total(), reasons.total()
    click.echo(f"{source.name}: {usable + rejected:,} rows = {usable:,} usable + {rejected:,} rejected")
    for tag, count in tags.most_common():
        click.echo(f"  {tag}: {count:,}")
    for reason, count in reasons.most_common():
        click.echo(f"  rejected, {reason}: {count:,}, first {_short(examples[reason])}")
    for checked in shown:
        _print_row(checked.row, sizes)


def _print_row(row: dict[str, Any], sizes: dict[str, str]) -> None:
    click.echo(f"\n{row['source_key']} ({row['task']}{', ' + row['split'] if row['split'] else ''})")
    for message in row["messages"]:
        pictures = [f"[picture {sizes.get(sha256, sha256[:8])}]" for sha256 in message["pictures"]]
        text = " ".join(filter(None, [*pictures, _short(message["text"])]))
        click.echo(f"  {message['role']}: {text}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…"


def _size(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f"{image.width}×{image.height} {image.format}"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return f"unreadable: {error}"
