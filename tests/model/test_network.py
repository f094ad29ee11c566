"""The network against the reference implementation; what neighbours, padding and dtype may change."""

import shutil
from dataclasses import replace
from math import prod
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from commands import invoke
from mindspore import Tensor
from paths import GOLDEN, needs_shared
from rounding import rounding_bound
from safetensors.numpy import load_file, save_file
from trainer_shards import CODES, CONFIG, SIDE, TOKENS, make_trainable, shape_of, token_slots

from janus.checkpoint.folder import ModelFolder, open_model
from janus.cli import main
from janus.model.config import PRESETS
from janus.model.janus import PARTS, parameter_shapes, part_of
from janus.model.loss import TaskLoss
from janus.prompts import SIGNATURES
from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate
from trainer.stream.shapes import Batch, ImageShape


def _reference(folder: Path, layout: str) -> Path:
    """The reference cases with the weights of one layout alone."""
    for name in ("cases.safetensors", "cases.json", layout):
        (folder / name).symlink_to(GOLDEN / "tiny" / name)
    return folder


@needs_shared
@pytest.mark.parametrize(("mode", "layout"), [("graph", "hf-format"), ("pynative", "deepseek-format")])
def test_verify_passes_on_the_reference_cases(mode: str, layout: str, tmp_path: Path) -> None:
    """That the layouts hold the same tensors, tests/checkpoint says."""
    output = invoke(main, "verify", _reference(tmp_path, layout), "--mode", mode).output
    assert "all within tolerance" in output
    for quantity in ("text.loss", "vqa.siglip_features", "t2i.image_tokens that differ", "t2i.grad_norms"):
        assert f"| {layout} | float32 | {quantity}" in output


@needs_shared
def test_verify_exits_1_when_a_weight_is_off(tmp_path: Path) -> None:
    folder = _reference(tmp_path, "hf-format")
    (folder / "hf-format").unlink()
    shutil.copytree(GOLDEN / "tiny" / "hf-format", folder / "hf-format", copy_function=shutil.copyfile)
    path = folder / "hf-format" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.aligner.fc1.bias"] = tensors["model.aligner.fc1.bias"] + 0.01
    save_file(tensors, path)
    output = invoke(main, "verify", folder, "--mode", "pynative", code=1).output
    assert "vqa.aligned_features" in output
    assert "TOO FAR" in output


PADDING = 1007
"""A token that no sample below has."""
WIDEST, PRODUCTS = 256, 12
"""Of the tiny Llama: terms of its widest product, and products one behind the other."""


def _inputs(samples: list[np.ndarray], length: int, tokens: int, rows: int) -> list[Tensor]:
    """Inputs of `TaskLoss.logits` for text samples one behind the other, every token of them a state."""
    ids_P = np.full(tokens, PADDING, np.int32)
    ids_P[: sum(map(len, samples))] = np.concatenate(samples)
    states_N = np.arange(sum(map(len, samples)), dtype=np.int32)
    arrays = (states_N, ids_P, *token_slots([len(sample) for sample in samples], rows, length, tokens))
    return list(map(Tensor, arrays))


def test_padding_order_and_shared_rows_change_no_gradient() -> None:
    """The same samples with more padding, in another order or in one row of slots have the same gradients."""
    loss = TaskLoss(open_model("tiny").build(), SIGNATURES["text"])
    samples = np.split(np.random.default_rng(0).integers(0, 1000, 12).astype(np.int32), [5])
    labels = [np.array([-100, -100, 4, 5, -100], np.int32), np.array([-100] * 3 + [6] + [-100] * 3, np.int32)]
    weights = ms.ParameterTuple(loss.get_parameters())
    results = []
    for length, tokens, rows, order in ((8, 13, 2, 1), (11, 20, 2, 1), (14, 13, 1, 1), (8, 13, 2, -1)):
        inputs = _inputs(samples[::order], length, tokens, rows)
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


@pytest.mark.parametrize(("name", "billions"), [("1b", 2.077), ("7b", 7.408)])
def test_every_parameter_belongs_to_a_part_and_presets_have_the_published_sizes(
    name: str, billions: float
) -> None:
    shapes = parameter_shapes(PRESETS[name])
    assert {part_of(key) for key in shapes} == set(PARTS)
    assert sum(map(prod, shapes.values())) / 1e9 == pytest.approx(billions, abs=0.001)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trainable(tmp_path_factory.mktemp("shards"), dict.fromkeys(SIGNATURES, 3))


def _perturbed(sample: Sample, words: int) -> Sample:
    """Other words and pictures of the same length. words: ids below it are no special tokens."""
    ids = np.where(sample.input_ids < words, (sample.input_ids + 5) % words, sample.input_ids)
    images, codes = [255 - image for image in sample.images], (sample.image_tokens + 1) % CODES
    return replace(sample, input_ids=ids.astype(np.int32), images=images, image_tokens=codes)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "own-rows"])
@pytest.mark.parametrize("task", SIGNATURES)
def test_another_neighbour_changes_losses_by_exactly_nothing(shards: Path, task: str, packed: bool) -> None:
    """Whether the samples share a row of attention slots or not; test_trainer_data.py splits batches."""
    rows = ShardSet.open(shards).rows("train", task)
    samples = [rows.read(i) for i in range(3)]
    special = JanusTokenizer(shards / "tokenizer").special
    lengths = [len(sample.input_ids) for sample in samples]
    shape = shape_of(samples, ImageShape(SIDE, TOKENS, CODES), rows=1 if packed else 3)
    loss = TaskLoss(ModelFolder("random", CONFIG).build(), shape.signature)

    def losses(middle: Sample) -> tuple[list[np.ndarray], Batch]:
        """−log p of each target of text, then of each of images, as far as the task has them."""
        (batch,) = collate(task, RowBlock.of([samples[0], middle, samples[2]]), [3], shape, special)
        return [tensor.asnumpy() for tensor in loss.scores(*map(Tensor, batch.inputs))[::2]], batch

    before, batch = losses(samples[1])
    after, _ = losses(_perturbed(samples[1], special.bos))
    predicted = [(batch.labels_N, batch.state_rows_N), (batch.image_labels_N, batch.image_rows_N)]
    kinds = [pair for pair in predicted if pair[0] is not None]
    for (labels_N, states_N), before_N, after_N in zip(kinds, before, after, strict=True):
        used = np.flatnonzero(labels_N >= 0)
        own = (states_N[used] >= lengths[0]) & (states_N[used] < sum(lengths[:2]))
        assert own.any()
        assert not own.all()
        np.testing.assert_array_equal(after_N[used[~own]], before_N[used[~own]])
        assert np.abs(after_N[used[own]] - before_N[used[own]]).max() > 0
