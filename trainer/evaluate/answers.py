"""Answers to vqa questions: generated greedily, and compared with the right ones.

Exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250): lower case, no punctuation,
no articles, white space collapsed; F1 of the bags of words. Questions with the answer yes or no are *closed*,
all others *open*, as for VQA-RAD (Lau et al. 2018, doi:10.1038/sdata.2018.251), except that its closed
questions that name their choices count as open here.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from janus.generate.generate import Generator, Prompt
from janus.model.janus import Janus
from janus.prompts import before_answer
from janus.tokens import JanusTokenizer
from shards.schema import Sample
from trainer.run.open import Run

CLOSED = ("yes", "no")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

QUESTIONS, BATCH, MAX_TOKENS = 8, 4, 16
"""A `Probe`'s questions, questions at a time, and longest answer in tokens."""


def normalise(answer: str) -> str:
    """The answer as it is compared."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> bool:
    return normalise(prediction) == normalise(answer)


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words, 0 to 1."""
    predicted, wanted = normalise(prediction).split(), normalise(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted))


def answer_metrics(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """exact_match, f1 and number of all, `closed_` and `open_` questions; of no questions only the number."""
    kinds: dict[str, list[tuple[str, str]]] = {"": [], "closed_": [], "open_": []}
    for pair in zip(predictions, answers, strict=True):
        kinds[""].append(pair)
        kinds["closed_" if normalise(pair[1]) in CLOSED else "open_"].append(pair)
    metrics: dict[str, float] = {}
    for kind, pairs in kinds.items():
        if pairs:
            metrics[f"{kind}exact_match"] = sum(exact_match(*pair) for pair in pairs) / len(pairs)
            metrics[f"{kind}f1"] = sum(token_f1(*pair) for pair in pairs) / len(pairs)
        metrics[f"{kind}questions"] = len(pairs)
    return metrics


def commonest(answers: Sequence[str]) -> str:
    """The most frequent normalised answer; of several the first in the alphabet."""
    counts = Counter(map(normalise, answers))
    return min(counts, key=lambda answer: (-counts[answer], answer))


def generate_answers(
    generator: Generator,
    tokenizer: JanusTokenizer,
    samples: Sequence[Sample],
    max_tokens: int,
    on_token: Callable[[], object] = lambda: None,
) -> list[str]:
    """The greedy answer to each vqa sample's question and picture, as text."""
    special = tokenizer.special
    prompts = [Prompt(before_answer(s.input_ids, s.supervised, special), s.images) for s in samples]
    answers = generator.answers(prompts, max_tokens, on_token=on_token)
    return [tokenizer.decode(ids[ids != tokenizer.special.eos].tolist()).strip() for ids in answers]


class Probe:
    """A few held-out questions that `--eval-every` asks; costs two validations of as many vqa samples."""

    def __init__(self, run: Run, model: Janus) -> None:
        held_out = run.feed.validation.get("vqa")
        self._samples = [held_out.read(i) for i in range(min(QUESTIONS, len(held_out)))] if held_out else []
        self._tokenizer = run.tokenizer
        self._generator = Generator(model, run.tokenizer.special, BATCH, run.config.mode)

    def metrics(self) -> dict[str, float]:
        """exact_match, f1 and the number of questions; only for a run with held-out questions."""
        predictions = generate_answers(self._generator, self._tokenizer, self._samples, MAX_TOKENS)
        figures = answer_metrics(predictions, [sample.answer for sample in self._samples])
        return {name: figures[name] for name in ("exact_match", "f1", "questions")}
