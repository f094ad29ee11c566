"""Figures of scored tokens and of answers: loss, accuracy, exact match, token F1, accuracy of decisions.

Exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250): lower case, no punctuation,
no articles, white space collapsed; F1 of the bags of words. Questions whose answer is yes or no are *closed*,
all others *open*, kept apart as for VQA-RAD (Lau et al. 2018, doi:10.1038/sdata.2018.251); its closed
questions that name their choices count as open here. PubMedQA's figures are accuracy and the F1 of yes, no
and maybe, averaged (Jin et al. 2019, arXiv:1909.06146).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus.common.errors import UserError

CLOSED = ("yes", "no")
DECISIONS = ("yes", "no", "maybe")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Score:
    """Of the supervised tokens of a sample or a batch: −log p summed, how many came first, how many."""

    nll: float
    hits: int
    tokens: int


def mean_scores(scores: Sequence[Score]) -> dict[str, float]:
    """loss (−log p a token), token_accuracy, and of how many tokens."""
    tokens = sum(score.tokens for score in scores)
    nll, hits = sum(score.nll for score in scores), sum(score.hits for score in scores)
    return {"loss": nll / tokens, "token_accuracy": hits / tokens, "tokens": tokens}


def normalise(answer: str) -> str:
    """What of an answer is compared."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether they are the same once normalised."""
    return normalise(prediction) == normalise(answer)


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of the shares of words that they have in common, 0 to 1."""
    predicted, wanted = normalise(prediction).split(), normalise(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def is_closed(answer: str) -> bool:
    """Whether the answer is yes or no."""
    return normalise(answer) in CLOSED


def answer_metrics(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """exact_match and f1 of all, of the closed and of the open questions, and how many those are.

    A kind of which there are none has no figures.
    """
    kinds = {
        "": range(len(answers)),
        "closed_": [i for i, answer in enumerate(answers) if is_closed(answer)],
        "open_": [i for i, answer in enumerate(answers) if not is_closed(answer)],
    }
    metrics: dict[str, float] = {}
    for kind, places in kinds.items():
        pairs = [(predictions[i], answers[i]) for i in places]
        if pairs:
            metrics[f"{kind}exact_match"] = sum(exact_match(*pair) for pair in pairs) / len(pairs)
            metrics[f"{kind}f1"] = sum(token_f1(*pair) for pair in pairs) / len(pairs)
        metrics[f"{kind}questions"] = len(pairs)
    return metrics


def commonest(answers: Sequence[str]) -> str:
    """The normalised answer that comes most often; of several the first in the alphabet."""
    counts = Counter(map(normalise, answers))
    return min(counts, key=lambda answer: (-counts[answer], answer))


def decision_metrics(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """accuracy and macro_f1 over the decisions that are among predictions or answers, as scikit-learn's."""
    pairs = list(zip(predictions, answers, strict=True))
    f1 = []
    for decision in sorted({*predictions, *answers}):
        right = sum(predicted == wanted == decision for predicted, wanted in pairs)
        named = sum((predicted == decision) + (wanted == decision) for predicted, wanted in pairs)
        f1.append(2 * right / named)
    accuracy = sum(predicted == wanted for predicted, wanted in pairs) / len(pairs)
    return {"accuracy": accuracy, "macro_f1": sum(f1) / len(f1)}


def check_decisions(content: Mapping[str, str], path: object) -> Mapping[str, str]:
    """PubMedQA's list, {pubid: yes, no or maybe}, as it is. Raises UserError if it is not that."""
    for pubid, decision in content.items():
        if decision not in DECISIONS:
            raise UserError(f"{path}: {pubid}: {decision!r} is none of {', '.join(DECISIONS)}")
    return content
