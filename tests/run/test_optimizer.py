"""The optimizer against PyTorch's formulas in float64; steps that are not finite are never applied."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import polars as pl
import pytest
from mindspore import Parameter, Tensor, ops
from rounding import UNIT, rounding_bound
from runs import left_behind, records, train, train_well
from safetensors.numpy import load_file, save_file

from janus.model import kernels
from shards.read import ShardSet
from trainer.config import TrainConfig
from trainer.optimizer import AdamW, Trained, learning_rate, zeros_like

CONFIG = replace(TrainConfig(), device="CPU")


def _optimizer(start: np.ndarray, config: TrainConfig, to_graph: Callable | None = None) -> tuple:
    weight = Parameter(Tensor(start.copy()), name="w")
    (gradient,) = zeros_like([weight], "gradient")
    numbers = Parameter(Tensor(np.zeros(4, np.float32)), name="numbers")
    to_graph = to_graph or (lambda cell, name: cell)
    return weight, gradient, AdamW([Trained(weight, gradient, weight)], numbers, config, to_graph)


def _reference(weight: np.ndarray, gradients: np.ndarray, rate: float, config: TrainConfig) -> np.ndarray:
    """AdamW after clipping by global norm, as torch writes it, in float64."""
    weight = weight.astype(np.float64)
    mean = square = np.zeros_like(weight)
    for step, gradient in enumerate(gradients.astype(np.float64), 1):
        gradient = gradient * min(1.0, config.clip_norm / (np.sqrt((gradient**2).sum()) + 1e-6))
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        weight = weight * (1 - rate * config.weight_decay)
        root = np.sqrt(square / (1 - config.beta2**step)) + config.eps
        weight = weight - rate * mean / (1 - config.beta1**step) / root
    return weight


@pytest.mark.parametrize("body", ["cpu", "plain"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_adamw_has_torchs_numbers(
    decay: float, scale: float, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.BODIES, "CPU", body)
    config = replace(CONFIG, weight_decay=decay)
    generator = np.random.default_rng(0)
    start = generator.standard_normal((5, 7)).astype(np.float32)
    gradients = (generator.standard_normal((20, 5, 7)) * scale).astype(np.float32)
    weight, buffer, optimizer = _optimizer(start, config)
    for gradient in gradients:
        ops.assign(buffer, Tensor(gradient))
        optimizer.apply(float(np.linalg.norm(gradient)), 1e-2)
        assert not buffer.asnumpy().any()
    expected = _reference(start, gradients, 1e-2, config)
    # 20 updates, four roundings each: of the decay, both factors of the step, and the difference.
    np.testing.assert_allclose(weight.asnumpy(), expected, rtol=0, atol=rounding_bound(start, 20, 4))


def test_a_shorter_weight_is_the_rounded_copy_of_its_float32_master() -> None:
    """A step that moves the master by less than the copy's last digit is kept. Float16: a CPU assigns it."""
    (master, weight), moves = (Parameter(Tensor(np.ones(1, np.float32)), name=n) for n in ("m", "w")), []
    weight.set_dtype(ms.float16)
    (gradient,) = zeros_like([weight], "gradient")
    numbers = Parameter(Tensor(np.zeros(4, np.float32)), name="numbers")
    optimizer = AdamW([Trained(weight, gradient, master)], numbers, CONFIG, lambda cell, name: cell)
    for _ in range(8):
        ops.assign(gradient, Tensor(np.full(1, 0.5, np.float32)))
        optimizer.apply(0.5, 1e-4)
        moves.append((master.asnumpy()[0], weight.astype(ms.float32).asnumpy()[0]))
    masters, weights = map(np.array, zip(*moves, strict=True))
    np.testing.assert_allclose(masters, 1 - 1e-4 * np.arange(1, 9), rtol=1e-6)
    assert weights[0] == weights[1] == 1.0
    np.testing.assert_array_equal(weights, masters.astype(np.float16))


def test_a_thousand_small_steps_move_a_weight_as_far_as_they_should() -> None:
    """At 1e-5 a bfloat16 weight of 1.0 would never move: the step is below half its last digit."""
    start, to_graph = np.ones(1, np.float32), lambda cell, name: ms.jit(cell.construct)
    weight, buffer, optimizer = _optimizer(start, CONFIG, to_graph)
    for _ in range(1000):
        ops.assign(buffer, Tensor(np.full(1, 0.5, np.float32)))
        optimizer.apply(0.5, 1e-5)
    expected = _reference(np.ones(1), np.full((1000, 1), 0.5), 1e-5, CONFIG)
    assert expected[0] == pytest.approx(0.99, abs=1e-6)
    # The same difference a thousand times: roundings of a weight below 1 may all go one way.
    assert weight.asnumpy()[0] == pytest.approx(expected[0], abs=1000 * UNIT / 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warm_up_rises_to_the_peak_and_every_step_has_an_effect(schedule: str) -> None:
    config = replace(CONFIG, learning_rate=2.0, schedule=schedule, warmup_steps=4, steps=20)
    rates = [learning_rate(step, config) for step in range(1, 21)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert min(rates) > 0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert (rates[-1] == 2.0) == (schedule == "constant")
    assert learning_rate(4, replace(config, steps=4)) == 2.0  # a run that is all warm-up
    half_way = learning_rate(6, replace(config, warmup_steps=0, steps=10))
    assert half_way == pytest.approx(2.0 if schedule == "constant" else 1.0)


STEPS = 6
GIVEN = ("--task", "text", "--model", "model", "--shards", "shards")
GIVEN += ("--steps", STEPS, "--eval-samples", 0, "--save-every", 1, "--keep", 9, "--micro-batch", 3)


def test_it_stops_before_the_update_and_keeps_all_that_is_known(work: Path) -> None:
    code, output = train(work, *GIVEN, "--learning-rate", 1e30, "--out", "stopped")
    assert code == 2
    assert re.match(r"Error: step 2: loss text .*stopped/nonfinite/step-000002", output.splitlines()[-1])
    run = work / "stopped"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]
    assert [record["step"] for record in records(run)] == [1]
    kept = run / "nonfinite" / "step-000002"
    assert sorted(path.name for path in kept.iterdir()) == ["inputs.npz", "numbers.json", "samples.arrow"]
    samples = pl.read_ipc(kept / "samples.arrow")
    assert samples["step"].to_list() == [2] * 8
    inputs = np.load(kept / "inputs.npz")
    assert {name.rpartition(".")[0] for name in inputs} == {"0.text", "1.text", "2.text"}
    assert inputs["0.text.input_ids_P"].dtype == np.int32
    numbers = json.loads((kept / "numbers.json").read_text())
    assert numbers["loss_sum"]["text"] in ("nan", "inf") or numbers["grad_norm"] in ("nan", "inf")
    # The weights are those of the step before: huge, but what was saved.
    saved = load_file(run / "checkpoints/step-000001/model.safetensors")["lm_head.weight"]
    norm = pytest.approx(np.linalg.norm(saved.astype(np.float64)))
    assert numbers["parameter_norms"]["lm_head.weight"] == norm


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
    folders = [run / "checkpoints" / f"step-{step:06d}" for step in (hit[0] - 1, hit[0], STEPS)]
    assert load_file(folders[2] / "optimizer.safetensors")["step"].tolist() == [STEPS - len(hit)]
    before, after = (load_file(folder / "model.safetensors") for folder in folders[:2])
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
