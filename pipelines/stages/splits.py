"""Train, validation and test: which row goes to which side, and which are rejected. Pure functions.

1. Of rows with the same content (task, picture, texts) the first by source and key is kept; the others are a
   `duplicate`. Likewise for rows with the same id: `duplicate_id`.
2. A source that has several splits upstream keeps them. If none of its rows here is train, as in a part of a
   download, nothing could be trained on: its validation rows are then divided as in 3, at least one staying
   validation; test stays test.
3. All other rows are joined into components by shared picture, near-duplicate picture and shared question. In
   the order of a hash of (seed, its smallest sample id), components become validation until their source has
   its fraction there; the rest is train. A component with more than that fraction of a source's rows is
   always train, or a giant one could become the whole validation set. So a source has validation rows from
   1 / fraction rows on, if it has components small enough.
4. If upstream's splits put a picture (or a near-duplicate) or a question on two sides, only the rows of the
   highest side are kept (train < validation < test): the others are a `leak`.

Rows that are appended never move those that are there. A new row that repeats an old one is a `duplicate`;
one that is joined to old rows goes to their side; if they are on two, or upstream puts it on another, it is
a `leak`. Other components become validation as in 3, counting what is there.

A question is a user turn, lower-cased, with white space collapsed; for text-to-image it is the caption. One
that is only a form ("Describe the picture", `shards.compare.duplicates.telling`) joins nothing.
Near-duplicates are pictures whose perceptual hashes differ in at most `NEAR` (of that module) of their bits.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import xxhash
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from janus.prompts import SPLITS
from shards.compare.duplicates import hash_keys, normalised, telling


def assign_splits(rows: pl.DataFrame, seed: int, fraction: float) -> pl.DataFrame:
    """The rows with two more columns: `side` (null: rejected) and `reason` (null: kept).

    rows: sample_id, source, source_key, sha256, split (upstream's, or null), and lists: image_sha256,
    picture_hash and questions (the user turns); any order, which is kept. fraction: share for validation.
    Where rows are appended, `old` rows were there before, on the side `pinned` (null: rejected).
    """
    rows = rows.with_row_index("row")
    if "old" not in rows.columns:
        rows = rows.with_columns(old=pl.lit(False), pinned=pl.lit(None, pl.String))
    reasons = _duplicates(rows)
    lost = rows.filter(pl.col("old") & pl.col("pinned").is_null()).select("row", reason=pl.lit("leak"))
    reasons = pl.concat([reasons, lost.join(reasons, on="row", how="anti")])
    kept = rows.join(reasons, on="row", how="anti")
    keys = _keys(kept, fraction)
    lacking = lacking_train(rows)
    freed = pl.col("source").is_in(lacking) & (pl.col("split") == "validation")
    kept = kept.with_columns(split=pl.when(~freed.fill_null(False)).then("split"))
    sides = _sides(kept, keys, lacking, seed, fraction)
    leaks = kept.filter(pl.Series(_leaks(sides, keys, kept["old"].to_numpy()))).select(
        "row", reason=pl.lit("leak")
    )
    placed = kept.select("row", side=pl.Series(np.array(SPLITS)[sides], dtype=pl.String))
    return (
        rows.join(pl.concat([reasons, leaks]), on="row", how="left")
        .join(placed, on="row", how="left")
        .with_columns(side=pl.when(pl.col("reason").is_null()).then("side"))
        .sort("row")
        .drop("row")
    )


def lacking_train(rows: pl.DataFrame) -> list[str]:
    """Sources that keep upstream's splits but hold no row of train, sorted."""
    kept = rows.filter(pl.col("split").is_not_null())
    trained = kept.filter(pl.col("split") == "train")["source"].unique()
    return sorted(set(kept["source"]) - set(trained))


def stable_hash(seed: int, names: Sequence[str]) -> np.ndarray:
    """uint64 (names,): the same on every machine and in every version."""
    return np.array([xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) for name in names], np.uint64)


def _duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """(row, reason) of every row that repeats another."""
    first = pl.col("pinned").is_null(), ~pl.col("old")
    ordered = rows.sort(*first, "source", "source_key", "row")
    repeats = ~pl.col("sha256").is_first_distinct()
    by_content = ordered.filter(repeats).select("row", reason=pl.lit("duplicate"))
    repeats_id = ~pl.col("sample_id").is_first_distinct()
    by_id = ordered.filter(~repeats).filter(repeats_id).select("row", reason=pl.lit("duplicate_id"))
    return pl.concat([by_content, by_id])


def _keys(kept: pl.DataFrame, fraction: float) -> np.ndarray:
    """(links, 2): row number and the number of a picture, pair of near-duplicates or question it holds."""
    rows = kept.select("source", "image_sha256", "picture_hash", "questions").with_row_index("at")
    pictures = rows.select("at", key="image_sha256").explode("key").drop_nulls()
    pictures = pictures.select("at", key="p" + pl.col("key"))
    hashed = rows.select("at", "picture_hash").explode("picture_hash").drop_nulls()
    alike = hashed.join(hash_keys(hashed["picture_hash"]), on="picture_hash")
    alike = alike.select("at", key="n" + pl.col("key"))
    questions = rows.select("at", "source", key="questions").explode("key").drop_nulls()
    questions = telling(questions.with_columns(normalised(pl.col("key"))), fraction)
    questions = questions.select("at", key="q" + pl.col("key"))
    links = pl.concat([pictures, alike, questions])
    _, numbers = np.unique(links["key"].to_numpy(), return_inverse=True)
    return np.stack([links["at"].to_numpy().astype(np.int64), numbers.reshape(-1)], axis=1)


def _sides(
    kept: pl.DataFrame, keys: np.ndarray, lacking: list[str], seed: int, fraction: float
) -> np.ndarray:
    """int8 (rows,): the side where the row was, upstream's, else that of the row's component."""
    given = kept.select(pl.coalesce("pinned", "split")).to_series()
    given = given.replace_strict({name: i for i, name in enumerate(SPLITS)}, return_dtype=pl.Int8)
    sides = given.fill_null(-1).to_numpy().copy()
    free = sides < 0
    if free.any():
        links = keys[free[keys[:, 0]]]
        lowest, highest = _held(kept["old"].to_numpy(), sides, keys)
        below, above = np.full(len(kept), len(SPLITS), np.int8), np.full(len(kept), -1, np.int8)
        np.minimum.at(below, links[:, 0], lowest[links[:, 1]])
        np.maximum.at(above, links[:, 0], highest[links[:, 1]])
        sides[free] = above[free]
        links = links[(below >= above)[links[:, 0]]]  # a row that old ones hold on two sides joins nothing
        component = _components(len(kept), links)
        joined = np.full(component.max() + 1, -1, np.int8)
        np.maximum.at(joined, component, np.where(below >= above, above, -1))
        left = sides < 0
        sides[left] = joined[component[left]]
        rows = kept.with_columns(component=pl.Series(component), at=pl.Series(sides))
        chosen = _validation_components(rows.filter(pl.col("split").is_null()), lacking, seed, fraction)
        left = sides < 0
        sides[left] = np.isin(component[left], chosen)
    return sides


def _held(rows: np.ndarray, sides: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (keys,): lowest and highest side of the rows (bool) that hold a key; beyond all if none does."""
    lowest = np.full(keys[:, 1].max(initial=-1) + 1, len(SPLITS), np.int8)
    highest = np.full_like(lowest, -1)
    at, held = keys[rows[keys[:, 0]]].T
    np.minimum.at(lowest, held, sides[at])
    np.maximum.at(highest, held, sides[at])
    return lowest, highest


def _components(rows: int, keys: np.ndarray) -> np.ndarray:
    """int (rows,): the component of each row, joined through the keys it holds."""
    nodes = rows + (keys[:, 1].max(initial=-1) + 1)
    links = (np.ones(len(keys), np.int8), (keys[:, 0], rows + keys[:, 1]))
    return connected_components(coo_matrix(links, shape=(nodes, nodes)), directed=False)[1][:rows]


def _validation_components(rows: pl.DataFrame, lacking: list[str], seed: int, fraction: float) -> np.ndarray:
    """The components that become validation. rows: with their `component`, and `at`: a side, -1 if free."""
    at_least = pl.when(pl.col("source").is_in(lacking)).then(1.0).otherwise(0.0)
    there = (pl.col("at") == 1).sum().over("source")
    wanted = pl.max_horizontal(fraction * pl.len().over("source"), at_least) - there
    counts = rows.with_columns(wanted=wanted).filter(pl.col("at") < 0)
    counts = counts.group_by("component", "source").agg(
        rows=pl.len(), wanted=pl.col("wanted").first(), smallest=pl.col("sample_id").min()
    )
    counts = counts.with_columns(pl.col("smallest").min().over("component"))
    small = counts.filter((pl.col("rows") <= pl.col("wanted")).all().over("component"))
    ranked = small.sort(pl.Series(stable_hash(seed, small["smallest"].to_list())), "smallest")
    before = (pl.col("rows").cum_sum() - pl.col("rows")).over("source")
    return ranked.filter(before < pl.col("wanted"))["component"].to_numpy()


def _leaks(sides: np.ndarray, keys: np.ndarray, old: np.ndarray) -> np.ndarray:
    """bool (rows,): the row holds a key that a higher side holds too, or an old row of a lower one."""
    rows, held = keys.T
    leaks = np.zeros(len(sides), bool)
    lowest, _ = _held(old, sides, keys)
    leaks[rows[lowest[held] < sides[rows]]] = True
    _, highest = _held(old | ~leaks, sides, keys)
    leaks[rows[highest[held] > sides[rows]]] = True
    return leaks & ~old
