"""The benchmark: its rules (targets, table, operations), a side that cannot start, rows on real shards."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from commands import invoke
from raw_data import run_well
from shard_factory import make_folder, make_row

from bench.cli import main
from bench.measures import results, workload
from bench.measures.baseline import FOLDER, STEPS, Baseline
from bench.measures.link import Side, SideError, interleave
from bench.measures.reader import export, reader_figure
from bench.measures.results import Figure, at_least, at_most
from bench.measures.rows import MEASUREMENTS, NAMES
from bench.measures.step import head_rows
from bench.measures.workload import write_larger
from bench.sides.readers import batches, rows_of
from janus.model.config import PRESETS
from pipelines.tables import read_table
from shards.pictures import CODECS
from trainer.stream.shapes import Batch

SESSION = {"machine": "2 × core", "command": "python -m bench", "date": "2030-01-01"}
FIGURES = [
    Figure("a", "share", at_least(0.95), 0.976, "counted", others={"other": 0.45}),
    Figure("b", "seconds", at_most(1.05), 12_345.6, "timed", " s", cause="9 s of it is x"),
    Figure("c", "rate", at_least(2), None, "in turns", "×", skipped=("pytorch: no module named torch",)),
]


def test_a_target_is_met_on_its_own_side_and_at_its_value() -> None:
    assert [at_least(0.95).met(x) for x in (0.949, 0.95)] == [False, True]
    assert [at_most(1.05).met(x) for x in (1.05, 1.051)] == [True, False]
    assert [figure.met for figure in FIGURES] == [True, False, None]


def test_the_table_shows_figure_target_and_peers_the_report_method_and_skipped_ones() -> None:
    _, _, *lines = results.table(FIGURES).splitlines()
    assert lines == [
        "| share | **0.976** | ≥ 0.95 | met | other 0.45 |",
        "| seconds | **12,346 s** | ≤ 1.05 s | not met |  |",
        "| rate | — | ≥ 2× | not measured |  |",
    ]
    report = results.report(FIGURES, SESSION)
    for part in (
        "- machine: 2 × core",
        "- **seconds** — timed",
        "## Targets that are missed, and why\n\n- **seconds** — 9 s of it is x\n",
        "## Skipped\n\n- pytorch: no module named torch",
    ):
        assert part in report
    assert "cause not measured" in results.report([replace(FIGURES[1], cause="")], SESSION)


def test_written_figures_come_back_and_fill_the_readme(tmp_path: Path) -> None:
    results.write(tmp_path / "new" / "RESULTS.md", FIGURES, SESSION)
    content = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert results.from_json(content) == FIGURES
    assert content["figures"][1]["met"] is False

    readme = f"# Title\n{results.START}\nold\n{results.END}\nend\n"
    filled = results.put_into_readme(readme, results.from_json(content), content["session"])
    assert results.table(FIGURES) in filled
    assert "old" not in filled
    assert filled.startswith("# Title\n")
    assert filled.endswith(f"{results.END}\nend\n")
    assert results.put_into_readme(filled, FIGURES, SESSION) == filled
    with pytest.raises(ValueError, match="bench:start"):
        results.put_into_readme("# Title\n", FIGURES, SESSION)


def test_the_heads_share_of_a_tokens_work_is_the_1bs() -> None:
    shares = [
        c.vocab_size / (c.num_layers * (4 * c.hidden_size + 3 * c.intermediate_size))
        for c in (PRESETS["bench"].text, PRESETS["1b"].text)
    ]
    assert shares[0] == pytest.approx(shares[1], rel=0.2)


def test_sides_take_turns() -> None:
    calls: list[str] = []
    jobs = {name: lambda name=name: calls.append(name) or len(calls) for name in "AB"}
    assert interleave(jobs, 3) == {"A": [1, 4, 5], "B": [2, 3, 6]}
    assert "".join(calls) == "ABBAAB"


def test_the_reader_is_measured_against_the_peer_that_is_fastest_in_the_same_rounds() -> None:
    rates = {"ours": [800.0, 400.0, 900.0], "slow": [50.0, 90.0, 60.0], "fast": [200.0, 80.0, 210.0]}
    figure = reader_figure("t2i", rates, ())
    assert figure.value == pytest.approx(900 / 210)
    assert figure.others == {"ours, samples/s": 800, "slow, samples/s": 60, "fast, samples/s": 200}
    assert reader_figure("t2i", {"ours": rates["ours"]}, ("no peer",)).met is None


def test_a_side_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(SideError, match="nowhere"):
        Side("readers", ["nowhere", "rows", str(tmp_path / "new"), "8"], tmp_path / "side.log")


def test_a_run_is_compared_with_what_its_device_gave_before() -> None:
    facts = {"device": "Ascend 910B1", "dtype": "bfloat16", "mindspore": "2.10.0", "CANN": "8.5.0"}
    steps = [{"loss": 7.0, "step_seconds_median": None, "peak_memory": 9}]
    steps += [
        {"loss": x, "step_seconds_median": x, "peak_memory": 9, "peak_device_memory": 1000}
        for x in (6.0, 4.0, 5.0)
    ]
    before = Baseline.of(facts, steps)
    assert (before.seconds, before.memory, before.path) == (4.0, 1000, FOLDER / "ascend-910b1.json")
    assert before.shares(before) == {"losses": 0, "memory": 0, "time": 0}
    worse = replace(before, losses=[7.0, 6.0, 4.0, 5.0001], memory=1010, seconds=4.0 * 1.3)
    assert worse.shares(before) == {"losses": math.inf, "memory": pytest.approx(1), "time": pytest.approx(2)}
    assert replace(before, seconds=1.0).shares(before)["time"] == 0  # faster is no fault

    other = replace(worse, facts={**facts, "CANN": "9.0.0"}, losses=[7.0, 6.0, 4.0, 5.05])
    assert other.shares(before) == {"losses, ascend-910b1": pytest.approx(0.01 / 0.02)}
    cpu = replace(other, facts={"device": "EPYC", "dtype": "float32"})
    assert cpu.shares(cpu) == {"losses": 0, "memory": 0, "time": 0}
    assert cpu.shares(
        replace(cpu, facts={**cpu.facts, "device": "Xeon"}, losses=[7.0007, 6.0, 4.0, 5.05])
    ) == {"losses, xeon": pytest.approx(1, rel=2e-3)}


def test_the_committed_baselines_are_whole() -> None:
    for path in FOLDER.glob("*.json"):
        found = Baseline(**json.loads(path.read_text()))
        assert found.path == path
        assert len(found.losses) == STEPS
        assert found.losses[-1] < found.losses[0] / 2


def test_every_row_has_one_name_and_one_measurement() -> None:
    assert len(set(NAMES)) == len(NAMES) == sum(len(measurement.rows) for measurement in MEASUREMENTS)


def test_a_peers_batch_is_padded_and_labelled() -> None:
    rows = [
        {"input_ids": np.arange(1, n + 1, dtype=np.int32), "supervised": np.array([[1, n]], np.int32)}
        for n in range(2, 11)
    ]
    (batch,) = batches(rows, 12)  # nine rows: one whole batch
    assert batch["input_ids"].shape == (8, 12)
    assert batch["input_ids"][0].tolist() == [1, 2] + [0] * 10
    assert batch["labels"][1].tolist() == [-100, 2, 3] + [-100] * 9


def test_a_peers_coded_pictures_are_decoded() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3)).astype(np.uint8)
    ids, spans = np.arange(3, dtype=np.int32), np.array([[1, 3]], np.int32)
    coded = [{"input_ids": ids, "supervised": spans, "coded": CODECS["webp"].encode(p)} for p in pixels]
    (batch,) = batches(coded, 4)
    np.testing.assert_array_equal(batch["image"], pixels)


@pytest.mark.parametrize("codec", ["raw", "webp"])
def test_peers_get_the_rows_that_our_reader_gives(tmp_path: Path, codec: str) -> None:
    rows = {("train", task): [make_row(task, "train", key, 8) for key in range(8)] for task in ("vqa", "t2i")}
    work = workload.Workload(tmp_path / "tiny-sample", codec)
    make_folder(work.shards, rows, 8, codec=codec)
    for task in ("vqa", "t2i"):
        own = work.open().rows("train", task)
        assert export(work, task, tmp_path / "rows.arrow") == own.num_tokens.max()
        found = list(rows_of(tmp_path / "rows.arrow"))
        (batch,) = batches(found, 40)
        assert len(found) == len(own)
        for index, row in enumerate(found):
            sample = own.read(index)
            np.testing.assert_array_equal(row["input_ids"], sample.input_ids)
            np.testing.assert_array_equal(row["supervised"], sample.supervised[:, :2])
            if task == "vqa":
                np.testing.assert_array_equal(batch["image"][index], sample.images[0])
            else:
                np.testing.assert_array_equal(batch["image_tokens"][index], sample.image_tokens)


def test_rows_to_heads_are_those_of_text_and_of_images() -> None:
    labels = {"labels_N": np.zeros(2), "image_labels_N": np.zeros(3)}
    batch = Batch(**dict.fromkeys(f.name for f in fields(Batch)) | labels)
    assert [head_rows(b) for b in (batch, replace(batch, labels_N=None))] == [5, 3]


def test_a_larger_copy_of_the_sample_has_no_row_twice(sample_data: Path, tmp_path: Path) -> None:
    larger, work = tmp_path / "larger", tmp_path / "work"
    write_larger(sample_data, larger, questions=150, pictures=70)
    run_well("ingest", "--data", larger, "--work", work)
    for name, column, count in (
        ("pubmedqa.rows", "source_key", 150),
        ("medical-vqa.rows", "source_key", 70),
        ("understanding.images", "image_sha256", 70),
    ):
        values = read_table(work / "ingest" / f"{name}.arrow")[column].to_pylist()
        assert len(set(values)) == len(values) == count


@pytest.mark.slow
def test_rows_from_command_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded sample to shards to figures, `tiny` for speed; the reader rows start a side of their own."""
    monkeypatch.setattr(workload, "HUB", tmp_path / "nowhere")
    out = tmp_path / "RESULTS.md"
    rows = ["padding", "logits", "reader-memory"]
    chosen = [part for row in rows for part in ("--only", row)]
    folders = ("--work", tmp_path / "work", "--out", out)
    result = invoke(main, "--size", "tiny", "--rounds", 1, *folders, *chosen)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["session"]["data"] == "the embedded sample"
    figures = {figure.row: figure for figure in results.from_json(content)}
    assert list(figures) == rows
    assert figures["padding"].value == pytest.approx(1, abs=0.2)
    assert 1 <= figures["logits"].value < 3
    assert 20 < figures["reader-memory"].value < 1000
    assert results.table(list(figures.values())) in result.output
    assert "reader: memory" in out.read_text(encoding="utf-8")
