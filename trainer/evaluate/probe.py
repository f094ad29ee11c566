"""The small part of an evaluation that `--eval-every` runs while training.

Exact match of greedy answers to a few held-out questions. It costs about two validations of so many vqa
samples, and the memory of a key-value cache of `ROWS` rows; the two graphs are compiled once. The token
accuracy of held-out pictures comes with the validation loss and costs nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.generate.generate import Generator
from trainer.evaluate.metrics import answer_metrics
from trainer.evaluate.run import answer_samples
from trainer.run.open import Run

if TYPE_CHECKING:
    from janus.model.janus import Janus

QUESTIONS, ROWS, MAX_TOKENS = 8, 4, 16
"""Questions that are asked, how many at a time, and how many tokens an answer may take."""


class Probe:
    """A few held-out questions, asked again and again while the network learns."""

    def __init__(self, run: Run, model: Janus) -> None:
        self._tokenizer = run.tokenizer
        held_out = run.feed.validation.get("vqa")
        self._samples = [held_out.read(i) for i in range(min(QUESTIONS, len(held_out)))] if held_out else []
        self._generator = Generator(model, run.tokenizer.special, ROWS, run.config.mode)

    def metrics(self) -> dict[str, float]:
        """exact_match and f1, and of how many questions; empty where there is no question."""
        if not self._samples:
            return {}
        predictions = answer_samples(self._generator, self._tokenizer, self._samples, MAX_TOKENS)
        figures = answer_metrics(predictions, [sample.answer for sample in self._samples])
        return {name: figures[name] for name in ("exact_match", "f1", "questions")}
