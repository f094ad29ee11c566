"""Small folders of shards for tests: rows made with numpy, a word tokenizer, any of both formats."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers

from janus.common.files import hash_file
from shards.manifest import TOKENIZER, Manifest, ShardEntry, SourceCounts, write_manifest
from shards.schema import CONTENT_SCHEMA
from shards.write import SHARD_BYTES, write_shards

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "'\"`${alert(1)}&lt;!-- \u202e {{ 7*7 }}"
)
"""Text that tries to be markup, script and template."""

SOURCES = {"text": "pubmedqa", "vqa": "medical-vqa", "t2i": "roco"}


def make_row(task: str, split: str, key: int, image_size: int = 384, **changes: Any) -> dict[str, Any]:
    """One row as a dict of CONTENT_SCHEMA's columns, drawn from its key; `changes` replace columns."""
    rng = np.random.default_rng([key, *f"{split}/{task}".encode()])
    source, length = SOURCES[task], int(rng.integers(8, 40))
    row = {
        "sample_id": f"{source}/{split}-{key}",
        "task": task,
        "source": source,
        "split": split,
        "source_key": f"{split}-{key}",
        "sha256": hashlib.sha256(f"{source}{key}".encode()).hexdigest(),
        "image_sha256": None,
        "history": [],
        "prompt": f"question {key} — été?",
        "answer": f"answer {key}",
        "input_ids": rng.integers(0, 8, length).tolist(),
        "supervised": [{"start": length // 2, "end": length}],
        "num_tokens": length,
        "image": None,
        "image_tokens": None,
    }
    if task != "text":
        row["image"] = rng.integers(0, 256, 3 * image_size**2, np.uint8).tobytes()
        row["image_sha256"] = hashlib.sha256(row["image"]).hexdigest()
    if task == "t2i":
        row["answer"] = ""
        row["image_tokens"] = rng.integers(0, 16384, 576).tolist()
    return {**row, **changes}


def make_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Rows as a record batch ready for `write_shards`."""
    return pa.RecordBatch.from_pylist(list(rows), schema=CONTENT_SCHEMA)


def make_folder(
    folder: Path,
    rows: dict[tuple[str, str], Sequence[dict[str, Any]]],
    image_size: int = 384,
    format: str = "arrow",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A finished folder of shards from rows per (split, task); returns it."""
    shards: list[ShardEntry] = []
    for (split, task), some in rows.items():
        options: dict[str, Any] = {"image_size": image_size, "format": format, "shard_bytes": shard_bytes}
        shards += write_shards([make_batch(some)], folder, split=split, task=task, **options)
    finish_folder(folder, shards, image_size, format)
    return folder


def finish_folder(folder: Path, shards: Sequence[ShardEntry], image_size: int, format: str = "arrow") -> None:
    """Add a tokenizer and the manifest to written shards."""
    words = {f"w{i}": i for i in range(8)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / TOKENIZER).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER))
    written = sum(entry.rows for entry in shards)
    counts = {"made-up": SourceCounts(read=written + 1, rejected={"image missing": 1}, written=written)}
    seal(folder, shards, image_size, format=format, counts=counts)


def seal(folder: Path, shards: Sequence[ShardEntry], image_size: int, **facts: Any) -> Path:
    """Write the manifest of a folder that has its shards and its tokenizer; returns the folder."""
    facts = {"format": "arrow", "vq": None, "recipe": {"name": "test"}, "shards": tuple(shards)} | facts
    tokenizer = {"sha256": hash_file(folder / TOKENIZER)}
    write_manifest(folder, Manifest(tokenizer=tokenizer, preprocessing={"image_size": image_size}, **facts))
    return folder


def make_mixed(folder: Path, count: int = 5, image_size: int = 384, **options: Any) -> Path:
    """A folder with `count` rows of every task in train, and two in validation."""
    rows = {
        (split, task): [make_row(task, split, key, image_size) for key in range(number)]
        for split, number in (("train", count), ("validation", 2))
        for task in SOURCES
    }
    return make_folder(folder, rows, image_size, **options)


def hostile_folder(folder: Path, image_size: int = 8) -> Path:
    """Shards whose every text is an attempt to leave its place."""
    texts = dict.fromkeys(("sample_id", "source", "source_key", "prompt", "answer", "sha256"), HOSTILE)
    texts["history"] = [{"user": HOSTILE, "assistant": HOSTILE}]
    rows = [make_row("vqa", "train", 0, image_size, **texts), make_row("vqa", "train", 1, image_size)]
    return make_folder(folder, {("train", "vqa"): rows}, image_size)


def flip(path: Path, place: int | bytes, bits: int = 1) -> Path:
    """Damage a file: some bits of the byte at a place, or of the first of those bytes; returns it."""
    content = bytearray(path.read_bytes())
    content[content.index(place) if isinstance(place, bytes) else place] ^= bits
    path.write_bytes(content)
    return path
