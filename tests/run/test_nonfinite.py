"""Steps that are not finite stop a run before they are applied, or are skipped if that is allowed."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from runs import left_behind, records, train, train_well
from safetensors.numpy import load_file, save_file

from shards.read import ShardSet

STEPS = 6
GIVEN = ("--task", "text", "--model", "model", "--shards", "shards")
GIVEN += ("--steps", STEPS, "--eval-samples", 0, "--save-every", 1, "--keep", 9, "--micro-batch", 3)


def test_it_stops_before_the_update_and_keeps_all_that_is_known(work: Path) -> None:
    code, output = train(work, *GIVEN, "--learning-rate", 1e30, "--out", "stopped")
    assert code == 2
    last = output.splitlines()[-1]
    assert last.startswith("Error: step 2: loss text ")
    assert "stopped/nonfinite/step-000002" in last
    run = work / "stopped"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]
    assert [record["step"] for record in records(run)] == [1]
    kept = run / "nonfinite" / "step-000002"
    assert sorted(path.name for path in kept.iterdir()) == ["inputs.npz", "numbers.json", "samples.arrow"]
    samples = pl.read_ipc(kept / "samples.arrow")
    assert samples["step"].unique().to_list() == [2]
    assert len(samples) == 8
    inputs = np.load(kept / "inputs.npz")
    assert {name.rpartition(".")[0] for name in inputs} == {"0.text", "1.text", "2.text"}
    assert inputs["0.text.input_ids_P"].dtype == np.int32
    numbers = json.loads((kept / "numbers.json").read_text())
    assert numbers["loss_sum"]["text"] in ("nan", "inf") or numbers["grad_norm"] in ("nan", "inf")
    # The weights are those of the step before: huge, but what was saved.
    saved = load_file(run / "checkpoints" / "step-000001" / "model.safetensors")
    name = "lm_head.weight"
    assert numbers["parameter_norms"][name] == pytest.approx(np.linalg.norm(saved[name].astype(np.float64)))


@pytest.fixture(scope="module")
def poison(work: Path) -> str:
    """Makes `poisoned`, a model in which one sample overflows, and gives its id.

    The embedding of an image token that only this one has is huge, and there is no norm before the aligner.
    """
    rows = ShardSet.open(work / "shards").rows("train", "t2i")
    samples = [rows.read(i) for i in range(len(rows))]
    holders = Counter(token for sample in samples for token in {*sample.image_tokens.tolist()})
    # The last image token is predicted and predicts nothing.
    sample, token = next((s, t) for s in samples for t in s.image_tokens[:-1].tolist() if holders[t] == 1)
    shutil.copytree(work / "model", work / "poisoned")
    path = work / "poisoned" / "model.safetensors"
    weights = load_file(path)
    weights["model.generation_embeddings.weight"][token] = 3e38
    weights["model.generation_aligner.fc1.weight"] *= 100
    save_file(weights, path, {"format": "pt"})
    return sample.sample_id


def test_as_many_as_allowed_are_skipped_and_resuming_stays_exact(work: Path, poison: str) -> None:
    given = [*GIVEN, "--task", "t2i", "--model", "poisoned", "--batch-size", 2]
    train_well(work, *given, "--skip-nonfinite", 9, "--out", "skipping")
    run = work / "skipping"
    ledger = pl.scan_ipc(run / "ledger" / "*.arrow").collect()
    hit = sorted(set(ledger.filter(pl.col("sample_id") == poison)["step"]))
    skipped = [record for record in records(run) if record["kind"] == "skipped"]
    assert [record["step"] for record in skipped] == hit
    assert 0 < len(hit) < STEPS
    steps = [record["step"] for record in records(run) if record["kind"] == "step"]
    assert steps == sorted({*range(1, 7)} - {*hit})
    # A step that is skipped is none for AdamW.
    optimizer = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "optimizer.safetensors")
    assert optimizer["step"].tolist() == [STEPS - len(hit)]
    before, after = (
        load_file(run / f"checkpoints/step-{s:06d}/model.safetensors") for s in (hit[0] - 1, hit[0])
    )
    assert all(np.array_equal(before[name], after[name]) for name in before)

    resumed = Path(shutil.copytree(run, work / "resumed-skipping"))
    for step in range(hit[0] + 1, STEPS + 1):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:06d}")
    train_well(work, "--resume", "--out", resumed)
    assert left_behind(resumed, STEPS) == left_behind(run, STEPS)

    # The count goes on: one more than allowed stops the run.
    shutil.rmtree(resumed)
    code, output = train(work, *given, "--skip-nonfinite", len(hit) - 1, "--out", resumed)
    assert code == 2
    assert f"step {hit[-1]}: " in output.splitlines()[-1]
    train_well(work, "--resume", "--skip-nonfinite", len(hit), "--out", resumed)
    assert left_behind(resumed, STEPS) == left_behind(run, STEPS)
