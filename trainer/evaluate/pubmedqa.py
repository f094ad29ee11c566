"""PubMedQA's yes, no or maybe, by the likelihood of each: nothing is generated.

The prompt is the question as in training, without its abstract. The answers compared are " yes", " no" and
" maybe", scored without EOS, which rarely follows one word where answers are conclusions. Figures are
accuracy and the mean F1 of yes, no and maybe (Jin et al. 2019, arXiv:1909.06146).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from janus.common.errors import UserError
from janus.common.files import read_json
from janus.prompts import Message, encode_samples
from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from shards.schema import Sample
from trainer.evaluate.answers import commonest
from trainer.evaluate.scores import Score

SOURCE = "pubmedqa"
DECISIONS = ("yes", "no", "maybe")


def decision_metrics(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """accuracy, and macro_f1 over the decisions that are among predictions or answers, as scikit-learn's."""
    predicted, wanted = Counter(predictions), Counter(answers)
    right = Counter(p for p, w in zip(predictions, answers, strict=True) if p == w)
    f1 = [2 * right[d] / (predicted[d] + wanted[d]) for d in sorted(predicted | wanted)]
    return {"accuracy": right.total() / len(answers), "macro_f1": sum(f1) / len(f1)}


@dataclass(frozen=True)
class PubmedQuestions:
    """The questions that the shards hold, in any split, of the `listed` ones, each with its right answer.

    candidates: for each question one sample per decision, in the order of DECISIONS.
    """

    questions: list[Sample]
    candidates: list[Sample]
    listed: int

    def results(
        self, scores: Sequence[Score]
    ) -> tuple[dict[str, float], str, list[tuple[Sample, float, float, str]]]:
        """(figures, the commonest answer as baseline, answers) from the candidates' scores.

        answers: each question, −log p of its right answer, the share of the likeliest one, and that one.
        Questions of the train split are counted as `in_train`; `unseen_…` leaves them out, if others remain.
        """
        nll_QD = np.array([score.nll for score in scores]).reshape(-1, len(DECISIONS))
        predictions = [DECISIONS[i] for i in nll_QD.argmin(1)]
        answers = [question.answer for question in self.questions]
        unseen = [i for i, question in enumerate(self.questions) if question.split != "train"]
        in_train, always = len(answers) - len(unseen), commonest(answers)
        metrics = decision_metrics(predictions, answers)
        metrics |= {"samples": len(answers), "asked": self.listed, "in_train": in_train}
        if unseen and in_train:
            figures = decision_metrics([predictions[i] for i in unseen], [answers[i] for i in unseen])
            metrics |= {f"unseen_{name}": value for name, value in figures.items()}
        figures = decision_metrics([always] * len(answers), answers)
        metrics |= {f"baseline_{name}": value for name, value in figures.items()}
        share_Q = 1 / np.exp(nll_QD.min(1, keepdims=True) - nll_QD).sum(1)  # of the likeliest
        nll_Q = [nll_D[DECISIONS.index(answer)] for nll_D, answer in zip(nll_QD, answers, strict=True)]
        return metrics, always, list(zip(self.questions, nll_Q, share_Q, predictions, strict=True))


def find_questions(shards: ShardSet, path: Path, tokenizer: JanusTokenizer) -> PubmedQuestions:
    """Those of the list `path`, {pubid: yes, no or maybe}, that the shards hold. UserError if none."""
    decisions = read_json(path, "give PubMedQA's data/test_ground_truth.json")
    for pubid, decision in decisions.items():
        if decision not in DECISIONS:
            raise UserError(f"{path}: {pubid}: {decision!r} is none of {', '.join(DECISIONS)}")
    questions = []
    for rows in (shards.rows(split, task) for split, task in shards.splits_tasks() if task == "text"):
        for index, sample_id in enumerate(rows.column("sample_id").to_pylist()):
            source, _, pubid = sample_id.partition("/")
            if source == SOURCE and pubid in decisions:
                questions.append(replace(rows.read(index), answer=decisions[pubid]))
    if not questions:
        raise UserError(f"--pubmedqa-test: {shards.folder} holds none of its {len(decisions)} questions")
    prompts = [[*q.messages[:-1], Message("assistant", d)] for q in questions for d in DECISIONS]
    candidates = []
    for i, sample in enumerate(encode_samples(tokenizer, prompts, 0)):
        start, end, kind = sample.supervised[-1]
        span = np.array([[start, end - 1, kind]], np.int32)  # without EOS
        question = questions[i // len(DECISIONS)]
        candidates.append(replace(question, input_ids=sample.input_ids, supervised=span))
    return PubmedQuestions(questions, candidates, len(decisions))
