"""The files of a source: a path, folder or glob to files, and a file to its records."""

import re
from collections.abc import Iterator
from pathlib import Path

from janus.common.errors import UserError
from janus.prompts import SPLITS
from pipelines.forms import csv_rows, json_rows, parquet
from pipelines.forms.captions import CAPTIONS, PICTURES, has_captions, pictures_of, read_folder
from pipelines.forms.pictures import stays_below
from pipelines.forms.row import Records
from pipelines.forms.webdataset import read_tar
from pipelines.sources import Source

LINES = (".jsonl", ".ndjson", ".json")
"""Suffixes of files that may grow by lines."""

READERS = {
    **dict.fromkeys(LINES, json_rows.read_json),
    **dict.fromkeys((".csv", ".tsv"), csv_rows.read_table),
    **dict.fromkeys((".tar", ".tgz", ".tar.gz"), read_tar),
    ".parquet": None,  # read_parquet, which takes the columns
}
"""Suffix of a file → its records."""

COLUMNS = {"id", "system", "images", "messages", "conversations", *PICTURES, *CAPTIONS}
COLUMNS |= {"query", "response", "history", "instruction", "input", "output"}
"""Columns that mean something."""


def paths_of(base: Path, source: Source) -> list[Path]:
    """What a source reads: files, or a folder where its form takes one as a whole. Raises UserError."""
    path = base / source.path
    whole = source.is_plugin or source.form == "folder"
    return [path] if whole and path.is_dir() else source_files(base, source.path)


def source_files(base: Path, pattern: str) -> list[Path]:
    """The files, or the folder of captioned pictures, that `pattern` names: a file, a folder or a glob.

    Raises UserError if there are none, and for a link out of `base` that a glob or folder has led to.
    """
    path = base / pattern
    if path.is_file():
        return [path]
    folder = path if path.is_dir() else base
    found = (
        files_below(path)
        if path.is_dir()
        else sorted(file for file in _glob(base, pattern) if _is_visible(file, base))
    )
    if not found:
        raise UserError(f"{base}: no file matches {pattern}; is this the data set's own layout?")
    for file in found:
        if not Path(pattern).is_absolute() and not stays_below(folder, file):
            raise UserError(f"{file}: a link that leaves {folder}; put the file itself there")
    return found


def _glob(base: Path, pattern: str) -> Iterator[Path]:
    anchor = Path(pattern).anchor
    return Path(anchor or base).glob(pattern.removeprefix(anchor))


def files_below(folder: Path) -> list[Path]:
    """Its tables of one kind, else the folder itself if it holds captioned pictures. Raises UserError."""
    below = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_visible(path, folder)]
    tables = [(path, suffix) for path in below if (suffix := suffix_of(path))]
    kinds = sorted({suffix for _, suffix in tables} - {".json"}) or [".json"]  # .json may describe the others
    if len(kinds) > 1:
        raise UserError(
            f"{folder}: holds {' and '.join(kinds)}; give a glob as path, for example *{kinds[0]}"
        )
    found = [path for path, suffix in tables if suffix == kinds[0]]
    return found or ([folder] if has_captions(folder) else [])


def _is_visible(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else (path.name,)
    return not any(part.startswith(".") for part in parts)


def suffix_of(path: Path) -> str | None:
    """The key of READERS that the file's name ends with."""
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def count_rows(path: Path) -> int | None:
    """About how many rows there are; None where only reading tells."""
    if path.is_dir():
        return len(pictures_of(path))
    match suffix_of(path):
        case ".parquet":
            return parquet.count_rows(path)
        case ".jsonl" | ".ndjson" | ".csv" | ".tsv":
            return json_rows.count_lines(path)
    return None


def column_names(path: Path) -> list[str] | None:
    """The columns that the head of a table names, None for other files."""
    match suffix_of(path):
        case ".parquet":
            return parquet.column_names(path)
        case ".csv" | ".tsv":
            return csv_rows.column_names(path)
    return None


def read_records(path: Path, source: Source, start: int = 0) -> Records:
    """The records of a file or folder. Raises UserError, also while they are read.

    start: of a file of LINES, the byte to begin at.
    """
    if start:
        return json_rows.read_json(path, start)
    if path.is_dir():
        return read_folder(path)
    suffix = suffix_of(path)
    if suffix is None:
        raise UserError(f"{path}: no known kind of file; the kinds are {', '.join(READERS)}")
    if reader := READERS[suffix]:
        return reader(path)
    return parquet.read_parquet(path, {*COLUMNS, *source.columns.values()})


def split_of(path: Path, source: Source) -> str | None:
    """The split of a file's rows, None to split them by hash. Raises UserError if its name does not say."""
    if source.split != "upstream":
        return None if source.split == "hash" else source.split
    name = re.split(r"[-_.]", path.name)[0]
    if name not in SPLITS:
        raise UserError(f"{path}: split: upstream, but the name begins with none of {', '.join(SPLITS)}")
    return name
