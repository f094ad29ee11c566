"""PubMedQA's yes, no or maybe, by the likelihood of each: nothing is generated.

The prompt is the question as it is trained, without its abstract; the answers compared are " yes", " no" and
" maybe", scored without EOS, which an answer of one word rarely has where answers are conclusions. Figures
are accuracy and the F1 of yes, no and maybe, averaged (Jin et al. 2019, arXiv:1909.06146).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from janus.common.errors import UserError
from janus.common.files import read_json
from janus.prompts import PromptRow, encode_samples
from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from shards.schema import Sample
from trainer.evaluate.answers import commonest
from trainer.evaluate.predictions import prediction_row
from trainer.evaluate.scores import Score

SOURCE = "pubmedqa"
DECISIONS = ("yes", "no", "maybe")


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


@dataclass(frozen=True)
class PubmedQuestions:
    """The listed questions that the shards hold, in any split, each with its right answer.

    candidates: for each question one sample per decision, in the order of DECISIONS. listed: length of the
    list.
    """

    questions: list[Sample]
    candidates: list[Sample]
    listed: int

    def results(self, scores: Sequence[Score]) -> tuple[dict[str, float], str, list[dict[str, Any]]]:
        """(figures, the baseline's answer, a row for each question) from the candidates' scores.

        Questions of the train split are counted (`in_train`) and, if others remain, left out of `unseen_…`.
        The baseline is the commonest answer of the questions.
        """
        nll_QD = np.array([score.nll for score in scores]).reshape(-1, len(DECISIONS))
        predictions = [DECISIONS[i] for i in nll_QD.argmin(1)]
        answers = [question.answer for question in self.questions]
        unseen = [i for i, question in enumerate(self.questions) if question.split != "train"]
        in_train = len(self.questions) - len(unseen)
        metrics = decision_metrics(predictions, answers)
        metrics |= {"samples": len(self.questions), "asked": self.listed, "in_train": in_train}
        if unseen and in_train:
            figures = decision_metrics([predictions[i] for i in unseen], [answers[i] for i in unseen])
            metrics |= {f"unseen_{name}": value for name, value in figures.items()}
        always = commonest(answers)
        figures = decision_metrics([always] * len(answers), answers)
        metrics |= {f"baseline_{name}": value for name, value in figures.items()}
        return metrics, always, self._rows(nll_QD, predictions)

    def _rows(self, nll_QD: np.ndarray, predictions: list[str]) -> list[dict[str, Any]]:
        likelihood_QD = np.exp(nll_QD.min(1, keepdims=True) - nll_QD)  # of the likeliest: 1
        confidence_Q = 1 / likelihood_QD.sum(1)
        rows = []
        for i, (question, prediction) in enumerate(zip(self.questions, predictions, strict=True)):
            nll = float(nll_QD[i, DECISIONS.index(question.answer)])
            rows.append(prediction_row(question, SOURCE, nll, float(confidence_Q[i]), prediction))
        return rows


def find_questions(shards: ShardSet, path: Path, tokenizer: JanusTokenizer) -> PubmedQuestions:
    """Find the questions of the list `path`, {pubid: yes, no or maybe}, in the shards.

    Raises UserError if it is no such list, or the shards hold none of its questions.
    """
    decisions = read_json(path, "give PubMedQA's data/test_ground_truth.json")
    for pubid, decision in decisions.items():
        if decision not in DECISIONS:
            raise UserError(f"{path}: {pubid}: {decision!r} is none of {', '.join(DECISIONS)}")
    questions = []
    for split, task in shards.splits_tasks():
        rows = shards.rows(split, task)
        for index, sample_id in enumerate(rows.sample_ids.to_pylist() if task == "text" else ()):
            source, _, key = sample_id.partition("/")
            if source == SOURCE and key in decisions:
                questions.append(replace(rows.read(index), answer=decisions[key]))
    if not questions:
        raise UserError(f"--pubmedqa-test: {shards.folder} holds none of its {len(decisions)} questions")
    return PubmedQuestions(questions, _candidates(questions, tokenizer), len(decisions))


def _candidates(questions: Sequence[Sample], tokenizer: JanusTokenizer) -> list[Sample]:
    prompts = [PromptRow("text", q.prompt, d, q.history) for q in questions for d in DECISIONS]
    candidates = []
    for i, sample in enumerate(encode_samples(tokenizer, prompts, 0)):
        start, end = sample.supervised[-1]
        span = np.array([[start, end - 1]], np.int32)  # without EOS
        question = questions[i // len(DECISIONS)]
        candidates.append(replace(question, input_ids=sample.input_ids, supervised=span))
    return candidates
