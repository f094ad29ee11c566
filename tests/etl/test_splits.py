"""Splits: nothing shared across sides, nothing lost without a reason, the same whatever the order."""

from collections.abc import Iterable
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.prompts import SPLITS
from pipelines.stages.splits import assign_splits, lacking_train
from shards.compare.duplicates import BIT_BYTES, HASH_BYTES

SCHEMA = {
    **dict.fromkeys(("sample_id", "source", "source_key", "task", "sha256", "split"), pl.String),
    "image_sha256": pl.List(pl.String),
    "picture_hash": pl.List(pl.Binary),
    "questions": pl.List(pl.String),
}


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows with what they do not say filled in; without a source they are of `a`."""
    empty = dict.fromkeys(("image_sha256", "picture_hash", "split"))
    rows = [{**empty, "task": "vqa", "source": "a", **row} for row in rows]
    names = [f"{row['source']}/{row['source_key']}" for row in rows]
    filled = [{"sample_id": name, "sha256": name, **row} for name, row in zip(names, rows, strict=True)]
    return pl.DataFrame(filled, SCHEMA)


ROW = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["a", "b", "roco"]),
        "source_key": st.integers(0, 40).map(str),
        "image_sha256": st.none() | st.lists(st.integers(0, 15).map(str), max_size=2),
        "questions": st.lists(st.integers(0, 25).map(lambda n: f"Q {n}"), min_size=1, max_size=2),
        "sha256": st.integers(0, 60).map(str),
    }
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, max_size=60), st.integers(0, 3), st.sampled_from([0.05, 0.2, 0.5]), st.randoms())
def test_no_key_on_two_sides_and_every_row_explained(rows, seed, fraction, random) -> None:
    for row in rows:
        row["split"] = random.choice(SPLITS) if row["source"] == "roco" else None
    placed = assign_splits(frame(rows), seed, fraction)
    assert placed.height == len(rows)
    assert (placed["side"].is_null() == placed["reason"].is_not_null()).all()
    assert set(placed["reason"].drop_nulls()) <= {"duplicate", "duplicate_id", "leak"}
    kept = placed.filter(pl.col("side").is_not_null())
    assert kept["sample_id"].is_unique().all()
    assert kept["sha256"].is_unique().all()
    for key in ("image_sha256", "questions"):
        sides = kept.explode(key).drop_nulls(key).group_by(key).agg(pl.col("side").n_unique())
        assert (sides["side"] == 1).all()
    divided = pl.col("split").eq("validation") & pl.col("source").is_in(lacking_train(frame(rows)))
    upstream = kept.filter(pl.col("split").is_not_null() & ~divided)
    assert (upstream["split"] == upstream["side"]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(ROW, max_size=40, unique_by=lambda row: (row["source"], row["source_key"])), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random) -> None:
    placed = [assign_splits(frame(some), 0, 0.2) for some in (rows, random.sample(rows, len(rows)))]
    first, second = (one.select("sample_id", "side", "reason").sort("sample_id") for one in placed)
    assert first.equals(second)


def asking(texts: Iterable[str], key: str = "", **same: Any) -> list[dict[str, Any]]:
    return [{"source_key": f"{key}{i}", "questions": [text], **same} for i, text in enumerate(texts)]


def numbered(count: int, what: str = "What", **same: Any) -> list[dict[str, Any]]:
    return asking((f"{what} is {i}?" for i in range(count)), what, **same)


def test_the_fraction_goes_to_validation_and_the_seed_decides_which() -> None:
    for count, seeds in ((2000, 2), (20, 30)):  # twenty rows are enough to have one
        sides = [assign_splits(frame(numbered(count)), seed, 0.05)["side"] for seed in range(seeds)]
        assert {(side == "validation").sum() for side in sides} == {count // 20}
        assert not all(side.equals(sides[0]) for side in sides)


def test_a_component_larger_than_the_fraction_is_train() -> None:
    rows = numbered(30, image_sha256=["one picture"]) + numbered(100, "Else")
    for seed in range(10):
        side = assign_splits(frame(rows), seed, 0.05)["side"]
        assert set(side[:30]) == {"train"}
        assert (side[30:] == "validation").sum() == 7  # the fraction of all 130, from those that can move


def test_rows_are_joined_by_any_of_their_pictures_and_near_duplicates() -> None:
    """a – b by a picture, b – c by another, c – d by one nearly the same; e is on its own."""
    grey = bytes([128]) * (HASH_BYTES - BIT_BYTES)
    near = [bytes([0] * (BIT_BYTES - 1) + [bits]) + grey for bits in (0, 7)]
    chain = [
        {"image_sha256": ["1", "2"]},
        {"image_sha256": ["3", "1"]},
        {"image_sha256": ["4", "3"], "picture_hash": [near[0], None]},
        {"image_sha256": ["5"], "picture_hash": [near[1]]},
        {"image_sha256": ["6"], "picture_hash": [None]},
    ]
    rows = [{"source_key": f"c{i}", "questions": [f"C {i}"], **row} for i, row in enumerate(chain)]
    sides = [assign_splits(frame(rows + numbered(95)), seed, 0.05)["side"][:5] for seed in range(60)]
    assert all(side[:4].n_unique() == 1 for side in sides)
    assert {tuple(side[3:]) for side in sides} >= {("train", "validation"), ("validation", "train")}


def test_a_question_that_is_only_a_form_joins_nothing() -> None:
    """Asked in twenty rows or more, and in more than the fraction of them."""
    for count, others, joined in ((19, 0, True), (20, 0, False), (20, 381, True), (21, 379, False)):
        rows = asking(["Describe the picture."] * count) + numbered(others)
        sides = [assign_splits(frame(rows), seed, 0.05)["side"][:count] for seed in range(30)]
        assert any(side.n_unique() > 1 for side in sides) != joined, (count, others)


def test_questions_are_the_same_whatever_their_case_and_white_space() -> None:
    rows = asking(["Is it  red?", " is it red?\n", "IS IT RED?"] * 10) + numbered(970, "Other")
    for seed in range(20):
        assert assign_splits(frame(rows), seed, 0.05)["side"][:30].n_unique() == 1


def test_upstream_splits_stay_and_the_lower_side_gives_way() -> None:
    rows = asking(["shared", "shared", "alone", "both", "both"], source="roco")
    splits = pl.Series("split", ["train", "test", "train", "validation", "test"])
    placed = assign_splits(frame(rows).with_columns(splits), 0, 0.05)
    assert placed["side"].to_list() == [None, "test", "train", None, "test"]
    assert placed["reason"].to_list() == ["leak", None, None, "leak", None]


def test_the_first_of_duplicates_stays() -> None:
    names = ("source", "source_key", "questions", "sha256")
    rows = [("b", "1", ["q"], "x"), ("a", "2", ["q"], "x"), ("a", "3", ["r"], "u"), ("a", "3", ["s"], "v")]
    placed = assign_splits(frame([dict(zip(names, row, strict=True)) for row in rows]), 0, 0.05)
    assert placed["reason"].to_list() == ["duplicate", None, None, "duplicate_id"]


def test_a_source_without_train_rows_is_divided_by_its_validation_rows() -> None:
    """All but one or the fraction of them become train; what its test rows hold stays out of train."""
    for count, kept in ((17, 1), (200, 10)):
        rows = numbered(count, source="roco", split="validation")
        rows += [{"source": "roco", "source_key": "t", "questions": ["What is 3?"], "split": "test"}]
        assert lacking_train(frame(rows)) == ["roco"]
        placed = assign_splits(frame(rows), 0, 0.05)
        assert (placed["side"] == "test").sum() == 1
        assert (placed["side"] == "validation").sum() + (placed["side"].is_null()).sum() in (kept, kept + 1)
        assert placed.filter(source_key="What3").select("side", "reason").row(0) == (None, "leak")
    rows.append({"source": "roco", "source_key": "x", "questions": ["What is x?"], "split": "train"})
    assert lacking_train(frame(rows)) == []
    assert (assign_splits(frame(rows), 0, 0.05)["side"] == "validation").sum() == 199
