"""Answers and pictures from a network: prompts in, one token at a time out.

    generator = Generator(model, special)
    for ids in generator.answers(prompts, max_tokens=256): ...
    for codes in generator.pictures(prompt_ids, numbers=range(4)): ...

Everything runs in batches of one static shape; the last one is filled up. The graphs read the network's
parameters, so a network that is being trained answers with its newest weights.

Logits come to the host, which chooses the next token. A draw depends on the seed, on the number of what is
generated (picture 0, 1, 2, …) and on the step, and on nothing else: a picture does not change with the
pictures that share its batch.

Shapes: B rows, S positions of a padded prompt, T tokens of an image or an answer, V classes, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from janus.common.graph_cache import network_graphs
from janus.prompts import unconditional
from janus.tokens import SpecialTokens

if TYPE_CHECKING:
    from janus.generate.decode import Decoder
    from janus.model.janus import Janus

ROUND_TO = 32
"""Padded prompts and caches are a multiple of this long: few graphs serve all lengths."""


@dataclass(frozen=True)
class Prompt:
    """input_ids: int32, up to where the answer begins. images: uint8 (H, W, 3), the pictures it shows."""

    input_ids: np.ndarray
    images: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are those of Janus-Pro's pictures.

    temperature 0: the likeliest token. guidance: of pictures alone.
    """

    temperature: float = 1.0
    guidance: float = 5.0
    seed: int = 0

    def choose(self, logits_BV: np.ndarray, numbers: Sequence[int], step: int) -> np.ndarray:
        """The next token of each row, int32 (B,). numbers: of what the rows generate."""
        return choose(logits_BV, self.temperature, uniforms(self.seed, numbers, step))


GREEDY = Sampling(temperature=0.0)


def guide(conditional_BV: np.ndarray, unconditional_BV: np.ndarray, guidance: float) -> np.ndarray:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): u + guidance · (c − u), (B, V)."""
    return unconditional_BV + guidance * (conditional_BV - unconditional_BV)


def uniforms(seed: int, numbers: Sequence[int], step: int) -> np.ndarray:
    """One number in [0, 1) for each of `numbers` at this step, float64 (B,)."""
    words = [np.random.Philox(key=seed, counter=[0, 0, number, step]).random_raw() for number in numbers]
    return (np.array(words, np.uint64) >> np.uint64(11)) * 2.0**-53


def choose(logits_BV: np.ndarray, temperature: float, uniforms_B: np.ndarray) -> np.ndarray:
    """The class each row draws, int32 (B,): the likeliest where temperature is 0, else by inverse CDF."""
    if temperature == 0:
        return logits_BV.argmax(-1).astype(np.int32)
    scaled_BV = logits_BV.astype(np.float64) / temperature
    rising_BV = np.cumsum(np.exp(scaled_BV - scaled_BV.max(-1, keepdims=True)), -1)
    pairs = zip(rising_BV, uniforms_B, strict=True)
    return np.array([np.searchsorted(row_V, u * row_V[-1], side="right") for row_V, u in pairs], np.int32)


class Generator:
    """A network that answers and draws; `batch` answers, or pictures, at a time.

    on_token: called after every step of a batch.
    """

    def __init__(self, model: Janus, special: SpecialTokens, batch: int = 4, mode: str = "graph") -> None:
        """mode: "graph", or "pynative" for op by op."""
        self._model, self._special, self._batch = model, special, batch
        self._compile = network_graphs(model.config).compile if mode == "graph" else (lambda cell, name: cell)
        self._decoders: dict[tuple[bool, int, int, int], Decoder] = {}

    def answers(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        sampling: Sampling = GREEDY,
        on_token: Callable[[], object] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """The ids of each answer, int32, in order; EOS comes last unless `max_tokens` came first."""
        eos, decoder = self._special.eos, self._decoder(False, prompts, max_tokens)
        for batch, numbers, used in self._batches(prompts, range(len(prompts))):
            answers_BT = np.full((self._batch, max_tokens), eos, np.int32)
            ended_B = np.zeros(self._batch, bool)
            images = [image for prompt in batch for image in prompt.images]
            logits_BV = decoder.prefill([prompt.input_ids for prompt in batch], images)
            for step in range(max_tokens):
                answers_BT[:, step] = np.where(ended_B, eos, sampling.choose(logits_BV, numbers, step))
                ended_B |= answers_BT[:, step] == eos
                on_token()
                if ended_B.all() or step + 1 == max_tokens:
                    break
                logits_BV = decoder.step(answers_BT[:, step])
            for answer_T in answers_BT[:used]:
                yield answer_T[: (np.append(answer_T, eos) == eos).argmax() + 1]

    def pictures(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        sampling: Sampling = Sampling(),
        on_token: Callable[[], object] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """The image tokens, int32 (T,), of each prompt's picture, in order.

        prompts: up to <begin_of_image>. numbers: of each picture, for its draws.
        """
        tokens, rows = self._model.config.num_image_tokens, self._batch
        decoder = self._decoder(True, prompts, tokens)
        for batch, drawn, used in self._batches(prompts, numbers):
            ids = [prompt.input_ids for prompt in batch]
            nulled = [unconditional(own, self._special) for own in ids]
            images = [image for prompt in batch for image in prompt.images]
            codes_BT: np.ndarray = np.zeros((rows, tokens), np.int32)
            logits = decoder.prefill([*ids, *nulled], images * 2)
            for step in range(tokens):
                if step:
                    logits = decoder.step(np.tile(codes_BT[:, step - 1], 2))
                guided_BV = guide(logits[:rows], logits[rows:], sampling.guidance)
                codes_BT[:, step] = sampling.choose(guided_BV, drawn, step)
                on_token()
            yield from codes_BT[:used]

    def _batches(
        self, prompts: Sequence[Any], numbers: Sequence[int]
    ) -> Iterator[tuple[list[Any], list[int], int]]:
        """(prompts, numbers, how many of them are used): the last batch is filled with its last prompt."""
        for start in range(0, len(prompts), self._batch):
            at = [min(i, len(prompts) - 1) for i in range(start, start + self._batch)]
            yield [prompts[i] for i in at], [numbers[i] for i in at], len(set(at))

    def _decoder(self, draws: bool, prompts: Sequence[Prompt], new_tokens: int) -> Decoder:
        """The compiled network for prompts up to this long, kept; a picture takes two rows."""
        from janus.generate.decode import Decoder

        length = _round_up(max(len(prompt.input_ids) for prompt in prompts))
        slots, rows = _round_up(length + new_tokens), self._batch * (2 if draws else 1)
        key = draws, length, slots, rows * max(len(prompt.images) for prompt in prompts)
        if key not in self._decoders:
            model, special = self._model, self._special
            self._decoders[key] = Decoder(model, special, draws, rows, *key[1:], self._compile)
        return self._decoders[key]


def _round_up(number: int) -> int:
    return -(-number // ROUND_TO) * ROUND_TO
