"""The network one token at a time: a key-value cache of static shape, a graph that fills it, one that steps.

A row's slot is its position: the prompt fills slots 0 … L − 1, token t of the answer goes to slot L + t. So a
token at position p sees slots 0 … p, whatever stands behind them, and rows of different length share a batch:
what a shorter prompt's padding wrote is overwritten before it can be seen. Keys and values are written into
the cache by index; nothing is copied.

Layers and weights are those of `janus/model/llama.py`; only what a layer's attention looks at is said here.

Shapes: B rows, S positions of a padded prompt, P = B·S flat tokens, C slots of the cache, D width, H heads,
K head width, V classes, I images of H×W pixels.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from janus.model.janus import Janus, place_images
from janus.model.layers import join_heads, split_heads
from janus.model.llama import MASKED, Layer

Angles = tuple[Tensor, Tensor, Tensor, Tensor]
"""cos and sin of each token's angles, for every head; and both scaled by 1/√K, for the query."""


class CachedDecoder(nn.Cell):
    """Next-token logits of `rows` prompts and their answers, at most `slots` tokens each.

    task: "text" and "vqa" read and write text, "t2i" reads text and writes image tokens.
    """

    def __init__(self, model: Janus, task: str, rows: int, slots: int) -> None:
        super().__init__(auto_prefix=False)
        config = model.config.text
        self.task, self.rows, self.slots, self.heads = task, rows, slots, config.num_heads
        self.llama = model.language_model
        self.head = model.generation_head if task == "t2i" else model.lm_head
        if task == "vqa":
            self.vision_model, self.aligner = model.vision_model, model.aligner
        if task == "t2i":
            self.gen_embed, self.gen_aligner = model.generation_embeddings, model.generation_aligner
        shape = (rows * config.num_heads * slots, config.head_size)
        self.keys = ParameterTuple([_zeros(f"key_cache.{i}", shape) for i in range(config.num_layers)])
        self.values = ParameterTuple([_zeros(f"value_cache.{i}", shape) for i in range(config.num_layers)])
        self.first_slot_BH = Tensor(np.arange(rows * config.num_heads, dtype=np.int32) * slots)
        self.slot_numbers_1C = Tensor(np.arange(slots, dtype=np.int32)[None])

    def prefill(self, input_ids_P: Tensor, state_rows_B: Tensor, *images: Tensor) -> Tensor:
        """Fill the cache with the prompts; logits (B, V), float32, of the states at `state_rows_B`.

        images: for vqa `image_index_P` (0 = text; else 1 + index into the flattened image embeddings) and
        `pixels_IHWC`.
        """
        length = input_ids_P.shape[0] // self.rows
        embeds_PD = self.llama.embed_tokens(input_ids_P)
        if self.task == "vqa":
            embeds_PD = place_images(embeds_PD, self.aligner(self.vision_model(images[1])), images[0])
        positions_S = ops.arange(length).astype("int32")
        angles = self._angles(ops.tile(positions_S, (self.rows,)))
        slots_R = (self.first_slot_BH.reshape(-1, 1) + positions_S.reshape(1, -1)).reshape(-1)
        mask_BHSS = self.llama.mask(ops.ones((self.rows, length), embeds_PD.dtype))
        hidden_PD = self._layers(embeds_PD, angles, slots_R, mask_BHSS, True)
        return self._logits(ops.gather(hidden_PD, state_rows_B, 0))

    def step(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """Take in the token of each row that stands at `positions_B`; logits (B, V), float32, of the next."""
        if self.task == "t2i":
            embeds_BD = self.gen_aligner(self.gen_embed(tokens_B))
        else:
            embeds_BD = self.llama.embed_tokens(tokens_B)
        positions_B1 = positions_B.reshape(-1, 1)
        slots_R = self.first_slot_BH + ops.tile(positions_B1, (1, self.heads)).reshape(-1)
        hidden_BC = (self.slot_numbers_1C > positions_B1).astype("float32") * MASKED
        mask_BH1C = ops.tile(hidden_BC.reshape(self.rows, 1, 1, self.slots), (1, self.heads, 1, 1))
        return self._logits(self._layers(embeds_BD, self._angles(positions_B), slots_R, mask_BH1C, False))

    def _angles(self, position_ids_P: Tensor) -> Angles:
        cos_PD, sin_PD = self.llama.rotary(position_ids_P)
        return cos_PD, sin_PD, cos_PD * self.llama.scale, sin_PD * self.llama.scale

    def _layers(
        self, hidden_PD: Tensor, angles: Angles, slots_R: Tensor, mask: Tensor, prompt: bool
    ) -> Tensor:
        for i in range(len(self.keys)):
            hidden_PD = self._layer(i, hidden_PD, angles, slots_R, mask, prompt)
        return hidden_PD

    def _layer(
        self, i: int, x_PD: Tensor, angles: Angles, slots_R: Tensor, mask: Tensor, prompt: bool
    ) -> Tensor:
        """Layer i. A prompt's tokens see each other; a single token sees the cache, itself included."""
        layer: Layer = self.llama.layers[i]
        attention, normed_PD = layer.self_attn, layer.input_layernorm(x_PD)
        cos_PD, sin_PD, query_cos_PD, query_sin_PD = angles
        q_PD = attention.rotate(attention.q_proj(normed_PD), query_cos_PD, query_sin_PD)
        k_PD = attention.rotate(attention.k_proj(normed_PD), cos_PD, sin_PD)
        k_BHSK = split_heads(k_PD, self.rows, self.heads)
        v_BHSK = split_heads(attention.v_proj(normed_PD), self.rows, self.heads)
        keys = ops.scatter_update(self.keys[i], slots_R, k_BHSK.reshape(-1, k_BHSK.shape[-1]))
        values = ops.scatter_update(self.values[i], slots_R, v_BHSK.reshape(-1, v_BHSK.shape[-1]))
        if prompt:  # a write whose result nobody reads is left out of the graph
            k_BHSK, v_BHSK = ops.depend(k_BHSK, keys), ops.depend(v_BHSK, values)
        else:
            grid_BHCK = (self.rows, self.heads, self.slots, -1)
            k_BHSK, v_BHSK = keys.reshape(grid_BHCK), values.reshape(grid_BHCK)
        mixed = attention.core(split_heads(q_PD, self.rows, self.heads), k_BHSK, v_BHSK, mask)[0]
        x_PD = x_PD + attention.o_proj(join_heads(mixed))
        return x_PD + layer.mlp(layer.post_attention_layernorm(x_PD))

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        return self.head(self.llama.norm(hidden_BD)).astype("float32")


def _zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)


class Prefill(nn.Cell):
    """`CachedDecoder.prefill` as a Cell of its own: a kept graph is always a Cell's `construct`."""

    def __init__(self, decoder: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.decoder = decoder

    def construct(self, input_ids_P: Tensor, state_rows_B: Tensor, *images: Tensor) -> Tensor:
        """See `CachedDecoder.prefill`."""
        return self.decoder.prefill(input_ids_P, state_rows_B, *images)


class Step(nn.Cell):
    """`CachedDecoder.step` as a Cell of its own."""

    def __init__(self, decoder: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.decoder = decoder

    def construct(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """See `CachedDecoder.step`."""
        return self.decoder.step(tokens_B, positions_B)
