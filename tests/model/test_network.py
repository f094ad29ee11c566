"""The network against the reference implementation; what neighbours, padding and dtype may change."""

import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from click.testing import CliRunner
from mindspore import Tensor
from paths import GOLDEN, needs_shared
from rounding import rounding_bound
from safetensors.numpy import load_file, save_file

from janus.checkpoint.folder import open_model
from janus.cli import main
from janus.inspect.verify import open_cases
from janus.model.config import PRESETS
from janus.model.janus import PARTS, parameter_shapes, part_of
from janus.model.loss import TaskLoss
from trainer.stream.shapes import pack


def _reference(folder: Path, layout: str) -> Path:
    """The reference cases with the weights of one layout alone."""
    for name in ("cases.safetensors", "cases.json", layout):
        (folder / name).symlink_to(GOLDEN / "tiny" / name)
    return folder


@needs_shared
@pytest.mark.parametrize(("mode", "layout"), [("graph", "hf-format"), ("pynative", "deepseek-format")])
def test_verify_passes_on_the_reference_cases(mode: str, layout: str, tmp_path: Path) -> None:
    """That the layouts hold the same tensors, tests/checkpoint says."""
    result = CliRunner().invoke(main, ["verify", str(_reference(tmp_path, layout)), "--mode", mode])
    assert result.exit_code == 0, result.output
    assert "all within tolerance" in result.output
    for quantity in ("text.loss", "vqa.siglip_features", "t2i.image_tokens that differ", "t2i.grad_norms"):
        assert f"{layout:16} {quantity}" in result.output


@needs_shared
def test_verify_exits_1_when_a_weight_is_off(tmp_path: Path) -> None:
    folder = _reference(tmp_path, "hf-format")
    (folder / "hf-format").unlink()
    shutil.copytree(GOLDEN / "tiny" / "hf-format", folder / "hf-format", copy_function=shutil.copyfile)
    path = folder / "hf-format" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.aligner.fc1.bias"] = tensors["model.aligner.fc1.bias"] + 0.01
    save_file(tensors, path)
    result = CliRunner().invoke(main, ["verify", str(folder), "--mode", "pynative"])
    assert result.exit_code == 1
    assert "vqa.aligned_features" in result.output
    assert "TOO FAR" in result.output


PADDING = 1007
"""A token that no sample below has."""
WIDEST, PRODUCTS = 256, 12
"""Of the tiny Llama: terms of its widest product, and products one behind the other."""


def _inputs(samples: list[np.ndarray], length: int, tokens: int, rows: int | None = None) -> list[Tensor]:
    """Inputs of `TaskLoss.logits` for text samples one behind the other, every token a state.

    rows: of attention slots, else one for each sample.
    """
    rows = rows or len(samples)
    places = zip(*(place[0] for place in pack(np.array([[len(x) for x in samples]]), rows)), strict=True)
    ids, positions = np.full(tokens, PADDING, np.int32), np.zeros(tokens, np.int32)
    token_of = np.full((rows, length), tokens - 1, np.int32)
    slot_of = np.full(tokens, rows * length - 1, np.int32)
    segments = np.zeros((rows, length), np.int32)
    start = 0
    for number, (sample, (row, first)) in enumerate(zip(samples, places, strict=True), 1):
        at = np.arange(len(sample))
        ids[start + at], positions[start + at] = sample, at
        token_of[row, first + at], segments[row, first + at] = start + at, number
        slot_of[start + at] = row * length + first + at
        start += len(sample)
    states = np.arange(tokens, dtype=np.int32)
    return [Tensor(array) for array in (states, ids, positions, token_of, slot_of, segments)]


@pytest.mark.parametrize(("rows", "length"), [(2, 8), (1, 13)])
def test_neighbours_on_the_token_axis_do_not_touch_each_other(rows: int, length: int) -> None:
    """Changing one sample changes the other's logits by exactly nothing, in rows of their own or in one."""
    loss = TaskLoss(open_model("tiny").build(), "text")
    one, other = np.split(np.random.default_rng(0).integers(0, 1000, 12).astype(np.int32), [5])
    before = loss.logits(*_inputs([one, other], length, 14, rows)).asnumpy()
    after = loss.logits(*_inputs([one + 7, other], length, 14, rows)).asnumpy()
    assert np.abs(before[5:12] - after[5:12]).max() == 0
    assert np.abs(before[:5] - after[:5]).max() > 0
    alone = loss.logits(*_inputs([other], 9, 8)).asnumpy()
    # Other shapes sum in another order.
    bound = rounding_bound(alone[:7], WIDEST, PRODUCTS)
    np.testing.assert_allclose(before[5:12], alone[:7], rtol=0, atol=bound)


def test_padding_order_and_shared_rows_change_no_gradient() -> None:
    """The same samples with more padding, in another order or in one row of slots have the same gradients."""
    loss = TaskLoss(open_model("tiny").build(), "text")
    samples = np.split(np.random.default_rng(0).integers(0, 1000, 12).astype(np.int32), [5])
    labels = [np.array([-100, -100, 4, 5, -100], np.int32), np.array([-100] * 3 + [6] + [-100] * 3, np.int32)]
    weights = ms.ParameterTuple(loss.get_parameters())
    results = []
    for length, tokens, rows, order in ((8, 13, 2, 1), (11, 20, 2, 1), (14, 13, 1, 1), (8, 13, 2, -1)):
        inputs = _inputs(samples[::order], length, tokens, rows)
        inputs[0] = inputs[0][:12]
        labels_N = Tensor(np.concatenate(labels[::order]))
        results.append(ms.value_and_grad(loss, None, weights)(labels_N, *inputs))
    value, gradients = results[0]
    for other_value, other_gradients in results[1:]:
        assert abs(float(value) - float(other_value)) <= rounding_bound(float(value), WIDEST, PRODUCTS)
        for ours, theirs in zip(gradients, other_gradients, strict=True):
            bound = rounding_bound(theirs.asnumpy(), WIDEST, 2 * PRODUCTS)  # there and back
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), rtol=0, atol=bound)
        (table,) = (g for w, g in zip(weights, other_gradients, strict=True) if "embed_tokens" in w.name)
        assert not table.asnumpy()[PADDING].any()


def test_every_parameter_belongs_to_a_part_and_presets_have_the_published_sizes() -> None:
    for name, billions in (("1b", 2.077), ("7b", 7.408)):
        shapes = parameter_shapes(PRESETS[name])
        assert {part_of(key) for key in shapes} == set(PARTS)
        assert sum(np.prod(shape) for shape in shapes.values()) / 1e9 == pytest.approx(billions, abs=0.01)


@needs_shared
@pytest.mark.parametrize("task", ["text", "vqa", "t2i"])
def test_half_precision_gives_nearly_the_same_loss_and_float32_gradients(task: str) -> None:
    """The path that Ascend takes in bfloat16, in the half precision that this device has kernels for."""
    cases = open_cases(GOLDEN / "tiny")
    batch = [Tensor(array) for array in cases.batch(task)]
    model = open_model(str(GOLDEN / "tiny" / "hf-format")).build()
    found = {}
    for dtype in ("float32", "float16"):
        loss = TaskLoss(model, task, dtype)
        backward = ms.value_and_grad(loss, None, ms.ParameterTuple(loss.get_parameters()))
        value, gradients = backward(*batch)
        assert {gradient.dtype for gradient in gradients} == {ms.float32}
        flat = np.concatenate([gradient.asnumpy().ravel() for gradient in gradients])
        found[dtype] = float(value.asnumpy()), flat
    (exact, exact_flat), (half, half_flat) = found.values()
    assert half == pytest.approx(exact, rel=4 * 2**-11)  # four of float16's units
    assert half != exact
    cosine = half_flat @ exact_flat / np.linalg.norm(half_flat) / np.linalg.norm(exact_flat)
    assert cosine > 0.999
