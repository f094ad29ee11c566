"""Leaks: samples that stand in train and, nearly the same, in validation or test.

Two samples are nearly the same if a user's question is, or the picture: the same file, or a perceptual hash
that hardly differs (`shards/similar.py`). The hashes were taken from the pictures as they came and lie beside
the shards in `pictures.parquet`; its sha256 stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from janus.common.files import hash_file
from shards.manifest import PICTURES
from shards.read import ShardSet
from shards.similar import HASH_BYTES, near_pairs

PICTURE_SCHEMA = pa.schema([("image_sha256", pa.string()), ("picture_hash", pa.binary(HASH_BYTES))])


def write_pictures(folder: Path, pictures: pa.Table) -> str:
    """Write the hashes of all pictures (PICTURE_SCHEMA) into a folder of shards; gives the file's sha256."""
    pq.write_table(pictures.cast(PICTURE_SCHEMA), folder / PICTURES)
    return hash_file(folder / PICTURES)


def normalised(question: pl.Expr) -> pl.Expr:
    """What makes two questions the same: lower case, composed, white space collapsed."""
    return question.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def hash_keys(hashes: Iterable[bytes]) -> pl.DataFrame:
    """(picture_hash, key): near-duplicates share a key, each pair of hashes one of its own.

    Not one key for all that hang together: of A ~ B ~ C, A and C may be different pictures.
    """
    distinct = sorted(set(hashes))
    pairs = near_pairs(distinct)
    alone = [(value, value.hex()) for value in distinct]
    shared = [(distinct[i], f"{left}~{right}") for left, right in pairs.tolist() for i in (left, right)]
    return pl.DataFrame(alone + shared, {"picture_hash": pl.Binary, "key": pl.String}, orient="row")


def find_leaks(folder: Path) -> list[str]:
    """One line for each sample of train that has a near-duplicate in validation or test, and why.

    Raises UserError if the shards cannot be read.
    """
    shards = ShardSet.open(folder)
    samples = _samples(shards)
    keys = {
        "the question": _question_keys(samples),
        "the picture's file": samples.select("sample_id", "split", key="image_sha256").drop_nulls("key"),
        "nearly the same picture": _picture_keys(samples, folder / PICTURES),
    }
    return list(chain.from_iterable(_shared(frame, what) for what, frame in keys.items()))


def has_hashes(folder: Path) -> bool:
    """Whether pictures can be compared by more than their files."""
    return (folder / PICTURES).is_file()


def _samples(shards: ShardSet) -> pl.DataFrame:
    rows = [
        (sample_id, split, image_sha256, questions)
        for split, task in shards.splits_tasks()
        for sample_id, image_sha256, questions in shards.rows(split, task).contents()
    ]
    schema = {"sample_id": pl.String, "split": pl.String, "image_sha256": pl.String}
    return pl.DataFrame(rows, {**schema, "questions": pl.List(pl.String)}, orient="row")


def _question_keys(samples: pl.DataFrame) -> pl.DataFrame:
    asked = samples.select("sample_id", "split", key="questions").explode("key")
    return asked.with_columns(normalised(pl.col("key"))).unique()


def _picture_keys(samples: pl.DataFrame, path: Path) -> pl.DataFrame:
    if not path.is_file():
        return samples.select("sample_id", "split", key="image_sha256").clear()
    pictures = pl.DataFrame(pl.from_arrow(pq.read_table(path, schema=PICTURE_SCHEMA))).drop_nulls().unique()
    held = samples.join(pictures, on="image_sha256").select(
        "sample_id", "split", "image_sha256", "picture_hash"
    )
    # Pictures of one file are told by the file.
    found = held.join(hash_keys(held["picture_hash"]), on="picture_hash")
    files = found.group_by("key").agg(pl.col("image_sha256").n_unique() > 1).filter("image_sha256")
    return found.join(files.select("key"), on="key").select("sample_id", "split", "key")


def _shared(keys: pl.DataFrame, what: str) -> list[str]:
    """keys: sample_id, split, key. A line for each train sample whose key stands on another side too."""
    train = keys.filter(pl.col("split") == "train")
    other = keys.filter(pl.col("split") != "train").sort("split", "sample_id")
    first = other.group_by("key", maintain_order=True).first()
    found = train.join(first, on="key", suffix="_other").unique(
        "sample_id", keep="first", maintain_order=True
    )
    return [
        f"train {sample_id}: {what} also stands in {split} {other_id}"
        for sample_id, split, other_id in found.select("sample_id", "split_other", "sample_id_other")
        .sort("sample_id")
        .iter_rows()
    ]
