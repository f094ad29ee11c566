"""The network one token at a time: a key-value cache of static shape, a graph that fills it, one that steps.

A row's slot is its position: the prompt fills slots 0 … L − 1, token t of the answer goes to slot L + t. A
token at position p sees slots 0 … p and nothing after them, so rows of different length share a batch: what a
shorter prompt's padding wrote is overwritten before it can be seen. Keys and values are written into the
cache by index; nothing is copied.

Weights and layers are those of `janus/model/llama.py`; only where attention reads its keys is decided here.

Shapes: B rows, S positions of a padded prompt, P = B·S flat tokens, R = B·H·S (one slot a head), C slots of
the cache, D width, H heads, K head width, V classes, I images of H×W pixels.
"""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from janus import device
from janus.model.janus import Janus, PlaceImages
from janus.model.kernels import body
from janus.model.kernels.plain import MASKED, join_heads, split_heads
from janus.prompts import image_index
from janus.tokens import SpecialTokens


class CachedLlama(nn.Cell):
    """The Llama, with keys and values of `rows` samples of at most `slots` tokens, and the head in use."""

    def __init__(self, model: Janus, draws: bool, rows: int, slots: int) -> None:
        super().__init__(auto_prefix=False)
        config = model.config.text
        self.llama, self.rows, self.slots, self.heads = model.language_model, rows, slots, config.num_heads
        self.attention = body().Attention(config.head_size, masked=True)
        self.head = model.generation_head if draws else model.lm_head
        shape = (rows * config.num_heads * slots, config.head_size)
        self.keys, self.values = (
            ParameterTuple([_zeros(f"{kind}.{i}", shape, model.dtype) for i in range(config.num_layers)])
            for kind in ("key_cache", "value_cache")
        )
        self.first_slot_BH = Tensor(np.arange(rows * config.num_heads, dtype=np.int32) * slots)

    def construct(
        self, x_PD: Tensor, position_ids_P: Tensor, slots_R: Tensor, mask: Tensor, prompt: bool
    ) -> Tensor:
        """States (P, D) before the final norm; keys and values go to `slots_R` of the cache.

        prompt: the tokens see each other; else each sees its row of the cache, itself included.
        """
        angles = self.llama.angles(position_ids_P, x_PD.dtype)
        for i in range(len(self.keys)):
            layer = self.llama.layers[i]
            qkv = layer.self_attn.qkv(layer.input_layernorm(x_PD), angles)
            q_BHSK, k_BHSK, v_BHSK = [split_heads(part_PD, self.rows, self.heads) for part_PD in qkv]
            keys = ops.scatter_update(self.keys[i], slots_R, k_BHSK.reshape(-1, k_BHSK.shape[-1]))
            values = ops.scatter_update(self.values[i], slots_R, v_BHSK.reshape(-1, v_BHSK.shape[-1]))
            if prompt:  # a write whose result nobody reads is left out of the graph
                k_BHSK, v_BHSK = ops.depend(k_BHSK, keys), ops.depend(v_BHSK, values)
            else:
                grid_BHCK = (self.rows, self.heads, self.slots, -1)
                k_BHSK, v_BHSK = keys.reshape(grid_BHCK), values.reshape(grid_BHCK)
            mixed_BHSK = self.attention(q_BHSK, k_BHSK, v_BHSK, mask)
            x_PD = layer.finish(x_PD, layer.self_attn.o_proj(join_heads(mixed_BHSK)))
        return x_PD

    def logits(self, states_BD: Tensor) -> Tensor:
        """(B, V), float32."""
        return self.head(self.llama.norm(states_BD)).astype("float32")


def _zeros(name: str, shape: tuple[int, ...], dtype: Any) -> Parameter:
    return Parameter(device.zeros(shape, dtype), name=name, requires_grad=False)


class Prefill(nn.Cell):
    """Fills the cache with prompts. shows: whether they have pictures."""

    def __init__(self, model: Janus, shows: bool, cached: CachedLlama) -> None:
        super().__init__(auto_prefix=False)
        self.shows, self.cached, self.llama = shows, cached, model.language_model
        self.place_images = PlaceImages()
        if shows:
            self.vision_model, self.aligner = model.vision_model, model.aligner

    def construct(self, input_ids_P: Tensor, state_rows_B: Tensor, *images: Tensor) -> Tensor:
        """Logits (B, V), float32, of the states at `state_rows_B`.

        images: for vqa `image_index_P` (as `janus.prompts.image_index`) and `pixels_IHWC`.
        """
        rows = self.cached.rows
        length = input_ids_P.shape[0] // rows
        embeds_PD = self.llama.embed(input_ids_P)
        if self.shows:
            embeds_PD = self.place_images(embeds_PD, self.aligner(self.vision_model(images[1])), images[0])
        positions_S = ops.arange(0, length, 1, dtype=ms.int32)
        slots_R = (self.cached.first_slot_BH.reshape(-1, 1) + positions_S.reshape(1, -1)).reshape(-1)
        hidden_SS = (positions_S.reshape(-1, 1) < positions_S.reshape(1, -1)).astype("float32") * MASKED
        mask_BHSS = ops.tile(hidden_SS.reshape(1, 1, length, length), (rows, self.cached.heads, 1, 1))
        hidden_PD = self.cached(embeds_PD, ops.tile(positions_S, (rows,)), slots_R, mask_BHSS, True)
        return self.cached.logits(ops.gather(hidden_PD, state_rows_B, 0))


class Step(nn.Cell):
    """Takes in one token of each row."""

    def __init__(self, model: Janus, draws: bool, cached: CachedLlama) -> None:
        super().__init__(auto_prefix=False)
        self.cached, self.draws = cached, draws
        self.embed_codes, self.llama = model.embed_codes, model.language_model
        self.slot_numbers_1C = Tensor(np.arange(cached.slots, dtype=np.int32)[None])

    def construct(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """Logits (B, V), float32, of what follows the tokens, which stand at `positions_B`."""
        rows, heads, slots = self.cached.rows, self.cached.heads, self.cached.slots
        positions_B1 = positions_B.reshape(-1, 1)
        slots_R = self.cached.first_slot_BH + ops.tile(positions_B1, (1, heads)).reshape(-1)
        hidden_BC = (self.slot_numbers_1C > positions_B1).astype("float32") * MASKED
        mask_BH1C = ops.tile(hidden_BC.reshape(rows, 1, 1, slots), (1, heads, 1, 1))
        x_BD = self.embed_codes(tokens_B) if self.draws else self.llama.embed(tokens_B)
        return self.cached.logits(self.cached(x_BD, positions_B, slots_R, mask_BH1C, False))


class Decoder:
    """`Prefill` and `Step`, compiled, between arrays; keeps the position of each row."""

    def __init__(
        self,
        model: Janus,
        special: SpecialTokens,
        draws: bool,
        rows: int,
        length: int,
        slots: int,
        images: int,
        jit: Any,
    ) -> None:
        """length: of padded prompts. slots: of a cache row. images: in all rows. jit: as `Graphs.compile`."""
        self._special, self._length = special, length
        cached = CachedLlama(model, draws, rows, slots)
        name = f"{'pictures' if draws else 'text'}, {rows} rows of {slots} slots, {images} images"
        self._prefill = jit(Prefill(model, images > 0, cached), f"Prefill {name}")
        self._step = jit(Step(model, draws, cached), f"Step {name}")
        side = model.config.vision.image_size
        self._images_IHWC = np.zeros((images, side, side, 3), np.uint8)
        self._positions_B: np.ndarray = np.zeros(rows, np.int32)

    def prefill(self, ids: Sequence[np.ndarray], images: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Logits (B, V) of each prompt's first new token. images: uint8 (H, W, 3), of all prompts."""
        ids_BS = np.full((len(ids), self._length), self._special.pad, np.int32)
        for row_S, prompt_ids in zip(ids_BS, ids, strict=True):
            row_S[: len(prompt_ids)] = prompt_ids
        self._positions_B[:] = list(map(len, ids))
        states_B = np.arange(0, ids_BS.size, self._length) + self._positions_B - 1
        arrays = [ids_BS.reshape(-1), states_B.astype(np.int32)]
        if len(self._images_IHWC):
            images_IHWC = self._images_IHWC.copy()
            images_IHWC[: len(images)] = images
            arrays += [image_index(arrays[0] == self._special.image_placeholder), images_IHWC]
        return self._prefill(*map(Tensor, arrays)).asnumpy()

    def step(self, tokens_B: np.ndarray) -> np.ndarray:
        """Logits (B, V) of what follows `tokens_B`."""
        # Copies: MindSpore may still read the arrays when the caller changes them.
        logits_BV = self._step(Tensor(tokens_B.copy()), Tensor(self._positions_B.copy())).asnumpy()
        self._positions_B += 1
        return logits_BV
