"""Splits: nothing shared across sides, nothing lost without a reason, the same whatever the order."""

from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.prompts import SPLITS
from pipelines.stages.splits import assign_splits, lacking_train

SCHEMA = {
    **dict.fromkeys(("sample_id", "source", "source_key", "task", "sha256", "image_sha256"), pl.String),
    "picture_hash": pl.Binary,
    "split": pl.String,
    "questions": pl.List(pl.String),
}


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows with what they do not say filled in."""
    filled = [
        {
            "sample_id": f"{row['source']}/{row['source_key']}",
            "task": "vqa",
            "sha256": row["source"] + row["source_key"],
            "image_sha256": None,
            "picture_hash": None,
            "split": None,
            **row,
        }
        for row in rows
    ]
    return pl.DataFrame(filled, SCHEMA)


ROW = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["a", "b", "roco"]),
        "source_key": st.integers(0, 40).map(str),
        "image_sha256": st.none() | st.integers(0, 15).map(str),
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
        of_key = kept.select("side", key=key)
        of_key = of_key.explode("key") if key == "questions" else of_key
        sides = of_key.drop_nulls("key").group_by("key").agg(pl.col("side").n_unique())
        assert (sides["side"] == 1).all()
    divided = pl.col("split").eq("validation") & pl.col("source").is_in(lacking_train(frame(rows)))
    upstream = kept.filter(pl.col("split").is_not_null() & ~divided)
    assert (upstream["split"] == upstream["side"]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(ROW, max_size=40, unique_by=lambda row: (row["source"], row["source_key"])), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random) -> None:
    shuffled = random.sample(rows, len(rows))
    columns = ["sample_id", "side", "reason"]
    first, second = (
        assign_splits(frame(r), 0, 0.2).select(columns).sort("sample_id") for r in (rows, shuffled)
    )
    assert first.equals(second)


def questions(count: int, **same: Any) -> list[dict[str, Any]]:
    return [
        {"source": "a", "source_key": f"{i:04d}", "questions": [f"What is {i}?"], **same}
        for i in range(count)
    ]


def test_the_fraction_goes_to_validation_and_the_seed_decides_which() -> None:
    sides = [assign_splits(frame(questions(2000)), seed, 0.05)["side"] for seed in (0, 1)]
    for side in sides:
        assert (side == "validation").sum() == 100
    assert not sides[0].equals(sides[1])
    for seed in range(30):  # twenty rows are enough to have one
        assert (assign_splits(frame(questions(20)), seed, 0.05)["side"] == "validation").sum() == 1


def test_a_component_larger_than_the_fraction_is_train() -> None:
    rows = questions(30, image_sha256="one picture") + [
        {"source": "a", "source_key": f"x{i}", "questions": [f"Else {i}?"]} for i in range(100)
    ]
    for seed in range(10):
        side = assign_splits(frame(rows), seed, 0.05)["side"]
        assert set(side[:30]) == {"train"}
        assert (side[30:] == "validation").sum() == 7  # the fraction of all 130, from those that can move


def test_questions_are_the_same_whatever_their_case_and_white_space() -> None:
    texts = ["Is it  red?", " is it red?\n", "IS IT RED?"] * 10 + [f"Other {i}?" for i in range(970)]
    rows = [{"source": "a", "source_key": f"{i:04d}", "questions": [text]} for i, text in enumerate(texts)]
    for seed in range(20):
        assert assign_splits(frame(rows), seed, 0.05)["side"][:30].n_unique() == 1


def test_upstream_splits_stay_and_the_lower_side_gives_way() -> None:
    rows = [
        {"source": "roco", "source_key": key, "questions": [text], "split": split}
        for key, text, split in [
            ("1", "shared", "train"),
            ("2", "shared", "test"),
            ("3", "alone", "train"),
            ("4", "both", "validation"),
            ("5", "both", "test"),
        ]
    ]
    placed = assign_splits(frame(rows), 0, 0.05)
    assert placed["side"].to_list() == [None, "test", "train", None, "test"]
    assert placed["reason"].to_list() == ["leak", None, None, "leak", None]


def test_the_first_of_duplicates_stays() -> None:
    rows = [
        {"source": "b", "source_key": "1", "questions": ["q"], "sha256": "same"},
        {"source": "a", "source_key": "2", "questions": ["q"], "sha256": "same"},
        {"source": "a", "source_key": "3", "questions": ["r"], "sha256": "u"},
        {"source": "a", "source_key": "3", "questions": ["s"], "sha256": "v"},
    ]
    placed = assign_splits(frame(rows), 0, 0.05)
    assert placed["reason"].to_list() == ["duplicate", None, None, "duplicate_id"]


def test_a_source_without_train_rows_is_divided_by_its_validation_rows() -> None:
    """All but one or the fraction of them become train; what its test rows hold stays out of train."""
    for count, kept in ((17, 1), (200, 10)):
        rows = [
            {"source": "roco", "source_key": f"v{i}", "questions": [f"Figure {i}"], "split": "validation"}
            for i in range(count)
        ]
        rows += [{"source": "roco", "source_key": "t", "questions": ["Figure 3"], "split": "test"}]
        assert lacking_train(frame(rows)) == ["roco"]
        placed = assign_splits(frame(rows), 0, 0.05)
        sides = placed["side"].value_counts().filter(pl.col("side").is_not_null())
        assert dict(sides.iter_rows())["test"] == 1
        assert (placed["side"] == "validation").sum() + (placed["side"].is_null()).sum() in (kept, kept + 1)
        assert placed.filter(source_key="v3")["side"][0] is None
        assert placed.filter(source_key="v3")["reason"][0] == "leak"
    rows.append({"source": "roco", "source_key": "x", "questions": ["Figure x"], "split": "train"})
    assert lacking_train(frame(rows)) == []
    placed = assign_splits(frame(rows), 0, 0.05)
    assert (placed["side"] == "validation").sum() == 199
