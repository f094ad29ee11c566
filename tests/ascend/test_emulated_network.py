"""The network that is emulated in bfloat16 is the product's: the same loss and gradients in float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from bench.ascend.emulation.__main__ import NARROW
from bench.ascend.emulation.forms import segments
from bench.ascend.emulation.network import HEAD, Batch, Network, Weights, draw
from bench.ascend.emulation.rounding import EXACT, relative_error
from janus.model import weights as sources
from janus.model.config import JanusConfig, TextConfig, VisionConfig, VQConfig
from janus.model.janus import Janus
from janus.model.layers import working_weights
from janus.model.loss import TaskLoss
from janus.prompts import Signature

SIZES, LENGTHS = NARROW
CONFIG = JanusConfig(
    TextConfig(SIZES.width, SIZES.layers, SIZES.width // HEAD, SIZES.inner, SIZES.vocabulary),
    VisionConfig(hidden_size=16, num_layers=1, num_heads=1, intermediate_size=16, image_size=32),
    VQConfig(num_embeddings=SIZES.codes),
)


def _by_name(own: Weights) -> dict[str, np.ndarray]:
    """Arrays of the emulated network by the names of a checkpoint."""
    llama = "model.language_model"
    named = {f"{llama}.embed_tokens": own["embed"], f"{llama}.norm": own["norm"], "lm_head": own["head"]}
    for i in range(SIZES.layers):
        layer, attention = f"{llama}.layers.{i}", f"{llama}.layers.{i}.self_attn"
        for part, array in zip("qkv", np.split(own[f"{i}.qkv"], 3), strict=True):
            named[f"{attention}.{part}_proj"] = array
        for part, array in zip(("gate", "up"), np.split(own[f"{i}.up"], 2), strict=True):
            named[f"{layer}.mlp.{part}_proj"] = array
        named[f"{attention}.o_proj"], named[f"{layer}.mlp.down_proj"] = own[f"{i}.o"], own[f"{i}.down"]
        named[f"{layer}.input_layernorm"] = own[f"{i}.in"]
        named[f"{layer}.post_attention_layernorm"] = own[f"{i}.post"]
    named["model.generation_embeddings"] = own["code"]
    aligner, head = "model.generation_aligner", "model.generation_head"
    places = (f"{aligner}.fc1", f"{aligner}.hidden_layers.0", f"{head}.proj_out", f"{head}.vision_head")
    mlps = ("aligner.0", "aligner.1", "image.0", "image.1")
    named |= {place: own[name] for place, name in zip(places, mlps, strict=True)}
    found = {f"{name}.weight": array for name, array in named.items()}
    return found | {f"{place}.bias": own[f"{name}b"] for place, name in zip(places, mlps, strict=True)}


def _inputs(batch: Batch) -> list[Tensor]:
    """The arrays that a `TaskLoss` with drawn pictures and text takes."""
    positions_P = np.concatenate([np.arange(own.stop - own.start) for own in segments(batch.ends)])
    index_P = np.zeros(len(batch.ids_P))
    index_P[batch.picture] = np.arange(len(batch.codes_M)) + 1
    arrays = [batch.text_labels_N, batch.text_rows_N, batch.image_labels_N, batch.image_rows_N]
    arrays += [batch.ids_P, positions_P, batch.ends, index_P, batch.codes_M[None]]
    return [Tensor(x.astype(np.int64 if x is batch.ends else np.int32)) for x in arrays]


def test_the_emulated_network_is_the_products(on_cann: None) -> None:
    masters, batch = draw(SIZES, LENGTHS)
    network = Network(EXACT, SIZES, masters)
    expected = network.forward(batch)
    network.backward()
    values, random = _by_name(masters), sources.random_source(0)
    model = Janus(sources.Weights(lambda name, *of: values.get(name, random(name, *of))), CONFIG)
    for weight in working_weights(model):
        weight.set_dtype(ms.float64)
    loss = TaskLoss(model, Signature(understood=False, drawn=True, text=True))
    trained = ms.ParameterTuple(loss.get_parameters())
    value, gradients = ms.value_and_grad(loss, None, trained)(*_inputs(batch))
    assert float(value) / network.targets == pytest.approx(expected, rel=1e-6)
    found = sources.parted({w.name: g.asnumpy() for w, g in zip(trained, gradients, strict=True)})
    exact = _by_name(network.gradients)
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert relative_error(found[name] / network.targets, gradient) < 1e-5, name
