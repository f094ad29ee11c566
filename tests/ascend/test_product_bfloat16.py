"""The product's own way in bfloat16, op by op, with CANN's part in NumPy, which rounds as CANN does."""

import re
from collections.abc import Callable, Mapping
from itertools import groupby

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter
from paths import GOLDEN, needs_shared
from trainer_shards import CONFIG

from bench.ascend.emulation.rounding import cosine, to_bfloat16
from janus import device
from janus.checkpoint.folder import ModelFolder, open_model
from janus.inspect.bounds import LOSS, Bounds
from janus.inspect.verify import gradient_norms, open_cases, task_values
from janus.model.config import PRESETS
from janus.model.janus import part_of
from janus.model.layers import lower
from janus.prompts import SIGNATURES
from trainer.config import TrainConfig
from trainer.step import TrainStep
from trainer.stream.shapes import Batch


@needs_shared
@pytest.mark.parametrize("task", ["text", "vqa", "t2i"])
def test_a_task_has_nearly_the_loss_and_gradients_of_the_reference(task: str, on_cann: None) -> None:
    """As `janus verify` asks an Ascend for, and as the emulated network alone: 2e-3, 0.999."""
    cases, opened = open_cases(GOLDEN / "tiny"), open_model(str(GOLDEN / "tiny" / "hf-format"))
    exact, model = opened.build(), opened.build()
    lower(model, "bfloat16")
    states = cases.batch(task)[1]
    logits_NV, loss, gradients = task_values(model, task, cases, states, lambda cell: cell)
    expected_NV, exact_loss, exact_gradients = task_values(exact, task, cases, states, lambda cell: cell)
    assert exact_loss == pytest.approx(cases.facts["losses"][task], abs=LOSS)
    assert loss == pytest.approx(cases.facts["losses"][task], rel=2e-3)
    large = [name for name, gradient in exact_gradients.items() if gradient.ndim > 1]
    low = {name: _cosine(gradients, exact_gradients, [name]) for name in large}
    assert {name: cosine for name, cosine in low.items() if cosine < 0.999} == {}
    assert _cosine(gradients, exact_gradients, list(exact_gradients)) >= 0.999
    bounds = Bounds(opened.config, "bfloat16")
    checks = [
        bounds.values(f"{task}.logits", logits_NV, expected_NV, bounds.logits(task)),
        bounds.loss(task, loss, cases.facts["losses"][task], expected_NV),
        bounds.norms(task, gradient_norms(gradients), cases.facts["grad_norms"][task]),
    ]
    assert [check for check in checks if not check.passed] == []


def _cosine(found: dict[str, np.ndarray], exact: dict[str, np.ndarray], names: list[str]) -> float:
    return cosine(*(np.concatenate([own[name].ravel() for name in names]) for own in (found, exact)))


def test_steps_move_float32_masters_and_round_them_to_working_weights(
    batch_of: Callable[[str], Batch], on_cann: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the same steps in float32."""
    monkeypatch.setattr(device, "check_dtype", lambda *_: None)  # NumPy has the kernels that a CPU lacks
    losses, moved = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = ModelFolder("random", CONFIG).build()
        config = TrainConfig(task="vqa", device="CPU", dtype=dtype, mode="pynative")
        step = TrainStep(model, {"vqa": SIGNATURES["vqa"]}, config)
        before = _values(step.weights)
        losses[dtype] = [_loss_of_a_step(step, batch_of("vqa")) for _ in range(2)]
        moved[dtype] = {name: after - before[name] for name, after in _values(step.weights).items()}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-3)
    assert losses["bfloat16"] != losses["float32"]
    assert _cosine(moved["bfloat16"], moved["float32"], list(before)) > 0.99
    working = {p.name: p for p in model.get_parameters()}
    copies = {name: working[name] for name in before if working[name] is not step.weights[name]}
    assert {copy.dtype for copy in copies.values()} == {ms.bfloat16}
    unmoved = 0
    for name, copy in copies.items():
        value = copy.astype("float32").asnumpy()
        np.testing.assert_array_equal(value, to_bfloat16(step.weights[name].asnumpy()))
        unmoved += int(((value == to_bfloat16(before[name])) & (moved["bfloat16"][name] != 0)).sum())
    assert unmoved > 1000  # in bfloat16 alone they would never move


def _values(weights: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
    return {name: weight.asnumpy().copy() for name, weight in weights.items()}


def _loss_of_a_step(step: TrainStep, batch: Batch) -> float:
    step.accumulate("vqa", batch, 1 / batch.supervised)
    loss = step.measure().loss_sum["vqa"]
    step.apply(1e-4)
    return loss


def test_gradients_are_added_in_the_order_in_which_a_backward_gives_them() -> None:
    """In a chain: one that waits for a later gradient would keep all behind it in memory."""
    config = TrainConfig(task="vqa", device="CPU", mode="pynative")
    step = TrainStep(ModelFolder("random", PRESETS["tiny"]).build(), {"vqa": SIGNATURES["vqa"]}, config)
    names = [buffer.name.removeprefix("gradient.") for buffer in step._accumulate["vqa"].buffers]
    parts = [part for part, _ in groupby(map(part_of, names))]
    assert parts == ["lm_head", "llama", "aligner", "siglip"]
    for part in ("llama", "siglip"):
        own = [name for name in names if part_of(name) == part]
        layers = [int(found[1]) for name in own if (found := re.search(r"\.layers\.(\d+)\.", name))]
        assert [layer for layer, _ in groupby(layers)] == [1, 0]
