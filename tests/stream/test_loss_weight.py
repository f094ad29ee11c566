"""`--loss-weight`: what each task's summed loss is multiplied by, and that equal weights are none."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import gradient_bound
from trainer_shards import make_feed, make_trainable

from janus.checkpoint.folder import open_model
from janus.prompts import TASK_ORDER
from trainer.config import resolve
from trainer.step import TrainStep
from trainer.stream.feed import Feed, StepData

RATIO = {"vqa": 1, "text": 2, "t2i": 1, "edit": 1}


def _step(*targets: tuple[str, int]) -> StepData:
    """A step of micro-batches of which only task and number of targets are known."""
    return StepData([(task, SimpleNamespace(supervised=count)) for task, count in targets], [])


TARGETS = st.lists(st.tuples(st.sampled_from(TASK_ORDER), st.integers(1, 5000)), min_size=1, max_size=9)
WEIGHTS = st.dictionaries(st.sampled_from(TASK_ORDER), st.floats(1e-3, 1e3))


@settings(deadline=None)
@given(targets=TARGETS, weights=WEIGHTS)
def test_a_tasks_weight_is_over_the_weighted_number_of_all_targets(targets: list, weights: dict) -> None:
    scales = _step(*targets).scales(weights)
    assert scales.keys() == {task for task, _ in targets}
    counts_T = np.array([sum(n for other, n in targets if other == task) for task in scales], np.float64)
    weights_T = np.array([weights.get(task, 1.0) for task in scales])
    expected_T = weights_T / (weights_T * counts_T).sum()
    np.testing.assert_allclose(list(scales.values()), expected_T, rtol=1e-12)
    # The weighted mean of a loss that is 1 everywhere is 1.
    assert (np.array(list(scales.values())) * counts_T).sum() == pytest.approx(1, rel=1e-12)


@settings(deadline=None)
@given(targets=TARGETS, size=st.floats(1e-30, 1e30))
def test_equal_weights_of_any_size_change_no_bit(targets: list, size: float) -> None:
    step = _step(*targets)
    plain = 1.0 / sum(count for _, count in targets)
    assert set(step.scales(dict.fromkeys(TASK_ORDER, size)).values()) == {plain}
    assert set(step.scales({}).values()) == {plain}


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    shards = make_trainable(tmp_path_factory.mktemp("data") / "shards", dict.fromkeys(RATIO, 3))
    return make_feed(shards, ratio=RATIO, batch_size=5)


def _gradients(network: TrainStep) -> dict[str, np.ndarray]:
    found = {name: buffer.asnumpy().copy() for name, buffer in network.trained.items()}
    network.discard()
    return found


def test_a_steps_gradient_is_that_of_the_weighted_mean(feed: Feed, work: Path) -> None:
    """Each task's own gradient, taken with scale 1, weighed and summed in float64."""
    weights, options = {"vqa": 4.0, "t2i": 0.25}, {"mode": "pynative", "device": "CPU"}
    config = resolve({"ratio": RATIO, "loss_weight": weights, "batch_size": 5, **options})
    network = TrainStep(open_model(str(work / "model")).build(), feed.signatures, config)
    data, divisor = feed.step(1), 0.0
    exact = {name: np.zeros(buffer.shape) for name, buffer in network.trained.items()}
    for task, batch in data.batches:
        weight = weights.get(task, 1.0)
        divisor += weight * batch.supervised
        network.accumulate(task, batch, 1.0)
        for name, gradient in _gradients(network).items():
            exact[name] += weight * gradient.astype(np.float64)
    numbers = network.gradients(data)
    norm = np.sqrt(sum(np.square(gradient / divisor).sum() for gradient in exact.values()))
    assert numbers.grad_norm == pytest.approx(norm, rel=1e-5)
    assert numbers.supervised == {task: batch.supervised for task, batch in data.batches}
    found, exact = _gradients(network), {name: gradient / divisor for name, gradient in exact.items()}
    for name, gradient in found.items():
        # A gradient sums over a step's tokens, here scaled before, there after.
        bound = gradient_bound(exact, name, data.tokens, 4)
        np.testing.assert_allclose(gradient, exact[name], rtol=0, atol=bound, err_msg=name)
