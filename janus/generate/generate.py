"""Answers and pictures from a network: prompts in, one token at a time out.

    generator = Generator(model, special)
    for ids in generator.answers(prompts): ...
    for codes in generator.pictures(prompt_ids, numbers=range(4)): ...

Everything runs in batches of one static shape; the last one is filled up. The graphs read the network's
parameters, so a network that is trained on gives its newest answers.

Shapes: B rows, S positions of a padded prompt, P = B·S, T tokens of an image, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from janus.common.graph_cache import Graphs, network_graphs
from janus.generate.sampling import choose, guide, uniforms
from janus.prompts import unconditional
from janus.tokens import SpecialTokens

if TYPE_CHECKING:
    from janus.model.janus import Janus

GUIDANCE, TEMPERATURE, MAX_TOKENS = 5.0, 1.0, 256
"""What Janus-Pro draws pictures with; how long an answer may be."""

ROUND_TO = 32
"""Padded prompts and caches are a multiple of this long: few graphs serve all lengths."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prompt:
    """input_ids: int32, up to where the answer begins. pixels: uint8 (H, W, 3) where it asks about one."""

    input_ids: np.ndarray
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0: the likeliest one. guidance: of pictures."""

    temperature: float = TEMPERATURE
    guidance: float = GUIDANCE
    seed: int = 0


GREEDY = Sampling(temperature=0.0)


class Generator:
    """A network that answers and draws; `batch` answers, or pictures, at a time."""

    def __init__(self, model: Janus, special: SpecialTokens, batch: int = 4, mode: str = "graph") -> None:
        """mode: "graph", or "pynative" for op by op."""
        self._model, self._special, self._batch = model, special, batch
        self._graphs = network_graphs(model.config) if mode == "graph" else None
        self._decoders: dict[tuple[str, int, int], _Decoder] = {}

    def answers(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int = MAX_TOKENS,
        sampling: Sampling = GREEDY,
        on_token: Callable[[], None] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """The ids of each answer, int32, in order; EOS comes last unless `max_tokens` came first.

        The prompts have an image all, or none of them. on_token: called after every step of a batch.
        """
        task = "vqa" if prompts[0].pixels is not None else "text"
        decoder = self._decoder(task, self._batch, max(len(p.input_ids) for p in prompts), max_tokens)
        numbers = iter(range(len(prompts)))
        for some in batches(prompts, self._batch):
            yield from self._answers(
                decoder, some, list(islice(numbers, len(some))), max_tokens, sampling, on_token
            )

    def pictures(
        self,
        prompts: Sequence[np.ndarray],
        numbers: Sequence[int],
        sampling: Sampling = Sampling(),
        on_token: Callable[[], None] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """The image tokens, int32 (T,), of each prompt's picture, in order.

        prompts: input ids up to <begin_of_image>. numbers: of each picture, for its draws.
        """
        tokens = self._model.config.num_image_tokens
        decoder = self._decoder("t2i", 2 * self._batch, max(map(len, prompts)), tokens)
        for some in batches(list(zip(prompts, numbers, strict=True)), self._batch):
            filled = some + some[-1:] * (self._batch - len(some))
            codes_BT = self._draw(
                decoder, [ids for ids, _ in filled], [n for _, n in filled], sampling, on_token
            )
            yield from codes_BT[: len(some)]

    def _answers(
        self,
        decoder: _Decoder,
        prompts: list[Prompt],
        numbers: list[int],
        max_tokens: int,
        sampling: Sampling,
        on_token: Callable[[], None],
    ) -> list[np.ndarray]:
        """One batch, until each row has ended."""
        filled = prompts + prompts[-1:] * (self._batch - len(prompts))
        numbers = numbers + numbers[-1:] * (self._batch - len(prompts))
        answers_BT = np.full((self._batch, max_tokens), self._special.eos, np.int32)
        ended_B = np.zeros(self._batch, bool)
        logits_BV = decoder.prefill(filled)
        for step in range(max_tokens):
            tokens_B = choose(logits_BV, sampling.temperature, uniforms(sampling.seed, numbers, step))
            answers_BT[:, step] = np.where(ended_B, self._special.eos, tokens_B)
            ended_B |= tokens_B == self._special.eos
            on_token()
            if ended_B.all() or step + 1 == max_tokens:
                break
            logits_BV = decoder.step(answers_BT[:, step])
        return [self._cut(answer_T[: step + 1]) for answer_T in answers_BT[: len(prompts)]]

    def _cut(self, answer_T: np.ndarray) -> np.ndarray:
        ends = np.flatnonzero(answer_T == self._special.eos)
        return answer_T[: ends[0] + 1] if len(ends) else answer_T

    def _draw(
        self,
        decoder: _Decoder,
        prompts: list[np.ndarray],
        numbers: list[int],
        sampling: Sampling,
        on_token: Callable[[], None],
    ) -> np.ndarray:
        """One batch of pictures, (B, T); the unconditional rows stand behind the conditional ones."""
        nulled = [unconditional(ids, self._special) for ids in prompts]
        codes_BT: np.ndarray = np.zeros((self._batch, self._model.config.num_image_tokens), np.int32)
        logits = decoder.prefill([Prompt(ids) for ids in (*prompts, *nulled)])
        for step in range(codes_BT.shape[1]):
            if step:
                logits = decoder.step(np.tile(codes_BT[:, step - 1], 2))
            guided_BV = guide(logits[: self._batch], logits[self._batch :], sampling.guidance)
            drawn_B = uniforms(sampling.seed, numbers, step)
            codes_BT[:, step] = choose(guided_BV, sampling.temperature, drawn_B)
            on_token()
        return codes_BT

    def _decoder(self, task: str, rows: int, longest: int, new_tokens: int) -> _Decoder:
        """The compiled network for prompts of `longest` tokens; kept for the next time."""
        length = round_up(longest)
        key = (task, length, round_up(length + new_tokens))
        if key not in self._decoders:
            self._decoders[key] = _Decoder(
                self._model, self._special, task, rows, length, key[2], self._graphs
            )
        return self._decoders[key]


class _Decoder:
    """`CachedDecoder` compiled, between arrays, and the position that each row stands at."""

    def __init__(
        self,
        model: Janus,
        special: SpecialTokens,
        task: str,
        rows: int,
        length: int,
        slots: int,
        graphs: Graphs | None,
    ) -> None:
        self._model, self._special, self._task = model, special, task
        self._rows, self._length, self._slots, self._graphs = rows, length, slots, graphs
        self._positions_B: np.ndarray = np.zeros(rows, np.int32)

    @cached_property
    def _calls(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Prefill and step, between tensors."""
        from janus.generate.decode import CachedDecoder, Prefill, Step

        decoder = CachedDecoder(self._model, self._task, self._rows, self._slots)
        prefill, step = Prefill(decoder), Step(decoder)
        if self._graphs is None:
            return prefill, step
        name = f"{self._task}, {self._rows} rows of {self._slots} slots"
        return self._graphs.compile(prefill, f"prefill {name}"), self._graphs.compile(step, f"step {name}")

    def prefill(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Logits (B, V) of each prompt's first new token."""
        from mindspore import Tensor

        ids_BS: np.ndarray = np.full((self._rows, self._length), self._special.pad, np.int32)
        for row, prompt in enumerate(prompts):
            ids_BS[row, : len(prompt.input_ids)] = prompt.input_ids
            self._positions_B[row] = len(prompt.input_ids)
        states_B = np.arange(self._rows) * self._length + self._positions_B - 1
        arrays = [ids_BS.reshape(-1), states_B.astype(np.int32)]
        if self._task == "vqa":
            shown_BS = ids_BS == self._special.image_placeholder
            arrays.append((np.cumsum(shown_BS) * shown_BS.reshape(-1)).astype(np.int32))
            arrays.append(np.stack([prompt.pixels for prompt in prompts if prompt.pixels is not None]))
        return self._calls[0](*map(Tensor, arrays)).asnumpy()

    def step(self, tokens_B: np.ndarray) -> np.ndarray:
        """Logits (B, V) of what follows `tokens_B`."""
        from mindspore import Tensor

        logits_BV = self._calls[1](
            Tensor(tokens_B.astype(np.int32)), Tensor(self._positions_B.copy())
        ).asnumpy()
        self._positions_B += 1
        return logits_BV


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """The items, `size` at a time; the last batch may be shorter."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def round_up(number: int) -> int:
    """To the next multiple of ROUND_TO."""
    return -(-number // ROUND_TO) * ROUND_TO
