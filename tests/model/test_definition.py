"""Micro-batches that read and draw pictures, against the loss written from its definition in float64.

The definition takes one sample at a time, token by token, from the stored row and the network's weights. Its
gradients are central differences: of each parameter, along a random direction.

Shapes: S tokens of a sample, D width, H heads, K head width, T tokens of a picture, N targets, V classes.
"""

from dataclasses import replace
from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from rounding import gradient_bound, rounding_bound
from scipy.special import erf, logsumexp
from trainer_shards import CODES, CONFIG, SIDE, TOKENS, shape_of, trainable_row, word_tokenizer

from janus.checkpoint.folder import ModelFolder
from janus.model.config import JanusConfig, TextConfig
from janus.model.janus import Janus
from janus.model.loss import TaskLoss
from janus.prompts import IMAGE, SIGNATURES, Message
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate
from trainer.stream.shapes import BatchShape, ImageShape

DEEP = JanusConfig(replace(CONFIG.text, num_layers=2), replace(CONFIG.vision, num_layers=2), CONFIG.vq)
PICTURES = ImageShape(SIDE, TOKENS, CODES)
WIDEST, PRODUCTS = 3 * DEEP.vision.patch_size**2, 29
"""Terms of the widest product, that of a patch's pixels; products one behind the other from there to a loss:
1 of patches, 6 in each of two vision layers, 2 of the aligner, 6 in each of two Llama layers, 2 of a head."""
STEP = 1e-5
"""Of a central difference, along a direction of length 1."""
LLAMA, VISION = "model.language_model", "model.vision_model"
FEW = {
    *(f"{VISION}.{name}.weight" for name in ("embeddings.patch_embedding", "encoder.layers.1.mlp.fc1")),
    *(f"{VISION}.encoder.layers.0.self_attn.{name}" for name in ("q_proj.weight", "k_proj.bias")),
    *("model.aligner.fc1.weight", "model.aligner.hidden_layers.0.bias", f"{LLAMA}.embed_tokens.weight"),
    *(f"{LLAMA}.layers.0.self_attn.{name}_proj.weight" for name in "kv"),
    *(f"{LLAMA}.{name}.weight" for name in ("layers.1.mlp.up_proj", "norm")),
    *("model.generation_embeddings.weight", "model.generation_aligner.fc1.weight", "lm_head.weight"),
    *(f"model.generation_head.{name}" for name in ("proj_out.weight", "vision_head.bias")),
}
"""Parameters whose gradients are compared: from each part those that gradients pass last and first."""
Weights = dict[str, np.ndarray]


@cache
def _model() -> Janus:
    """Random weights; biases and norms are none that could be left out."""
    model, rng = ModelFolder("random", DEEP).build(), np.random.default_rng(0)
    for parameter in model.get_parameters():
        noise = rng.standard_normal(parameter.shape).astype(np.float32)
        ops.assign(parameter, parameter + Tensor(0.1 * noise))
    return model


def _linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / 2**0.5))


def _mlp(w: Weights, first: str, second: str, x: np.ndarray) -> np.ndarray:
    return _linear(w, second, _gelu(_linear(w, first, x)))


def _layer_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + DEEP.vision.layer_norm_eps)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def _rms_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + DEEP.text.rms_norm_eps) * w[f"{name}.weight"]


def _attention(q_SD: np.ndarray, k_SD: np.ndarray, v_SD: np.ndarray, heads: int, causal: bool) -> np.ndarray:
    """softmax(q kᵀ / √K) v of each head, side by side, (S, D)."""
    mixed = []
    for q_SK, k_SK, v_SK in zip(*(np.split(x_SD, heads, -1) for x_SD in (q_SD, k_SD, v_SD)), strict=True):
        scores_SS = q_SK @ k_SK.T / q_SK.shape[-1] ** 0.5
        if causal:
            scores_SS[np.triu_indices(len(scores_SS), 1)] = -np.inf
        mixed.append(np.exp(scores_SS - logsumexp(scores_SS, -1, keepdims=True)) @ v_SK)
    return np.concatenate(mixed, -1)


def _turned(x_SD: np.ndarray, text: TextConfig) -> np.ndarray:
    """RoPE in halves: each pair (i, i + K/2) of a head turned by position · θ^(−2i/K)."""
    half = text.head_size // 2
    angles = np.arange(len(x_SD))[:, None] * text.rope_theta ** (-np.arange(half) / half)
    heads = []
    for x_SK in np.split(x_SD, text.num_heads, -1):
        turned = (x_SK[:, :half] + 1j * x_SK[:, half:]) * np.exp(1j * angles)
        heads += [turned.real, turned.imag]
    return np.concatenate(heads, -1)


def _understood(w: Weights, pixels: np.ndarray) -> np.ndarray:
    """What the Llama gets of a picture of the user, (T, D): SigLIP's features through the aligner."""
    size = DEEP.vision.patch_size
    corners = [(row, column) for row in range(0, SIDE, size) for column in range(0, SIDE, size)]
    patches = [pixels[row : row + size, column : column + size] for row, column in corners]
    kernel = w[f"{VISION}.embeddings.patch_embedding.weight"]
    x_TD = np.stack([np.tensordot(patch / 127.5 - 1, kernel, ((0, 1, 2), (2, 3, 1))) for patch in patches])
    x_TD = x_TD + w[f"{VISION}.embeddings.patch_embedding.bias"]
    x_TD = x_TD + w[f"{VISION}.embeddings.position_embedding.weight"]
    for i in range(DEEP.vision.num_layers):
        layer = f"{VISION}.encoder.layers.{i}"
        normed_TD = _layer_norm(w, f"{layer}.layer_norm1", x_TD)
        qkv = [_linear(w, f"{layer}.self_attn.{name}_proj", normed_TD) for name in "qkv"]
        mixed_TD = _attention(*qkv, DEEP.vision.num_heads, causal=False)
        x_TD = x_TD + _linear(w, f"{layer}.self_attn.projection_layer", mixed_TD)
        normed_TD = _layer_norm(w, f"{layer}.layer_norm2", x_TD)
        x_TD = x_TD + _mlp(w, f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", normed_TD)
    features_TD = _layer_norm(w, f"{VISION}.post_layernorm", x_TD)
    return _mlp(w, "model.aligner.fc1", "model.aligner.hidden_layers.0", features_TD)


def _embeddings(w: Weights, sample: Sample) -> np.ndarray:
    """(S, D): of each token, or of what stands in its place."""
    drawn = {place for start, end, kind in sample.supervised if kind == IMAGE for place in range(start, end)}
    shown = iter([row_D for pixels in sample.images for row_D in _understood(w, pixels)])
    aligner = "model.generation_aligner.fc1", "model.generation_aligner.hidden_layers.0"
    codes = iter(_mlp(w, *aligner, w["model.generation_embeddings.weight"][sample.image_tokens]))
    placeholder, table = (
        word_tokenizer().special.image_placeholder,
        "model.language_model.embed_tokens.weight",
    )
    rows = []
    for place, token in enumerate(sample.input_ids.tolist()):
        taken = next(codes if place in drawn else shown) if token == placeholder else w[table][token]
        rows.append(taken)
    assert next(shown, None) is next(codes, None) is None
    return np.stack(rows)


def _hidden(w: Weights, x_SD: np.ndarray) -> np.ndarray:
    """The Llama's last hidden states, (S, D)."""
    text = DEEP.text
    for i in range(text.num_layers):
        layer = f"{LLAMA}.layers.{i}"
        normed_SD = _rms_norm(w, f"{layer}.input_layernorm", x_SD)
        q_SD, k_SD, v_SD = (_linear(w, f"{layer}.self_attn.{name}_proj", normed_SD) for name in "qkv")
        mixed_SD = _attention(_turned(q_SD, text), _turned(k_SD, text), v_SD, text.num_heads, causal=True)
        x_SD = x_SD + _linear(w, f"{layer}.self_attn.o_proj", mixed_SD)
        normed_SD = _rms_norm(w, f"{layer}.post_attention_layernorm", x_SD)
        gate_SF = _linear(w, f"{layer}.mlp.gate_proj", normed_SD)
        inner_SF = gate_SF / (1 + np.exp(-gate_SF)) * _linear(w, f"{layer}.mlp.up_proj", normed_SD)
        x_SD = x_SD + _linear(w, f"{layer}.mlp.down_proj", inner_SF)
    return _rms_norm(w, f"{LLAMA}.norm", x_SD)


def _loss(w: Weights, samples: list[Sample]) -> float:
    """Σ −log p of every target, by the state before it: words by the text head, codes by the image head."""
    total = 0.0
    for sample in samples:
        hidden_SD, codes = _hidden(w, _embeddings(w, sample)), iter(sample.image_tokens.tolist())
        for start, end, kind in sample.supervised.tolist():
            for place in range(start, end):
                state_D, target = hidden_SD[place - 1], int(sample.input_ids[place])
                if kind == IMAGE:
                    target, head = next(codes), "model.generation_head"
                    logits_V = _mlp(w, f"{head}.proj_out", f"{head}.vision_head", state_D)
                else:
                    logits_V = _linear(w, "lm_head", state_D)
                total += logsumexp(logits_V) - logits_V[target]
    return total


def _sample(task: str, key: int, shown: int, drawn: int) -> Sample:
    row = trainable_row(task, "train", key, shown, drawn)
    spans = [[span["start"], span["end"], span["kind"]] for span in row["supervised"]]
    messages = tuple(Message(**message) for message in row["messages"])
    pixels = [row["pixels"][name] for name in messages[0].pictures]
    texts = ("sample_id", "task", "source", "split", "source_key", "sha256", "prompt", "answer")
    return Sample(
        **{name: row[name] for name in texts},
        messages=messages,
        input_ids=np.array(row["input_ids"], np.int32),
        supervised=np.array(spans, np.int32),
        image_tokens=np.array(row["image_tokens"], np.uint16),
        images=pixels,
    )


def _samples(task: str) -> list[Sample]:
    """Of one, two and three pictures; an interleaved sample may do without one of the user's."""
    shown = 0 if task == "interleaved" else 1
    return [_sample(task, 0, 2, 1), _sample(task, 1, 1, 2), _sample(task, 2, shown, 1)]


def _computed(task: str, samples: list[Sample], shape: BatchShape) -> tuple[float, Weights]:
    """Loss and gradients of a micro-batch as training computes them."""
    special, loss = word_tokenizer().special, TaskLoss(_model(), SIGNATURES[task])
    (batch,) = collate(task, RowBlock.of(samples), [len(samples)], shape, special)
    weights = list(loss.get_parameters())
    value, gradients = ms.value_and_grad(loss, None, ms.ParameterTuple(weights))(*map(Tensor, batch.inputs))
    return float(value), {p.name: g.asnumpy() for p, g in zip(weights, gradients, strict=True)}


@pytest.mark.parametrize("task", ["edit", "interleaved"])
def test_loss_and_gradients_are_those_of_the_definition(task: str) -> None:
    """In a shape with room for more samples and pictures, two samples in one attention row."""
    samples = _samples(task)
    shape = shape_of(samples, PICTURES, rows=2, spare=1)
    value, gradients = _computed(task, samples, replace(shape, understood=6, drawn=5))
    w = {p.name: p.asnumpy().astype(np.float64) for p in _model().get_parameters()}
    exact = _loss(w, samples)
    targets = sum(int(np.diff(sample.supervised[:, :2]).sum()) for sample in samples)
    # A target's loss is as exact as its logits; the losses are summed.
    assert value == pytest.approx(exact, rel=0, abs=rounding_bound(exact, WIDEST, PRODUCTS))
    assert exact > 2 * targets
    missing = {"lm_head.weight"} if task == "edit" else set()
    assert gradients.keys() == w.keys() - missing
    rng = np.random.default_rng(1)
    for name in FEW & gradients.keys():
        gradient = gradients[name]
        direction = rng.choice([-1.0, 1.0], gradient.shape) / gradient.size**0.5
        ahead, behind = ({**w, name: w[name] + sign * STEP * direction} for sign in (1, -1))
        slope = (_loss(ahead, samples) - _loss(behind, samples)) / (2 * STEP)
        # There and back twice the products; the differences' own rounding beside them.
        bound = gradient_bound(gradients, name, WIDEST, 2 * PRODUCTS) + 2.0**-52 * exact / STEP
        assert (gradient * direction).sum() == pytest.approx(slope, rel=0, abs=bound), name


@pytest.mark.parametrize("task", ["edit", "interleaved"])
def test_what_stands_in_the_places_of_absent_pictures_changes_nothing(task: str) -> None:
    """Nor does it matter how many places there are."""
    samples, special = _samples(task)[1:], word_tokenizer().special
    tight = shape_of(samples, PICTURES)
    roomy = replace(tight, understood=tight.understood + 2, drawn=tight.drawn + 1)
    (batch,) = collate(task, RowBlock.of(samples), [len(samples)], roomy, special)
    value, gradients = _computed(task, samples, roomy)
    rng, loss = np.random.default_rng(2), TaskLoss(_model(), SIGNATURES[task])
    batch.pixels_IHWC[tight.understood :] = rng.integers(0, 256, (2, SIDE, SIDE, 3))
    batch.image_tokens_IT[tight.drawn :] = rng.integers(0, CODES, (1, TOKENS))
    weights = ms.ParameterTuple(loss.get_parameters())
    other, others = ms.value_and_grad(loss, None, weights)(*map(Tensor, batch.inputs))
    assert float(other) == value
    for parameter, gradient in zip(weights, others, strict=True):
        np.testing.assert_array_equal(gradient.asnumpy(), gradients[parameter.name], err_msg=parameter.name)
    value_tight, gradients_tight = _computed(task, samples, tight)
    assert value_tight == pytest.approx(value, rel=0, abs=rounding_bound(value, WIDEST, PRODUCTS))
    for name, gradient in gradients_tight.items():
        bound = gradient_bound(gradients, name, WIDEST, 2 * PRODUCTS)
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=bound, err_msg=name)
