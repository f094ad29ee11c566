"""Whether a folder of shards is as its manifest says: checked in full, checked where it changed, sealed.

A full check hashes every file and every row, then writes a *stamp* with each file's size and times: the next
start hashes only files that have changed since. A change that leaves those alone is found when the row is
read. The stamp is in the shards' folder or, where that cannot be written to, in the user's cache.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import date
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from janus.common.console import track
from janus.common.errors import UserError
from janus.common.files import hash_file, write_text
from shards.manifest import (
    HASHES,
    MANIFEST,
    REBUILD,
    SHARD_PATH,
    TOKENIZER,
    Manifest,
    PictureEntry,
    ShardEntry,
    SourceCounts,
    folder_problems,
    load_manifest,
    shard_files,
    write_manifest,
)
from shards.pictures import FOLDER, UNDERSTOOD, Pictures
from shards.read import CHUNK, Rows, ShardSet, TaskRows, open_pictures, open_shard, read_pictures, row_problem
from shards.schema import CONTENT_SCHEMA
from shards.write import write_shards

STAMP = ".checked.json"
SHOWN_BYTES = 1 << 30  # checks of fewer bytes show no progress
_Facts = list[int]  # size, time of the last change of content and of the file itself, in ns


def open_verified(folder: Path) -> ShardSet:
    """Open shards, after a full check of those that have changed since their last one.

    Raises UserError naming what differs from the manifest.
    """
    if problems := verify_folder(folder, os.cpu_count() or 1, _stamped(folder)):
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        remedy = f"{REBUILD}, or accept them as found (shards seal {folder})"
        raise UserError(f"{folder}: {'; '.join(problems[:5])}{more}; {remedy}")
    return ShardSet.open(folder)


def verify_folder(folder: Path, workers: int = 2, stamped: Mapping[str, _Facts] | None = None) -> list[str]:
    """Hash every file and every row again: one line for each that differs from the manifest.

    stamped: files that are skipped if they still look like this. Writes the stamp if nothing differs.
    Raises UserError only if there is no readable manifest.
    """
    manifest = load_manifest(folder)
    problems = folder_problems(folder, manifest)
    named = {problem.partition(":")[0] for problem in problems}
    facts = {e.path: _facts(folder / e.path) for e in manifest.files if e.path not in named}
    changed = [e for e in manifest.files if e.path in facts and facts[e.path] != (stamped or {}).get(e.path)]
    shown = sum(entry.bytes for entry in changed) >= SHOWN_BYTES
    bar = track("checking shards", len(changed), "files") if shown else nullcontext(int)
    with ThreadPoolExecutor(workers) as pool, bar as advance:  # hashing lets other threads run
        for found in pool.map(lambda entry: _file_problems(folder, entry), changed):
            problems += found
            advance()
    if changed and not problems:
        _write_stamp(folder, facts)
    return problems


def _file_problems(folder: Path, entry: ShardEntry | PictureEntry) -> list[str]:
    """What differs in a file of the right size: its hash, then its rows or pictures."""
    problems = []
    if hash_file(folder / entry.path) != entry.sha256:
        problems.append(f"{entry.path}: sha256 differs from the manifest")
    try:
        if isinstance(entry, PictureEntry):
            file = open_pictures(folder, entry)
            found = [problem for row in range(len(file.names)) if (problem := file.problem(row))]
        else:
            found = _row_problems(open_shard(folder, entry), entry)
    except UserError as error:
        found = [error.message]
    return problems + [problem.replace(str(folder / entry.path), entry.path) for problem in found]


def _row_problems(rows: Rows, entry: ShardEntry) -> list[str]:
    problems: list[str] = []
    tokens = 0
    for start in range(0, len(rows), CHUNK):
        indices = np.arange(start, min(start + CHUNK, len(rows)))
        with suppress(Exception):  # damaged bytes can fail anywhere
            found = rows.rows(indices)
            places = {*found.texts("split"), *found.texts("task")}
            tokens += int(found.lengths("input_ids").sum()) // 4
            in_place = places == {entry.split, entry.task}
            if in_place and found.hashes() == rows.stored_hashes(indices):
                continue
        named = ((i, _row_problem(rows, i, entry)) for i in indices.tolist())
        problems += [f"{entry.path}: row {i} {problem}" for i, problem in named if problem]
    if tokens != entry.tokens and not problems:
        problems.append(f"{entry.path}: {tokens} tokens, the manifest says {entry.tokens}")
    return problems


def _row_problem(rows: Rows, index: int, entry: ShardEntry) -> str | None:
    """What is wrong with a row, its place included."""
    if problem := row_problem(rows, index):
        return problem
    row = rows.rows(np.array([index]))
    (name,), (split,), (task,) = (row.texts(field) for field in ("sample_id", "split", "task"))
    return None if (split, task) == (entry.split, entry.task) else f"({name}): is {split}/{task}"


def _facts(path: Path) -> _Facts:
    status = path.stat()  # the inode's time moves even if a copy keeps the time of the content
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _stamped(folder: Path) -> Mapping[str, _Facts]:
    """The files that have passed a full check against the present manifest."""
    for path in _stamps(folder):
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(path.read_bytes())
            if content["manifest"] == hash_file(folder / MANIFEST):
                return dict(content["files"])
    return {}


def _write_stamp(folder: Path, facts: Mapping[str, _Facts]) -> None:
    text = json.dumps({"manifest": hash_file(folder / MANIFEST), "files": facts}, indent=1)
    for path in _stamps(folder):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            return


def _stamps(folder: Path) -> tuple[Path, Path]:
    """Where a stamp may be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return folder / STAMP, cache / "janus-tune" / "shards" / f"{name}.json"


def seal(folder: Path) -> list[str]:
    """Accept shards as found: write a manifest that records date and differences, which are returned.

    Changed shards are written again, with the hash of each row's present content. Files may have been added
    or removed. Raises UserError naming a shard whose rows contradict themselves, their folder or the schema.
    """
    manifest, differences = load_manifest(folder), verify_folder(folder)
    if not differences:
        return []
    named = {difference.partition(":")[0] for difference in differences}
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder}: no {TOKENIZER}; put back the tokenizer that the ids are of")
    whole = {entry.path: entry for entry in manifest.shards if entry.path not in named}
    paths = shard_files(folder)
    pictures = [_seal_pictures(folder, path) for path in paths if path.startswith(FOLDER)]
    entries = [whole.get(p) or _rewrite(folder, p, manifest) for p in paths if not p.startswith(FOLDER)]
    if not entries:
        raise UserError(f"{folder}: holds no shards; build them again")
    files = [read_pictures(folder / e.path) for e in pictures if e.path.startswith(f"{FOLDER}/{UNDERSTOOD}-")]
    held = Pictures(files, manifest.preprocessing["pixels"], manifest.image_size)
    for entry in entries:
        _require_pictures(folder / entry.path, open_shard(folder, entry), held)
    preprocessing = dict(manifest.preprocessing)
    preprocessing.pop("hashes_sha256", None)
    if (folder / HASHES).is_file():
        preprocessing["hashes_sha256"] = hash_file(folder / HASHES)
    found: dict[str, Any] = {
        "tokenizer": {**manifest.tokenizer, "sha256": hash_file(folder / TOKENIZER)},
        "preprocessing": preprocessing,
        "counts": _counts(folder, entries, manifest),
        "shards": tuple(entries),
        "pictures": tuple(pictures),
        "sealed": (*manifest.sealed, {"date": date.today().isoformat(), "differences": differences}),
    }
    write_manifest(folder, replace(manifest, **found))
    return differences


def _seal_pictures(folder: Path, name: str) -> PictureEntry:
    """The entry of a file of pictures as found. Raises UserError if one of them is damaged."""
    path = folder / name
    file = read_pictures(path)
    if problem := next(filter(None, map(file.problem, range(len(file.names)))), None):
        raise UserError(f"{problem}; mend or remove it")
    return PictureEntry(name, len(file.names), path.stat().st_size, hash_file(path))


def _require_pictures(path: Path, rows: Rows, held: Pictures) -> None:
    """Raises UserError naming the first row that reads a picture which the folder lacks."""
    for row, sample in enumerate(TaskRows({path: rows}, held).unchecked()):
        if lost := [name for name in sample.understood if name not in held]:
            lacks = f"row {row} ({sample.sample_id}): picture {lost[0]} is in none of the folder's pictures"
            raise UserError(f"{path}: {lacks}; put it back, or remove the row")


def _rewrite(folder: Path, name: str, manifest: Manifest) -> ShardEntry:
    """Write a shard's rows again, with new hashes; returns its entry."""
    path, match = folder / name, SHARD_PATH.fullmatch(name)
    if match is None or path.suffix != ".arrow" or manifest.format != "arrow":
        raise UserError(f"{path}: only Arrow shards named as `pipelines` names them can be sealed; remove it")
    place: dict[str, Any] = {"split": match[1], "task": match[2]}
    with TemporaryDirectory(dir=folder, prefix=".tmp-seal-") as tmp:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().select(CONTENT_SCHEMA.names)
            (entry,) = write_shards(table.to_batches(), Path(tmp), shard_bytes=sys.maxsize, **place)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: cannot be sealed ({error}); mend or remove it") from None
        (Path(tmp) / entry.path).replace(path)
    return replace(entry, path=name)


def _counts(folder: Path, entries: list[ShardEntry], manifest: Manifest) -> dict[str, SourceCounts]:
    """Rows of each source as found; rejected ones as before."""
    chunks = (chunk for entry in entries for chunk in open_shard(folder, entry).column("source"))
    written = Counter(chain.from_iterable(chunk.to_pylist() for chunk in chunks))
    counts = {}
    for name in {*manifest.counts, *written}:
        reasons = manifest.counts[name].rejected if name in manifest.counts else {}
        counts[name] = SourceCounts(written[name] + sum(reasons.values()), reasons, written[name])
    return counts
