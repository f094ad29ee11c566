"""PubMedQA's yes, no or maybe, by the likelihood of each: nothing is generated.

The prompt is the question as it is trained, without its abstract; the answers compared are " yes", " no" and
" maybe", scored without EOS, which an answer of one word rarely has where answers are conclusions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from janus.common.errors import UserError
from janus.prompts import PromptRow, encode_samples
from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from shards.schema import Sample
from trainer.evaluate.metrics import DECISIONS, Score, commonest, decision_metrics
from trainer.evaluate.predictions import prediction_row

SOURCE = "pubmedqa"


@dataclass(frozen=True)
class PubmedQuestions:
    """The questions of the list that the shards hold, in any split.

    candidates: for each question one sample a decision, in the order of DECISIONS. asked: length of the list.
    """

    questions: list[Sample]
    answers: list[str]
    candidates: list[Sample]
    asked: int

    def results(self, scores: Sequence[Score]) -> tuple[dict[str, float], str, list[dict[str, Any]]]:
        """(figures, the baseline's answer, a row for each question) from the candidates' scores.

        Questions that stand in the train split are counted (`in_train`) and, where they are not all, left out
        of `unseen_…`. The baseline is the commonest answer of the list.
        """
        nll = np.array([score.nll for score in scores]).reshape(-1, len(DECISIONS))
        predictions = [DECISIONS[i] for i in nll.argmin(1)]
        metrics = decision_metrics(predictions, self.answers)
        metrics |= {"samples": len(self.questions), "asked": self.asked}
        unseen = [i for i, question in enumerate(self.questions) if question.split != "train"]
        metrics["in_train"] = len(self.questions) - len(unseen)
        if unseen and metrics["in_train"]:
            figures = decision_metrics([predictions[i] for i in unseen], [self.answers[i] for i in unseen])
            metrics |= {f"unseen_{name}": value for name, value in figures.items()}
        always = commonest(self.answers)
        figures = decision_metrics([always] * len(self.answers), self.answers)
        metrics |= {f"baseline_{name}": value for name, value in figures.items()}
        return metrics, always, self._rows(nll, predictions)

    def _rows(self, nll: np.ndarray, predictions: list[str]) -> list[dict[str, Any]]:
        likelihood = np.exp(nll.min(1, keepdims=True) - nll)
        confidence = 1 / likelihood.sum(1)  # of the likeliest, whose likelihood is 1 here
        return [
            prediction_row(
                replace(question, answer=answer),
                SOURCE,
                nll=float(nll[i, DECISIONS.index(answer)]),
                score=float(confidence[i]),
                prediction=predictions[i],
                correct=predictions[i] == answer,
            )
            for i, (question, answer) in enumerate(zip(self.questions, self.answers, strict=True))
        ]


def find_questions(
    shards: ShardSet, decisions: Mapping[str, str], tokenizer: JanusTokenizer
) -> PubmedQuestions:
    """Find the listed questions in the shards.

    decisions: the list, {pubid: decision}. Raises UserError if the shards hold none of them.
    """
    questions = []
    for split, task in shards.splits_tasks():
        if task == "text":
            rows = shards.rows(split, task)
            for index, sample_id in enumerate(rows.sample_ids.to_pylist()):
                source, _, key = sample_id.partition("/")
                if source == SOURCE and key in decisions:
                    questions.append(rows.read(index))
    if not questions:
        raise UserError(f"--pubmedqa-test: {shards.folder} holds none of its {len(decisions)} questions")
    answers = [decisions[question.source_key] for question in questions]
    return PubmedQuestions(questions, answers, _candidates(questions, tokenizer), len(decisions))


def _candidates(questions: Sequence[Sample], tokenizer: JanusTokenizer) -> list[Sample]:
    pairs = [(question, decision) for question in questions for decision in DECISIONS]
    encoded = encode_samples(tokenizer, [PromptRow("text", q.prompt, d, q.history) for q, d in pairs], 0)
    candidates = []
    for (question, _), sample in zip(pairs, encoded, strict=True):
        start, end = sample.supervised[-1]
        span = np.array([[start, end - 1]], np.int32)  # without EOS
        candidates.append(replace(question, input_ids=sample.input_ids, supervised=span))
    return candidates
