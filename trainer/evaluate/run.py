"""`trainer eval`: what a model can do on held-out samples, as figures, predictions and pictures.

`OUT/eval/` gets, for the split SPLIT:

- `SPLIT.json`: `{"model", "shards", "split", "seconds", "metrics": {PART: {NAME: number}}, "baseline": {PART:
  answer}, "pictures": file name or null}`. A part is text, vqa, t2i or pubmedqa; each holds `samples`, and
  those that are scored as in training `loss` (−log p a token) and `token_accuracy`. Figures named
  `baseline_…` are those of always giving the answer in "baseline". New names may come; these stay.
- `SPLIT.arrow`: one row for each sample and part (`trainer/evaluate/predictions.py`).
- `SPLIT-pictures.png`: held-out pictures, decoded from their codes, above those drawn for their captions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.generate.generate import Generator, Sampling
from janus.generate.pictures import vq_decoder
from janus.prompts import before_answer
from janus.tokens import JanusTokenizer, load_tokenizer
from shards.check import open_verified
from shards.manifest import TOKENIZER
from shards.read import ShardSet
from shards.schema import Sample
from trainer.config import EvalConfig
from trainer.evaluate.answers import answer_metrics, commonest, generate_answers, token_f1
from trainer.evaluate.predictions import prediction_row, write_results
from trainer.evaluate.pubmedqa import PubmedQuestions, find_questions
from trainer.evaluate.scores import Score, mean_scores, score_samples
from trainer.run.open import check_model
from trainer.stream.feed import select_rows
from trainer.stream.shapes import ImageShape

if TYPE_CHECKING:
    from janus.model.janus import Janus


def evaluate(config: EvalConfig) -> Path:
    """Evaluate as configured; returns the JSON file. Raises UserError for what does not fit together."""
    began = time.perf_counter()
    evaluation = _Evaluation.open(config)
    click.echo(f"model: {evaluation.folder.description}")
    device.use(config.device)
    model = evaluation.folder.build()
    for task, samples in evaluation.samples.items():
        evaluation.add(task, samples, model)
    picture = evaluation.draw(model) if config.pictures and evaluation.samples.get("t2i") else None
    metrics = evaluation.metrics
    result: dict[str, Any] = {"model": config.model, "shards": str(config.shards), "split": config.split}
    result |= {"seconds": time.perf_counter() - began, "metrics": metrics, "baseline": evaluation.baseline}
    path = write_results(config.out / "eval", config.split, result, evaluation.rows, picture)
    for part, figures in metrics.items():
        click.echo(f"{part}: " + ", ".join(f"{name} {_shown(value)}" for name, value in figures.items()))
    click.echo(f"written: {path}, {path.with_suffix('.arrow').name}")
    return path


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@dataclass
class _Evaluation:
    """Everything opened and checked, and what has been found so far.

    samples: of the split, by task. metrics, baseline: by part. rows: of `predictions.SCHEMA`.
    """

    config: EvalConfig
    shards: ShardSet
    folder: ModelFolder
    tokenizer: JanusTokenizer
    samples: dict[str, list[Sample]]
    pubmed: PubmedQuestions | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    baseline: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, config: EvalConfig) -> _Evaluation:
        """Open shards, model and list. Raises UserError for what does not fit together."""
        shards = open_verified(config.shards)
        tokenizer = load_tokenizer((shards.folder / TOKENIZER).parent)
        folder = open_model(config.model, tokenizer.folder)
        tasks = [task for split, task in shards.splits_tasks() if split == config.split]
        if not tasks:
            found = ", ".join(sorted({split for split, _ in shards.splits_tasks()}))
            raise UserError(f"--split {config.split}: {shards.folder} has no such rows, only {found}")
        check_model(config.model, tasks, folder, shards, tokenizer)
        samples = {}
        for task in tasks:
            selected = select_rows(shards.rows(config.split, task), (), config.samples)
            samples[task] = [selected.read(place) for place in range(len(selected))]
        evaluation = cls(config, shards, folder, tokenizer, samples)
        if config.pubmedqa_test:
            evaluation.pubmed = find_questions(shards, config.pubmedqa_test, tokenizer)
            samples.setdefault("text", [])
        return evaluation

    def add(self, task: str, samples: list[Sample], model: Janus) -> None:
        """Score one task's samples, and PubMedQA's candidate answers, which go through the graph of text."""
        pubmed = self.pubmed if task == "text" else None
        scored = [*samples, *pubmed.candidates] if pubmed else samples
        image, special = ImageShape.of(self.folder.config), self.tokenizer.special
        scores = score_samples(model, task, scored, self.config.batch, image, special)
        if samples:
            self.metrics[task] = {"samples": len(samples), **mean_scores(scores[: len(samples)])}
            add_rows = self._add_answers if task == "vqa" else self._add_scores
            add_rows(samples, scores, model)
        if pubmed:
            figures, self.baseline["pubmedqa"], rows = pubmed.results(scores[len(samples) :])
            self.metrics["pubmedqa"] = figures
            self.rows += rows

    def _add_scores(self, samples: list[Sample], scores: list[Score], model: Janus) -> None:
        for sample, score in zip(samples, scores, strict=False):
            accuracy, nll = score.hits / score.targets, score.nll / score.targets
            self.rows.append(prediction_row(sample, sample.task, nll, accuracy))

    def _add_answers(self, samples: list[Sample], scores: list[Score], model: Janus) -> None:
        """Answer vqa questions, and compare with always giving the commonest training answer."""
        config, answers = self.config, [sample.answer for sample in samples]
        generator = Generator(model, self.tokenizer.special, min(config.batch, len(samples)))
        with track("answers", -(-len(samples) // config.batch) * config.max_tokens, "steps") as advance:
            predictions = generate_answers(generator, self.tokenizer, samples, config.max_tokens, advance)
        self.metrics["vqa"] |= answer_metrics(predictions, answers)
        if ("train", "vqa") in self.shards.splits_tasks():
            always = commonest(self.shards.rows("train", "vqa").answers.to_pylist())
            figures = answer_metrics([always] * len(samples), answers)
            figures = {f"baseline_{name}": x for name, x in figures.items() if "questions" not in name}
            self.baseline["vqa"] = always
            self.metrics["vqa"] |= figures
        for sample, score, text in zip(samples, scores, predictions, strict=True):
            f1, nll = token_f1(text, sample.answer), score.nll / score.targets
            self.rows.append(prediction_row(sample, "vqa", nll, f1, text))

    def draw(self, model: Janus) -> tuple[np.ndarray, dict[str, object]]:
        """A grid of held-out pictures above drawn ones, uint8 (H, W, 3), and the facts it was made from."""
        config, samples = self.config, self.samples["t2i"][: self.config.pictures]
        sampling = Sampling(seed=config.seed)
        generator = Generator(model, self.tokenizer.special, min(config.batch, len(samples)))
        prompts = [before_answer(sample.input_ids, sample.supervised) for sample in samples]
        steps = -(-len(samples) // config.batch) * self.folder.config.num_image_tokens
        with track("pictures", steps, "steps") as advance:
            drawn = list(generator.pictures(prompts, range(len(samples)), sampling, advance))
        held_out = [sample.image_tokens for sample in samples if sample.image_tokens is not None]
        decode = vq_decoder(self.folder)
        grid = [np.concatenate([decode(codes) for codes in row], 1) for row in (held_out, drawn)]
        facts: dict[str, object] = {"model": config.model, **vars(sampling)}
        facts |= {f"prompt {i}": sample.prompt for i, sample in enumerate(samples)}
        return np.concatenate(grid), facts
