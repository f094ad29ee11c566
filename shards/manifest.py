"""The manifest of a shard folder: what it holds, how it was made, and whether it is whole.

`manifest.json` is written last, so a folder without one was never finished. It ends with a digest of itself,
which shows whether it was edited.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from janus.common.errors import UserError
from janus.common.files import hash_file, write_text
from janus.common.options import nearest
from janus.prompts import SPLITS, TASKS
from shards.pictures import CODECS
from shards.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer/tokenizer.json"
HASHES = "pictures.parquet"
"""Perceptual hashes of the pictures, written by `shards/compare/duplicates.py`; a folder may lack it."""
SUFFIXES = {"arrow": ".arrow", "webdataset": ".tar"}
SHARD_PATH = re.compile(rf"({'|'.join(SPLITS)})/({'|'.join(TASKS)})-\d{{5}}\.(arrow|tar)")
PICTURE_PATH = re.compile(r"pictures/(understanding|generation)-\d{5}\.(arrow|tar)")
Entry = TypeVar("Entry", "ShardEntry", "PictureEntry")
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
class PictureEntry:
    """One file of prepared pictures; path is relative to the folder, sha256 of the whole file."""

    path: str
    pictures: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceCounts:
    """What became of one source's raw rows: read = written + the sum of rejected (by reason)."""

    read: int
    rejected: Mapping[str, int]
    written: int

    def __add__(self, other: Self) -> Self:
        rejected = dict(Counter(self.rejected) + Counter(other.rejected))
        return replace(
            self, read=self.read + other.read, rejected=rejected, written=self.written + other.written
        )


@dataclass(frozen=True)
class Generation:
    """What one build wrote or appended: its raw rows by source, its files."""

    counts: Mapping[str, SourceCounts]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json.

    format: arrow or webdataset. tokenizer: at least {"sha256": of tokenizer/tokenizer.json}.
    preprocessing: at least {"image_size": 384, "pixels": a key of CODECS}; "hashes_sha256": of HASHES, where
    there is one.
    recipe: what the shards were built from.
    vq: {"encoder_sha256", "weights": checkpoint or random}; None without image_tokens.
    generations: the build that wrote the folder, then each that appended to it; `counts` are their sums.
    sealed: {"date", "differences"} of each time that edited shards were accepted (`shards seal`).
    """

    format: str
    tokenizer: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    recipe: Mapping[str, Any]
    vq: Mapping[str, Any] | None
    counts: Mapping[str, SourceCounts]
    shards: tuple[ShardEntry, ...]
    pictures: tuple[PictureEntry, ...] = ()
    schema_version: int = SCHEMA_VERSION
    generations: tuple[Generation, ...] = ()
    sealed: tuple[Mapping[str, Any], ...] = ()

    @property
    def image_size(self) -> int:
        """Side of every image in pixels."""
        return int(self.preprocessing["image_size"])

    @property
    def validation_fraction(self) -> float:
        """The share of rows that was to be validation."""
        return float(self.recipe.get("validation_fraction", 0.05))

    @property
    def files(self) -> tuple[ShardEntry | PictureEntry, ...]:
        """Every file of rows or pictures."""
        return (*self.shards, *self.pictures)

    def dumps(self) -> str:
        """The file's text: sorted keys, no times unless sealed, a digest of the rest at the end."""
        content = asdict(self)
        for name in ("sealed", "generations"):
            if not content[name]:
                del content[name]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, "~digest": digest}, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json. Raises ValueError unless the counts explain every row read and written."""
    for counts in (manifest.counts, *(generation.counts for generation in manifest.generations)):
        for source, count in counts.items():
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
    if expected := manifest.preprocessing.get("hashes_sha256"):
        hashes[HASHES] = expected
    for name, sha256 in hashes.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing")
        elif hash_file(folder / name) != sha256:
            problems.append(f"{name}: sha256 differs from the manifest")
    sizes = {entry.path: entry.bytes for entry in manifest.files}
    for name, wanted in sizes.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing")
        elif (size := (folder / name).stat().st_size) != wanted:
            how = "truncated" if size < wanted else "longer than written"
            problems.append(f"{name}: {how}, {size} bytes of {wanted}")
    return problems + [f"{p}: extra, not in {MANIFEST}" for p in shard_files(folder) if p not in sizes]


def shard_files(folder: Path) -> list[str]:
    """The files that are named like shards, sorted; paths relative to the folder."""
    found = (path for suffix in SUFFIXES.values() for path in folder.rglob(f"*{suffix}"))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _from_json(content: dict[str, Any]) -> Manifest:
    content.pop("~digest")
    content["counts"] = _counts(content["counts"])
    content["shards"] = tuple(_entry(ShardEntry, **entry) for entry in content["shards"])
    content["pictures"] = tuple(_entry(PictureEntry, **entry) for entry in content["pictures"])
    generations = content.get("generations", ())
    content["generations"] = tuple(Generation(_counts(g["counts"]), tuple(g["files"])) for g in generations)
    content["sealed"] = tuple(content.get("sealed", ()))
    manifest = Manifest(**content)
    if manifest.format not in SUFFIXES:
        raise ValueError(f"format is {manifest.format!r}")
    if manifest.image_size < 1 or not manifest.shards:
        raise ValueError(f"{len(manifest.shards)} shards, image_size {manifest.image_size}")
    str(manifest.tokenizer["sha256"])
    if (codec := manifest.preprocessing["pixels"]) not in CODECS:
        raise ValueError(f"pixels is {codec!r}, expected one of {', '.join(CODECS)}")
    return manifest


def _counts(content: dict[str, Any]) -> dict[str, SourceCounts]:
    return {source: SourceCounts(**counts) for source, counts in content.items()}


def _entry(kind: type[Entry], **values: Any) -> Entry:
    """An entry whose types and path have been checked: a path from a file is not to be trusted."""
    entry = kind(**values)
    for field in fields(entry):
        value = getattr(entry, field.name)
        if type(value) is not field.type:
            raise TypeError(f"{entry.path!r}: {field.name} is {value!r}")
    if isinstance(entry, ShardEntry):
        match = SHARD_PATH.fullmatch(entry.path)
        whole = match is not None and match.groups()[:2] == (entry.split, entry.task)
    else:
        whole = PICTURE_PATH.fullmatch(entry.path) is not None
    if not whole:
        raise ValueError(f"path {entry.path!r}")
    return entry
