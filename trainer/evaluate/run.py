"""`trainer eval`: what a model can do on held-out samples, as figures, predictions and pictures.

`OUT/eval/` gets, for the split SPLIT:

- `SPLIT.json`: `{"model", "shards", "split", "seconds", "metrics": {PART: {NAME: number}}, "baseline": {PART:
  answer}, "pictures": file name or null, "edits": likewise}`. PART is a task or pubmedqa. Each has `samples`,
  and all but pubmedqa have `loss` (−log p per target) and `token_accuracy`. `baseline_…` are the figures of
  always giving the answer in "baseline". Names may be added; these stay.
- `SPLIT.arrow`: one row for each sample and part (PREDICTIONS).
- `SPLIT-pictures.png`: held-out pictures, decoded from their codes, above those drawn for their captions.
- `SPLIT-edit.png`: likewise for edits, the last picture that the user showed above both.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
from pyarrow import feather

from janus import device
from janus.checkpoint.folder import open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.common.files import write_file, write_text
from janus.generate.generate import Generator, Prompt, Sampling
from janus.generate.pictures import save_picture, vq_decoder
from janus.model.janus import Janus
from janus.prompts import before_answer
from janus.tokens import JanusTokenizer
from shards.compare.check import open_verified
from shards.manifest import TOKENIZER
from shards.schema import Sample
from trainer.config import EvalConfig
from trainer.evaluate.answers import answer_metrics, commonest, exact_match, generate_answers, token_f1
from trainer.evaluate.pubmedqa import PubmedQuestions, find_questions
from trainer.evaluate.scores import Score, mean_scores, score_samples
from trainer.run.open import check_model
from trainer.stream.feed import select_rows
from trainer.stream.shapes import ImageShape

_TEXTS = ("sample_id", "part", "task", "split", "source", "prompt", "answer", "prediction")
PREDICTIONS = pa.schema(
    {**dict.fromkeys(_TEXTS, pa.string()), "correct": pa.bool_(), "score": pa.float64(), "nll": pa.float64()}
)
"""prediction, correct: null where only the next token is predicted. score: token F1 of a vqa answer, share of
the likeliest pubmedqa answer, else token accuracy. nll: −log p per target; for pubmedqa of the answer."""


def evaluate(config: EvalConfig) -> Path:
    """Evaluate as configured; returns the JSON file, written last. UserError if something does not fit."""
    began = time.perf_counter()
    evaluation = _Evaluation(config)
    click.echo(f"model: {evaluation.folder.description}")
    used = device.use(config.device, config.dtype, config.device_id, deterministic=True)
    model = evaluation.folder.build(used.dtype)
    for task, samples in evaluation.samples.items():
        evaluation.add(task, samples, model)
    folder, metrics = config.out / "eval", evaluation.metrics
    folder.mkdir(parents=True, exist_ok=True)
    path, grids = folder / f"{config.split}.json", {}
    for task, name in (("t2i", "pictures"), ("edit", "edit")):
        drawn = evaluation.draw(task, model)
        grids[task] = f"{config.split}-{name}.png" if drawn else None
        if drawn:
            save_picture(folder / f"{grids[task]}", *drawn)
    table = pa.Table.from_pylist(evaluation.rows, PREDICTIONS)
    write_file(path.with_suffix(".arrow"), lambda tmp: feather.write_feather(table, tmp, "uncompressed"))
    result: dict[str, Any] = {"model": config.model, "shards": str(config.shards), "split": config.split}
    result |= {"seconds": time.perf_counter() - began, "metrics": metrics, "baseline": evaluation.baseline}
    result |= {"pictures": grids["t2i"], "edits": grids["edit"]}
    write_text(path, json.dumps(result, indent=2, sort_keys=True) + "\n")
    for part, figures in metrics.items():
        shown = (f"{name} {x:,}" if isinstance(x, int) else f"{name} {x:.4g}" for name, x in figures.items())
        click.echo(f"{part}: {', '.join(shown)}")
    click.echo(f"written: {path}, {path.with_suffix('.arrow').name}")
    return path


class _Evaluation:
    """Opened and checked inputs, and the results so far: `metrics` and `baseline` by part, `rows`."""

    def __init__(self, config: EvalConfig) -> None:
        self.config, self.shards = config, open_verified(config.shards)
        self.tokenizer = JanusTokenizer((self.shards.folder / TOKENIZER).parent)
        self.folder = open_model(config.model, self.tokenizer.folder)
        tasks = [task for split, task in self.shards.splits_tasks() if split == config.split]
        if not tasks:
            found = ", ".join(sorted({split for split, _ in self.shards.splits_tasks()}))
            raise UserError(f"--split {config.split}: {self.shards.folder} has no such rows, only {found}")
        check_model(config.model, tasks, self.folder, self.shards, self.tokenizer)
        self.samples: dict[str, list[Sample]] = {}
        for task in tasks:
            rows = select_rows(self.shards.rows(config.split, task), (), config.samples)
            self.samples[task] = [rows.read(i) for i in range(len(rows))]
        self.pubmed: PubmedQuestions | None = None
        if config.pubmedqa_test:
            self.pubmed = find_questions(self.shards, config.pubmedqa_test, self.tokenizer)
            self.samples.setdefault("text", [])
        self.metrics: dict[str, dict[str, float]] = {}
        self.baseline: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, task: str, samples: list[Sample], model: Janus) -> None:
        """Score one task's samples; with text, PubMedQA's candidate answers go through the same graph."""
        pubmed = self.pubmed if task == "text" else None
        scored = [*samples, *pubmed.candidates] if pubmed else samples
        image, special = ImageShape.of(self.folder.config), self.tokenizer.special
        scores = score_samples(model, task, scored, self.config.batch, image, special)
        if samples:
            self.metrics[task] = {"samples": len(samples), **mean_scores(scores[: len(samples)])}
        if samples and task == "vqa":
            self._add_answers(samples, scores, model)
        else:
            self.rows += [
                prediction_row(sample, task, score.nll / score.targets, score.hits / score.targets)
                for sample, score in zip(samples, scores, strict=False)
            ]
        if pubmed:
            figures, self.baseline["pubmedqa"], answers = pubmed.results(scores[len(samples) :])
            self.metrics["pubmedqa"] = figures
            self.rows += [prediction_row(q, "pubmedqa", nll, share, said) for q, nll, share, said in answers]

    def _add_answers(self, samples: list[Sample], scores: list[Score], model: Janus) -> None:
        """Answer vqa questions, and compare with always giving the most frequent training answer."""
        config, answers = self.config, [sample.answer for sample in samples]
        generator = Generator(model, self.tokenizer.special, min(config.batch, len(samples)))
        with track("answers", -(-len(samples) // config.batch) * config.max_tokens, "steps") as advance:
            predictions = generate_answers(generator, self.tokenizer, samples, config.max_tokens, advance)
        self.metrics["vqa"] |= answer_metrics(predictions, answers)
        if ("train", "vqa") in self.shards.splits_tasks():
            always = commonest(self.shards.rows("train", "vqa").column("answer").to_pylist())
            self.baseline["vqa"] = always
            figures = answer_metrics([always] * len(samples), answers)
            figures = {f"baseline_{name}": x for name, x in figures.items() if "questions" not in name}
            self.metrics["vqa"] |= figures
        for sample, score, text in zip(samples, scores, predictions, strict=True):
            f1, nll = token_f1(text, sample.answer), score.nll / score.targets
            self.rows.append(prediction_row(sample, "vqa", nll, f1, text))

    def draw(self, task: str, model: Janus) -> tuple[np.ndarray, dict[str, object]] | None:
        """Held-out pictures above drawn ones, uint8 (H, W, 3), and the facts that go into the file.

        Only samples of one drawn picture; for edits, what was shown comes first. None if there are none.
        """
        config, tokens = self.config, self.folder.config.num_image_tokens
        samples = [s for s in self.samples.get(task, ()) if len(s.image_tokens) == tokens][: config.pictures]
        if not samples:
            return None
        sampling, special = Sampling(seed=config.seed), self.tokenizer.special
        generator = Generator(model, special, min(config.batch, len(samples)))
        prompts = [Prompt(before_answer(s.input_ids, s.supervised, special), s.images) for s in samples]
        with track("pictures", -(-len(samples) // config.batch) * tokens, "steps") as advance:
            drawn = list(generator.pictures(prompts, range(len(samples)), sampling, advance))
        decode = vq_decoder(self.folder)
        grid = [[sample.images[-1] for sample in samples]] if task == "edit" else []
        grid += [[decode(codes) for codes in row] for row in ([s.image_tokens for s in samples], drawn)]
        facts: dict[str, object] = {"model": config.model, **vars(sampling)}
        facts |= {f"prompt {i}": sample.prompt for i, sample in enumerate(samples)}
        return np.concatenate([np.concatenate(row, 1) for row in grid]), facts


def prediction_row(
    sample: Sample, part: str, nll: float, score: float, prediction: str | None = None
) -> dict[str, Any]:
    """One row of PREDICTIONS."""
    correct = None if prediction is None else exact_match(prediction, sample.answer)
    figures = {"part": part, "nll": nll, "score": score, "prediction": prediction, "correct": correct}
    return {name: getattr(sample, name, None) for name in _TEXTS} | figures
