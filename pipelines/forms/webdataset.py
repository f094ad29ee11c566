"""WebDataset tars: files of one name are a row: a picture and its caption (.txt), or .json of any dialect."""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from janus.common.errors import UserError
from pipelines.forms.json_rows import json_record
from pipelines.forms.pictures import MAX_PICTURE, SUFFIXES, RowError
from pipelines.forms.row import MAX_ROW, Record, Records

Member = tuple[str, str, bytes | int]
"""Name of the sample, suffix, content (its size if it is too long to read)."""


def read_tar(path: Path) -> Records:
    """A record per sample."""
    for key, members in groupby(_members(path), lambda member: member[0]):
        yield _sample(key, list(members))


ONLY = "png"
"""The column of a sample's only picture, whatever its suffix."""


def _members(path: Path) -> Iterator[Member]:
    """Files of a tar in order, read as a stream."""
    try:
        with tarfile.open(path, "r|*") as tar:
            for entry in tar:
                folder, _, name = entry.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not entry.isfile() or not stem:  # folders, links, devices, hidden files
                    continue
                limit = MAX_ROW if suffix in ("txt", "json") else MAX_PICTURE
                content: bytes | int = entry.size
                if entry.size <= limit and (file := tar.extractfile(entry)):
                    content = file.read()
                yield f"{folder}/{stem}" if folder else stem, suffix, content
            _check_end(tar)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a tar ({error}); fetch it again") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError unless only zeros follow: tarfile takes a damaged header for the end."""
    end = b"".join(iter(lambda: tar.fileobj.read(1 << 20), b""))  # type: ignore[union-attr]
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError("no end mark after the last whole member")


def _sample(key: str, members: list[Member]) -> Record:
    """The record of a sample: columns of its .json, `caption` from .txt, its pictures."""
    found: dict[str, bytes] = {}
    for _, suffix, content in members:
        if isinstance(content, int):
            reason = "line_too_long" if suffix in ("txt", "json") else "image_unreadable"
            return Record(key, error=RowError(reason, f"{suffix}: {content} bytes"))
        found[suffix] = content
    texts = {name: found[name].decode(errors="surrogateescape") for name in ("txt", "json") if name in found}
    pictures = {name: data for name, data in found.items() if f".{name.split('.')[-1].lower()}" in SUFFIXES}
    record = json_record(key, texts["json"]) if "json" in texts else Record(key, {})
    if record.error:
        return record
    fields = dict(record.fields or {})
    if "txt" in texts:
        fields.setdefault("caption", texts["txt"])
    if len(pictures) == 1:
        fields.setdefault(ONLY, next(iter(pictures.values())))
    stem = key.rpartition("/")[2]
    return Record(key, fields, members=pictures | {f"{stem}.{name}": data for name, data in pictures.items()})
