"""Small folders of shards for tests: rows made with numpy, a word tokenizer, any of both formats."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers

from janus.common.files import hash_file
from janus.prompts import IMAGE, SIGNATURES, TEXT
from shards.manifest import TOKENIZER, Manifest, PictureEntry, ShardEntry, SourceCounts, write_manifest
from shards.pictures import CODECS, DRAWN, UNDERSTOOD
from shards.schema import CONTENT_SCHEMA
from shards.write import SHARD_BYTES, write_pictures, write_shards

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "'\"`${alert(1)}&lt;!-- \u202e {{ 7*7 }}"
)
"""Text that tries to be markup, script and template."""

SOURCES = {"text": "pubmedqa", "vqa": "medical-vqa", "t2i": "roco", "edit": "edits", "interleaved": "tales"}


def make_row(
    task: str, split: str, key: int, image_size: int = 384, shown: int = 1, drawn: int = 1, **changes: Any
) -> dict[str, Any]:
    """One row as a dict of CONTENT_SCHEMA's columns, drawn from its key; `changes` replace columns.

    shown, drawn: pictures of the user and of the assistant, where the task has them. `pixels` holds them by
    name, uint8 (size, size, 3); it is no column.
    """
    rng = np.random.default_rng([key, *f"{split}/{task}".encode()])
    source, length, kinds = SOURCES[task], int(rng.integers(8, 40)), SIGNATURES[task]
    answer = f"answer {key}" if kinds.text else ""
    texts = {"prompt": f"question {key} — été?", "answer": answer} | changes
    ids = rng.integers(0, 8, length).tolist()
    counts = shown * kinds.understood, drawn * kinds.drawn
    pixels = [rng.integers(0, 256, (image_size, image_size, 3), np.uint8) for _ in range(sum(counts))]
    names = [hashlib.sha256(array.tobytes()).hexdigest() for array in pixels]
    row = {
        "sample_id": f"{source}/{split}-{key}",
        "task": task,
        "source": source,
        "split": split,
        "source_key": f"{split}-{key}",
        "sha256": hashlib.sha256(f"{source}{key}".encode()).hexdigest(),
        "messages": [
            {"role": "user", "text": texts["prompt"], "pictures": names[: counts[0]]},
            {"role": "assistant", "text": texts["answer"], "pictures": names[counts[0] :]},
        ],
        **texts,
        "input_ids": ids,
        "supervised": [{"start": length // 2, "end": length, "kind": IMAGE if kinds.drawn else TEXT}],
        "num_tokens": length,
        "image_tokens": rng.integers(0, 16384, 576 * counts[1]).tolist(),
    }
    return {**row, **changes, "pixels": dict(zip(names, pixels, strict=True))}


def make_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Rows as a record batch ready for `write_shards`."""
    return pa.RecordBatch.from_pylist(list(rows), schema=CONTENT_SCHEMA)


def make_folder(
    folder: Path,
    rows: dict[tuple[str, str], Sequence[dict[str, Any]]],
    image_size: int = 384,
    format: str = "arrow",
    shard_bytes: int = SHARD_BYTES,
    codec: str = "webp",
) -> Path:
    """A finished folder of shards and pictures from rows per (split, task); returns it."""
    shards: list[ShardEntry] = []
    for (split, task), some in rows.items():
        options: dict[str, Any] = {"format": format, "shard_bytes": shard_bytes}
        shards += write_shards([make_batch(some)], folder, split=split, task=task, **options)
    pictures = pictures_of(chain(*rows.values()), folder, format, codec, shard_bytes)
    finish_folder(folder, shards, image_size, format, pictures, codec)
    return folder


def pictures_of(
    rows: Iterable[dict[str, Any]],
    folder: Path,
    format: str = "arrow",
    codec: str = "webp",
    shard_bytes: int = SHARD_BYTES,
) -> tuple[PictureEntry, ...]:
    """The pictures that rows of `make_row` read and draw, written each once; gives their entries."""
    coded: dict[str, dict[str, bytes]] = {UNDERSTOOD: {}, DRAWN: {}}
    for row in rows:
        for message in row["messages"]:
            own = coded[UNDERSTOOD if message["role"] == "user" else DRAWN]
            own |= {name: CODECS[codec].encode(row["pixels"][name]) for name in message["pictures"]}
    written = (
        write_pictures(own.items(), folder, kind, codec, format, shard_bytes) for kind, own in coded.items()
    )
    return tuple(chain(*written))


def finish_folder(
    folder: Path,
    shards: Sequence[ShardEntry],
    image_size: int,
    format: str = "arrow",
    pictures: Sequence[PictureEntry] = (),
    codec: str = "webp",
) -> None:
    """Add a tokenizer and the manifest to written shards."""
    words = {f"w{i}": i for i in range(8)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / TOKENIZER).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER))
    written = sum(entry.rows for entry in shards)
    counts = {"made-up": SourceCounts(read=written + 1, rejected={"image missing": 1}, written=written)}
    facts = {"format": format, "counts": counts, "pictures": tuple(pictures)}
    seal(folder, shards, image_size, codec, **facts)


def seal(
    folder: Path, shards: Sequence[ShardEntry], image_size: int, codec: str = "webp", **facts: Any
) -> Path:
    """Write the manifest of a folder that has its shards and its tokenizer; returns the folder."""
    facts = {"format": "arrow", "vq": None, "recipe": {"name": "test"}, "shards": tuple(shards)} | facts
    tokenizer = {"sha256": hash_file(folder / TOKENIZER)}
    preprocessing = {"image_size": image_size, "pixels": codec}
    write_manifest(folder, Manifest(tokenizer=tokenizer, preprocessing=preprocessing, **facts))
    return folder


def make_mixed(
    folder: Path,
    count: int = 5,
    image_size: int = 384,
    tasks: Sequence[str] = ("text", "vqa", "t2i"),
    **options: Any,
) -> Path:
    """A folder with `count` rows of each task in train, and two in validation."""
    rows = {
        (split, task): [make_row(task, split, key, image_size) for key in range(number)]
        for split, number in (("train", count), ("validation", 2))
        for task in tasks
    }
    return make_folder(folder, rows, image_size, **options)


def hostile_folder(folder: Path, image_size: int = 8) -> Path:
    """Shards whose every text is an attempt to leave its place."""
    texts = dict.fromkeys(("sample_id", "source", "source_key", "prompt", "answer", "sha256"), HOSTILE)
    rows = [make_row("vqa", "train", key, image_size, **some) for key, some in enumerate((texts, {}))]
    first = [{"role": role, "text": HOSTILE, "pictures": []} for role in ("user", "assistant")]
    rows[0]["messages"][:0] = first
    return make_folder(folder, {("train", "vqa"): rows}, image_size)


def flip(path: Path, place: int | bytes, bits: int = 1) -> Path:
    """Damage a file: some bits of the byte at a place, or of the first of those bytes; returns it."""
    content = bytearray(path.read_bytes())
    content[content.index(place) if isinstance(place, bytes) else place] ^= bits
    path.write_bytes(content)
    return path
