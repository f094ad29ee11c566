"""Janus-Pro: one Llama, three ways in, two ways out. The VQ tokenizer stands apart in `janus/model/vq.py`.

Shapes: P flat tokens, I images, T tokens of an image, M = I·T, D width, V vocabulary,
N supervised positions.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from janus.model.config import JanusConfig
from janus.model.kernels import body
from janus.model.layers import Embedding, Linear, Mlp, working_weights
from janus.model.llama import Llama
from janus.model.siglip import Siglip
from janus.model.weights import Source, Weights

PARTS = {
    "siglip": "model.vision_model.",
    "aligner": "model.aligner.",
    "llama": "model.language_model.",
    "lm_head": "lm_head.",
    "gen_embed": "model.generation_embeddings.",
    "gen_aligner": "model.generation_aligner.",
    "gen_head": "model.generation_head.",
    "vq": "model.vqmodel.",
}
"""Parts of the network, as stages name them, and the prefix of their parameters."""


def part_of(name: str) -> str:
    """The part that a parameter belongs to."""
    return next(part for part, prefix in PARTS.items() if name.startswith(prefix))


def _aligner(weights: Weights, inputs: int, width: int) -> Mlp:
    """Two layers that bring features to the Llama's width."""
    return Mlp(weights / "fc1", weights / "hidden_layers" / 0, inputs, width, width)


class CodeEmbedding(nn.Cell):
    """VQ codes of pictures to draw, in any shape, brought to the Llama's width, (M, D)."""

    def __init__(self, weights: Weights, config: JanusConfig) -> None:
        super().__init__(auto_prefix=False)
        codes, code_width = config.vq.num_embeddings, config.vq.embed_dim
        self.table = Embedding(weights / "generation_embeddings", codes, code_width, repeats=True)
        self.aligner = _aligner(weights / "generation_aligner", code_width, config.text.hidden_size)

    def construct(self, codes: Tensor) -> Tensor:
        return self.aligner(self.table(codes.reshape(-1)).astype(self.aligner.first.weight.dtype))


class Janus(nn.Cell):
    """The network that is trained: everything but the VQ tokenizer."""

    def __init__(self, weights: Weights, config: JanusConfig) -> None:
        super().__init__(auto_prefix=False)
        self.config = config
        width = config.text.hidden_size
        model = weights / "model"
        self.vision_model = Siglip(model / "vision_model", config.vision)
        self.aligner = _aligner(model / "aligner", config.vision.hidden_size, width)
        self.language_model = Llama(model / "language_model", config.text)
        self.lm_head = Linear(weights / "lm_head", width, config.text.vocab_size, bias=False)
        self.embed_codes = CodeEmbedding(model, config)
        head = model / "generation_head"
        codes = config.vq.num_embeddings
        self.generation_head = Mlp(head / "proj_out", head / "vision_head", width, width, codes)

    @property
    def dtype(self) -> Any:
        """MindSpore's type of the `working_weights`, and so of the activations."""
        return self.lm_head.weight.dtype


class PlaceImages(nn.Cell):
    """Embeddings (P, D): images where `image_index_P` counts them from 1, text where it is 0."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.take = body().TakeRows()

    def construct(self, text_PD: Tensor, images_MD: Tensor, image_index_P: Tensor) -> Tensor:
        tokens = text_PD.shape[0]
        order_P = ops.arange(0, tokens, 1, dtype=ms.int32)
        source_P = ops.where(image_index_P > 0, image_index_P + (tokens - 1), order_P)
        return self.take(ops.concat((text_PD, images_MD), 0), source_P)


def visit_parameters(config: JanusConfig, source: Source) -> Janus:
    """Ask `source` for every parameter of the whole network, VQ included; gives what is trained of it."""
    from janus.model.vq import VQ

    weights = Weights(source)
    model = Janus(weights, config)
    VQ(weights / "model" / "vqmodel", config.vq, config.vision.image_size, images=1)
    return model


def parameter_shapes(config: JanusConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the whole network, VQ included, without allocating them."""
    return _noted(config)[0]


def working_names(config: JanusConfig) -> frozenset[str]:
    """Names of the parameters that are `working_weights`."""
    return frozenset(parameter.name for parameter in working_weights(_noted(config)[1]))


def _noted(config: JanusConfig) -> tuple[dict[str, tuple[int, ...]], Janus]:
    """Shapes by name, and a network whose parameters have one element."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        shapes[name] = shape
        return np.zeros(1, np.float32)

    model = visit_parameters(config, note)
    return shapes, model
