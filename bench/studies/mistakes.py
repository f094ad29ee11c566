"""What known mistakes cost: `python -m bench.studies.mistakes` trains with each, and without, and prints it.

The product has no option for a mistake: each is a few lines here that change a step's data, its loss scales
or its weights. All runs start from the same weights, on the embedded sample and `tiny`; a run without a
mistake on other samples shows how much a figure moves by chance. docs/mistakes.md discusses one session.

bfloat16 has no kernels on CPU: weights are rounded to it after each update, which is exactly what a bfloat16
weight would hold, while products and moments stay float32.
"""

# Shapes: P flat tokens, B rows of S attention slots, N states that predict; see trainer/stream/shapes.py.

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from bench.ascend.emulation.rounding import to_bfloat16
from bench.measures.link import ROOT
from bench.measures.workload import run as run_command
from janus.common.files import write_text
from janus.prompts import Message, encode_samples, unconditional
from janus.tokens import IGNORE, SpecialTokens
from trainer.config import load_recipe, resolve
from trainer.evaluate.scores import mean_scores
from trainer.optimizer import learning_rate
from trainer.run.open import open_run
from trainer.stream.feed import StepData, steps_ahead
from trainer.stream.shapes import Batch

LOW_RATE = 1e-5  # as low as fine-tuning goes; Janus-Pro's own last stage is at 4e-5
CHANCE = 3  # a difference shows where it is larger than so many times what other samples make
HELD_OUT = 16  # validation samples of each task
TASKS = ("vqa", "text", "t2i")
RIGHT, OTHER, FIRST = "right", "right, other samples", "first token untrained"
EMPTY, MEANS, BFLOAT16 = "empty caption as null prompt", "per-task means", "bfloat16 weights"
MISTAKES = (FIRST, EMPTY, MEANS, BFLOAT16)
LOW, LOW_BFLOAT16 = "right at 1e-5", "bfloat16 weights at 1e-5"

Figures = dict[str, float]


def summed_scales(data: StepData) -> dict[str, float]:
    """What each task's summed loss is multiplied with, as shipped: 1 / supervised tokens of the step."""
    return dict.fromkeys((task for task, _ in data.batches), 1.0 / data.supervised)


def mean_scales(data: StepData) -> dict[str, float]:
    """The mistake: each task's loss over its own supervised tokens, then the mean of the tasks."""
    tokens: dict[str, int] = {}
    for task, batch in data.batches:
        tokens[task] = tokens.get(task, 0) + batch.supervised
    return {task: 1.0 / (len(tokens) * count) for task, count in tokens.items()}


def of_pictures(edit: Callable[[Batch], Batch]) -> Callable[[StepData], StepData]:
    """The edit of a t2i batch as one of a step's data."""

    def edited(data: StepData) -> StepData:
        batches = [(task, edit(batch) if task == "t2i" else batch) for task, batch in data.batches]
        return StepData(batches, data.drawn)

    return edited


def without_first_tokens(batch: Batch) -> Batch:
    """The mistake: the labels of each picture's first token are ignored, N is one fewer a picture."""
    return _labels_kept(batch, ~_first_tokens(batch))


def _first_tokens(batch: Batch) -> np.ndarray:
    """Which of a t2i batch's N states predict the first token of a picture."""
    assert batch.image_labels_N is not None
    assert batch.image_tokens_IT is not None
    return np.arange(len(batch.image_labels_N)) % batch.image_tokens_IT.shape[1] == 0


def _labels_kept(batch: Batch, kept_N: np.ndarray) -> Batch:
    assert batch.image_labels_N is not None
    labels_N = np.where(kept_N, batch.image_labels_N, IGNORE)
    return replace(batch, image_labels_N=labels_N, supervised=int((labels_N != IGNORE).sum()))


def _samples(batch: Batch) -> list[slice]:
    """Where each sample's tokens lie on the flat axis."""
    starts = np.flatnonzero(batch.position_ids_P[: batch.tokens] == 0).tolist()
    return [slice(start, end) for start, end in pairwise([*starts, batch.tokens])]


def with_empty_captions(batch: Batch, empty: np.ndarray, special: SpecialTokens) -> Batch:
    """The mistake: a nulled prompt becomes a whole prompt with an empty caption.

    empty: the ids of such a sample. They stand at the end of the nulled sample's tokens, with positions of
    their own; what is left over at its beginning is a segment that nothing else sees.
    """
    assert batch.slot_of_P is not None and batch.segment_ids_BS is not None  # noqa: PT018 - as on a CPU
    arrays = batch.input_ids_P, batch.position_ids_P, batch.segment_ids_BS
    ids_P, positions_P, segments_BS = (array.copy() for array in arrays)
    for sample in _samples(batch):
        if np.array_equal(ids_P[sample], unconditional(ids_P[sample], special)):
            start = sample.stop - len(empty)
            ids_P[start : sample.stop] = empty
            positions_P[start : sample.stop] = np.arange(len(empty))
            unused = batch.slot_of_P[sample.start : start]
            segments_BS.reshape(-1)[unused] = batch.segment_ids_BS.max() + 1 + sample.start
    return replace(batch, input_ids_P=ids_P, position_ids_P=positions_P, segment_ids_BS=segments_BS)


def unprompted(batch: Batch, special: SpecialTokens) -> Batch:
    """A t2i batch with each sample as guidance's unconditional one."""
    ids_P = batch.input_ids_P.copy()
    for sample in _samples(batch):
        ids_P[sample] = unconditional(ids_P[sample], special)
    return replace(batch, input_ids_P=ids_P)


def lost_share(
    before: Sequence[np.ndarray], updated: Sequence[np.ndarray], kept: Sequence[np.ndarray]
) -> float:
    """Of all weights that the update changed, the share that rounding put back to what it was."""
    changed = [old != new for old, new in zip(before, updated, strict=True)]
    same = [old == new for old, new in zip(before, kept, strict=True)]
    undone = sum(int((c & s).sum()) for c, s in zip(changed, same, strict=True))
    return undone / max(1, sum(int(c.sum()) for c in changed))


@dataclass(frozen=True)
class Case:
    """One run. first: the plan's step it begins with. rate: constant; None: the recipe's schedule."""

    edit: Callable[[StepData], StepData] = lambda data: data
    scales: Callable[[StepData], dict[str, float]] = summed_scales
    bfloat16: bool = False
    first: int = 1
    rate: float | None = None


class Bench:
    """One compiled network that every case is run through, and what it is measured on."""

    def __init__(self, shards: Path, model: str, steps: int, out: Path) -> None:
        """Open shards and model. Raises UserError where they do not fit together."""
        from trainer.step import TrainStep

        self.steps = steps
        # Twice the steps, so that a run on the plan's next steps has the same shapes.
        options = {"shards": str(shards), "model": model, "out": str(out), "steps": 2 * steps}
        recipe = load_recipe("sample")
        self._lock = ExitStack()
        self.run = open_run(resolve({**recipe, **options, "eval_samples": HELD_OUT}), self._lock)
        self.special = self.run.tokenizer.special
        self.model = self.run.folder.build()
        self.network = TrainStep(self.model, self.run.feed.signatures, self.run.config)
        self.initial = self.weights()
        self._moments = {name: tensor.asnumpy() for name, tensor in self.network.optimizer.state().items()}
        feed = self.run.feed
        self.held_out = {task: list(feed.validation_batches(task)) for task in feed.validation}
        caption = [Message("user", ""), Message("assistant", "", ["a picture"])]
        (empty,) = encode_samples(self.run.tokenizer, [caption], feed.shapes["t2i"].image.tokens)
        self.empty_caption = empty.input_ids

    def cases(self) -> dict[str, Case]:
        """The runs from the first weights on."""
        return {
            RIGHT: Case(),
            OTHER: Case(first=self.steps + 1),
            FIRST: Case(of_pictures(without_first_tokens)),
            EMPTY: Case(of_pictures(lambda x: with_empty_captions(x, self.empty_caption, self.special))),
            MEANS: Case(scales=mean_scales),
            BFLOAT16: Case(bfloat16=True),
        }

    def weights(self) -> list[np.ndarray]:
        """A copy of every weight."""
        return [parameter.asnumpy().copy() for parameter in self.model.get_parameters()]

    def set_weights(self, weights: Iterable[np.ndarray]) -> None:
        """Give every weight a value."""
        import mindspore as ms
        from mindspore import ops

        for parameter, values in zip(self.model.get_parameters(), weights, strict=True):
            ops.assign(parameter, ms.Tensor(values))

    def train(self, case: Case, weights: Iterable[np.ndarray], steps: int) -> Figures:
        """Run one case from these weights, with new moments; the network keeps what it has learned."""
        import mindspore as ms

        self.set_weights(map(to_bfloat16, weights) if case.bfloat16 else weights)
        self.network.optimizer.load_state({name: ms.Tensor(array) for name, array in self._moments.items()})
        before = self.losses()
        lost = []
        for number, data, _ in steps_ahead(self.run.feed, case.first, case.first + steps - 1):
            data = case.edit(data)
            lost.append(self._step(case, data, self._rate(case, number - case.first + 1)))
        after = self.losses()
        falls = {f"fall of {task}": before[task] - after[task] for task in before}
        return {**after, **falls, **self._gradients(case, data), "lost": float(np.mean(lost))}

    def _rate(self, case: Case, step: int) -> float:
        """Learning rate of a case's step `step`, 1 is the first."""
        config, warmup = self.run.config, min(self.run.config.warmup_steps, self.steps // 2)
        return case.rate or learning_rate(step, replace(config, warmup_steps=warmup, steps=self.steps))

    def _step(self, case: Case, data: StepData, rate: float) -> float:
        """One optimizer step; the share of its changes to weights that rounding undid (0 in float32)."""
        self._accumulate(case, data, TASKS)
        before = self.weights() if case.bfloat16 else []
        self.network.measure()
        self.network.apply(rate)
        if not case.bfloat16:
            return 0.0
        updated = self.weights()
        kept = [to_bfloat16(values) for values in updated]
        self.set_weights(kept)
        return lost_share(before, updated, kept)

    def _accumulate(self, case: Case, data: StepData, tasks: Sequence[str]) -> None:
        """Forward and backward of these tasks' micro-batches, scaled as the case has it."""
        scales = case.scales(data)
        for task, batch in data.batches:
            if task in tasks:
                self.network.accumulate(task, batch, scales[task])

    def losses(self) -> Figures:
        """Held out: each task's loss, and −log p of pictures' first tokens and of unprompted pictures."""
        pictures = self.held_out["t2i"]
        firsts = [_labels_kept(batch, _first_tokens(batch)) for batch in pictures]
        nulled = [unprompted(batch, self.special) for batch in pictures]
        losses = {task: self._loss(task, batches) for task, batches in self.held_out.items()}
        return {**losses, "first": self._loss("t2i", firsts), "unprompted": self._loss("t2i", nulled)}

    def _loss(self, task: str, batches: Iterable[Batch]) -> float:
        return mean_scores([self.network.evaluate(task, batch) for batch in batches])["loss"]

    def _gradients(self, case: Case, data: StepData) -> Figures:
        """Each task's share of the sum of the tasks' gradient norms; nothing is applied."""
        norms = {}
        for task in self.held_out:
            self._accumulate(case, data, [task])
            norms[task] = self.network.measure().grad_norm
            self.network.discard()
        return {f"gradient of {task}": norm / sum(norms.values()) for task, norm in norms.items()}


def table(runs: Mapping[str, Figures]) -> str:
    """A line for each run, a column for each figure; * marks what a mistake moves by more than chance."""
    names = list(runs[RIGHT])
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for run, figures in runs.items():
        cells = []
        for name, value in figures.items():
            right, other = runs[RIGHT][name], runs[OTHER][name]
            moved = run in MISTAKES and abs(value - right) > CHANCE * abs(other - right)
            cells.append(f"{value:.4f}{'*' if moved else ''}")
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--steps", type=click.IntRange(min=2), default=120, help="Optimizer steps of a run.")
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "data" / "mistakes", help="Folder.")
def main(steps: int, work: Path) -> None:
    """Train with each known mistake and without; the figures go to the terminal and WORK/figures.json."""
    sample, shards = work / "sample", work / "shards"
    model = str(sample / "tiny")
    run_command("pipelines", "sample", "--data", str(sample))
    folders = ["--data", str(sample), "--work", str(work / "work"), "--out", str(shards)]
    run_command("pipelines", "build", *folders, "--tokenizer", str(sample / "tokenizer"), "--model", model)
    runs = measure(Bench(shards, model, steps, work / "run"))
    write_text(work / "figures.json", json.dumps({"steps": steps, "runs": runs}, indent=1) + "\n")
    click.echo(table(runs))


def measure(bench: Bench) -> dict[str, Figures]:
    """The figures of every run; the last two start where the right one ended, rounded to bfloat16."""
    runs, ends = {}, {}
    for name, case in bench.cases().items():
        runs[name] = bench.train(case, bench.initial, bench.steps)
        ends[name] = bench.weights()
    rounded = [to_bfloat16(values) for values in ends[RIGHT]]
    for name, bfloat16 in ((LOW, False), (LOW_BFLOAT16, True)):
        case = Case(bfloat16=bfloat16, rate=LOW_RATE)
        runs[name] = bench.train(case, rounded, max(2, bench.steps // 3))
    return runs


if __name__ == "__main__":
    main()
