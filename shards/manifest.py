"""The manifest of a shard folder: what it holds, how it was made, and whether it is whole.

`manifest.json` is written last, so a folder without one was never finished. It ends with a digest of itself,
which shows whether it was edited.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from janus.common.errors import UserError
from janus.common.files import hash_file, write_text
from janus.common.options import nearest
from janus.prompts import SPLITS, TASKS
from shards.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer/tokenizer.json"
PICTURES = "pictures.parquet"
"""Perceptual hashes of the pictures, written by `shards/duplicates.py`; a folder may lack it."""
SUFFIXES = {"arrow": ".arrow", "webdataset": ".tar"}
SHARD_PATH = re.compile(rf"({'|'.join(SPLITS)})/({'|'.join(TASKS)})-\d{{5}}\.(arrow|tar)")
REBUILD = "build the shards again, or copy the folder whole"


@dataclass(frozen=True)
class ShardEntry:
    """One shard file; path is relative to the folder, sha256 of the whole file."""

    path: str
    split: str
    task: str
    rows: int
    tokens: int
    supervised_tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceCounts:
    """What became of one source's raw rows: read = written + the sum of rejected (by reason)."""

    read: int
    rejected: Mapping[str, int]
    written: int


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json.

    format: arrow or webdataset. tokenizer: at least {"sha256": of tokenizer/tokenizer.json}.
    preprocessing: at least {"image_size": 384}; "pictures_sha256": of PICTURES, where there is one.
    recipe: what the shards were built from.
    vq: {"encoder_sha256", "weights": checkpoint or random}; None without image_tokens.
    sealed: {"date", "differences"} of each time that edited shards were accepted (`shards seal`).
    """

    format: str
    tokenizer: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    recipe: Mapping[str, Any]
    vq: Mapping[str, Any] | None
    counts: Mapping[str, SourceCounts]
    shards: tuple[ShardEntry, ...]
    schema_version: int = SCHEMA_VERSION
    sealed: tuple[Mapping[str, Any], ...] = ()

    @property
    def image_size(self) -> int:
        """Side of every image in pixels."""
        return int(self.preprocessing["image_size"])

    def dumps(self) -> str:
        """The file's text: sorted keys, no times unless sealed, a digest of the rest at the end."""
        content = asdict(self)
        if not self.sealed:
            del content["sealed"]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, "~digest": digest}, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json. Raises ValueError unless the counts explain every row read and written."""
    for source, count in manifest.counts.items():
        if count.read != (explained := count.written + sum(count.rejected.values())):
            raise ValueError(f"{source}: {count.read} rows read, {explained} written or rejected")
    rows, written = sum(e.rows for e in manifest.shards), sum(c.written for c in manifest.counts.values())
    if rows != written:
        raise ValueError(f"{rows} rows in the shards, {written} counted as written")
    write_text(folder / MANIFEST, manifest.dumps())


def load_manifest(folder: Path) -> Manifest:
    """Read manifest.json; `folder_problems` says whether it was edited.

    Raises UserError if there is none, or it is not a manifest of this schema version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        near = nearest(folder.name, siblings)
        hint = f" (did you mean {folder.parent / near}?)" if near else ""
        raise UserError(f"{folder}: no such folder{hint}; `make shards` builds one")
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}, so these shards were never finished; build them again")
    try:
        content = json.loads(path.read_bytes())
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            return _from_json(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a shard manifest ({error!r}); {REBUILD}") from None
    raise UserError(f"{path}: schema_version is {version!r}, this program reads {SCHEMA_VERSION}; {REBUILD}")


def folder_problems(folder: Path, manifest: Manifest) -> list[str]:
    """What differs from the manifest, one line each; of shards only names and sizes are compared."""
    problems = []
    if (folder / MANIFEST).read_bytes() != manifest.dumps().encode():
        problems.append(f"{MANIFEST}: was edited after it was written")
    hashes = {TOKENIZER: manifest.tokenizer["sha256"]}
    if pictures := manifest.preprocessing.get("pictures_sha256"):
        hashes[PICTURES] = pictures
    for name, sha256 in hashes.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing")
        elif hash_file(folder / name) != sha256:
            problems.append(f"{name}: sha256 differs from the manifest")
    sizes = {entry.path: entry.bytes for entry in manifest.shards}
    for name, expected in sizes.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing")
        elif (size := (folder / name).stat().st_size) != expected:
            how = "truncated" if size < expected else "longer than written"
            problems.append(f"{name}: {how}, {size} bytes of {expected}")
    return problems + [f"{p}: extra, not in {MANIFEST}" for p in shard_files(folder) if p not in sizes]


def shard_files(folder: Path) -> list[str]:
    """The files that are named like shards, sorted; paths relative to the folder."""
    found = (path for suffix in SUFFIXES.values() for path in folder.rglob(f"*{suffix}"))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _from_json(content: dict[str, Any]) -> Manifest:
    content.pop("~digest")
    content["counts"] = {source: SourceCounts(**counts) for source, counts in content["counts"].items()}
    content["shards"] = tuple(_entry(**entry) for entry in content["shards"])
    content["sealed"] = tuple(content.get("sealed", ()))
    manifest = Manifest(**content)
    if manifest.format not in SUFFIXES:
        raise ValueError(f"format is {manifest.format!r}")
    if manifest.image_size < 1 or not manifest.shards:
        raise ValueError(f"{len(manifest.shards)} shards, image_size {manifest.image_size}")
    str(manifest.tokenizer["sha256"])
    return manifest


def _entry(**values: Any) -> ShardEntry:
    """A shard entry whose types and path have been checked: a path from a file is not to be trusted."""
    entry = ShardEntry(**values)
    for field in fields(entry):
        value = getattr(entry, field.name)
        if type(value) is not field.type:
            raise TypeError(f"shard {entry.path!r}: {field.name} is {value!r}")
    match = SHARD_PATH.fullmatch(entry.path)
    if match is None or match.groups()[:2] != (entry.split, entry.task):
        raise ValueError(f"shard path {entry.path!r}")
    return entry
