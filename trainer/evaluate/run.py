"""`trainer eval`: what a model can do on held-out samples, as figures, predictions and pictures.

`OUT/eval/` gets, for the split SPLIT:

- `SPLIT.json`: `{"model", "shards", "split", "seconds", "metrics": {PART: {NAME: number}}, "baseline": {PART:
  answer}, "pictures": file name or null}`. A part is text, vqa, t2i or pubmedqa; each holds `samples`, and
  those that are scored as in training `loss` (−log p a token) and `token_accuracy`. Figures named
  `baseline_…` are those of always giving the answer in "baseline". New names may come; these stay.
- `SPLIT.arrow`: one row a sample and part (`trainer/evaluate/predictions.py`).
- `SPLIT-pictures.png`: held-out pictures, decoded from their codes, above what is drawn for their captions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.common.files import read_json
from janus.generate.generate import Generator, Prompt, Sampling
from janus.prompts import before_answer
from janus.tokens import JanusTokenizer, load_tokenizer
from shards.check import open_verified
from shards.manifest import TOKENIZER
from shards.read import ShardSet
from shards.schema import Sample
from trainer.config import EvalConfig
from trainer.evaluate.metrics import (
    Score,
    answer_metrics,
    check_decisions,
    commonest,
    exact_match,
    mean_scores,
    token_f1,
)
from trainer.evaluate.predictions import prediction_row, write_results
from trainer.evaluate.pubmedqa import PubmedQuestions, find_questions
from trainer.run.open import check_model
from trainer.stream.feed import select_rows
from trainer.stream.shapes import ImageShape

if TYPE_CHECKING:
    from janus.model.janus import Janus


@dataclass(frozen=True)
class _Opened:
    """Everything opened and checked. samples: of each task, of the split."""

    config: EvalConfig
    shards: ShardSet
    folder: ModelFolder
    tokenizer: JanusTokenizer
    samples: dict[str, list[Sample]]
    pubmed: PubmedQuestions | None

    @property
    def image(self) -> ImageShape:
        """An image as the model takes it."""
        return ImageShape.of(self.folder.config)


def evaluate(config: EvalConfig) -> Path:
    """Evaluate as configured; returns the JSON file. Raises UserError for what does not fit together."""
    began = time.perf_counter()
    opened = _open(config)
    click.echo(f"model: {opened.folder.description}")
    device.use(config.device)
    model = opened.folder.build()
    metrics: dict[str, dict[str, float]] = {}
    baseline: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for task, samples in opened.samples.items():
        scores, candidates = _score(opened, model, task, samples)
        if samples:
            metrics[task], predictions = {"samples": len(samples), **mean_scores(scores)}, None
            if task == "vqa":
                predictions = _answers(opened, model, samples)
                metrics[task] |= _vqa_metrics(opened, samples, predictions, baseline)
            rows += _rows(samples, scores, predictions)
        if candidates and opened.pubmed:
            metrics["pubmedqa"], baseline["pubmedqa"], more = opened.pubmed.results(candidates)
            rows += more
    picture = _draw(opened, model) if config.pictures and opened.samples.get("t2i") else None
    result: dict[str, Any] = {"model": config.model, "shards": str(config.shards), "split": config.split}
    result |= {"seconds": time.perf_counter() - began, "metrics": metrics, "baseline": baseline}
    path = write_results(config.out / "eval", config.split, result, rows, picture)
    for part, figures in metrics.items():
        click.echo(f"{part}: " + ", ".join(f"{name} {_shown(value)}" for name, value in figures.items()))
    click.echo(f"written: {path}, {path.with_suffix('.arrow').name}")
    return path


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _open(config: EvalConfig) -> _Opened:
    shards = open_verified(config.shards)
    tokenizer = load_tokenizer((shards.folder / TOKENIZER).parent)
    folder = open_model(config.model, tokenizer.folder)
    tasks = [task for split, task in shards.splits_tasks() if split == config.split]
    if not tasks:
        there = ", ".join(sorted({split for split, _ in shards.splits_tasks()}))
        raise UserError(f"--split {config.split}: {shards.folder} has no such rows; there are {there}")
    check_model(config.model, tasks, folder, shards, tokenizer)
    samples = {}
    for task in tasks:
        used = select_rows(shards.rows(config.split, task), (), config.samples)
        samples[task] = [used.read(place) for place in range(len(used))]
    pubmed = None
    if config.pubmedqa_test:
        content = read_json(config.pubmedqa_test, "give PubMedQA's data/test_ground_truth.json")
        pubmed = find_questions(shards, check_decisions(content, config.pubmedqa_test), tokenizer)
        samples.setdefault("text", [])
    return _Opened(config, shards, folder, tokenizer, samples, pubmed)


def _score(
    opened: _Opened, model: Janus, task: str, samples: list[Sample]
) -> tuple[list[Score], list[Score]]:
    """Scores of the samples, and of PubMedQA's candidate answers, which go through the same graph."""
    from trainer.evaluate.score import score_samples

    candidates = opened.pubmed.candidates if opened.pubmed and task == "text" else []
    special, rows = opened.tokenizer.special, opened.config.batch
    scores = score_samples(model, task, [*samples, *candidates], rows, opened.image, special)
    return scores[: len(samples)], scores[len(samples) :]


def _answers(opened: _Opened, model: Janus, samples: list[Sample]) -> list[str]:
    config = opened.config
    generator = Generator(model, opened.tokenizer.special, min(config.batch, len(samples)))
    with track("answers", -(-len(samples) // config.batch) * config.max_tokens, "steps") as advance:
        return answer_samples(generator, opened.tokenizer, samples, config.max_tokens, advance)


def answer_samples(
    generator: Generator,
    tokenizer: JanusTokenizer,
    samples: Sequence[Sample],
    max_tokens: int,
    on_token: Any = lambda: None,
) -> list[str]:
    """The text that the model gives, greedily, for each vqa sample's question and picture."""
    prompts = [Prompt(before_answer(s.input_ids, s.supervised), s.image) for s in samples]
    eos = tokenizer.special.eos
    return [
        tokenizer.decode(ids[ids != eos].tolist()).strip()
        for ids in generator.answers(prompts, max_tokens, on_token=on_token)
    ]


def _vqa_metrics(
    opened: _Opened, samples: list[Sample], predictions: list[str], baseline: dict[str, str]
) -> dict[str, float]:
    """Those of the predictions, and of always giving the commonest training answer."""
    answers = [sample.answer for sample in samples]
    metrics = answer_metrics(predictions, answers)
    if ("train", "vqa") in opened.shards.splits_tasks():
        training = opened.shards.rows("train", "vqa")
        baseline["vqa"] = commonest(training.answers.to_pylist())
        always = answer_metrics([baseline["vqa"]] * len(samples), answers)
        metrics |= {f"baseline_{name}": value for name, value in always.items() if "questions" not in name}
    return metrics


def _rows(samples: list[Sample], scores: list[Score], predictions: list[str] | None) -> list[dict[str, Any]]:
    rows = []
    for i, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        mean = score.nll / score.tokens
        if predictions is None:
            rows.append(prediction_row(sample, sample.task, nll=mean, score=score.hits / score.tokens))
            continue
        text = predictions[i]
        right, f1 = exact_match(text, sample.answer), token_f1(text, sample.answer)
        rows.append(prediction_row(sample, "vqa", nll=mean, score=f1, prediction=text, correct=right))
    return rows


def _draw(opened: _Opened, model: Janus) -> tuple[np.ndarray, dict[str, object]]:
    """(the grid, uint8 (H, W, 3); what it shows)."""
    from janus.generate.vq_encode import VQDecoder

    config = opened.config
    samples = opened.samples["t2i"][: config.pictures]
    decoder, sampling = VQDecoder(opened.folder), Sampling(seed=config.seed)
    generator = Generator(model, opened.tokenizer.special, min(config.batch, len(samples)))
    prompts = [before_answer(sample.input_ids, sample.supervised) for sample in samples]
    steps = -(-len(samples) // config.batch) * opened.image.tokens
    with track("pictures", steps, "steps") as advance:
        drawn = list(generator.pictures(prompts, range(len(samples)), sampling, advance))
    held_out = [sample.image_tokens for sample in samples if sample.image_tokens is not None]
    rows = [np.concatenate([decoder.decode(codes[None])[0] for codes in row], 1) for row in (held_out, drawn)]
    facts: dict[str, object] = {"model": config.model, **vars(sampling)}
    facts |= {f"prompt {i}": sample.prompt for i, sample in enumerate(samples)}
    return np.concatenate(rows), facts
