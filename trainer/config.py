"""Every option of the trainer's commands: name, default, help and accepted values.

The fields of `TrainConfig` are both the options and the YAML keys of `trainer train`. An option overrides the
recipe, a recipe the stage's defaults (`janus/model/stages.py`), and those the defaults here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any, Self

import click

from janus.common.errors import UserError
from janus.common.options import (
    BEST_DTYPE,
    DEVICE,
    DEVICE_ID,
    DTYPE,
    FILE,
    FOLDER,
    MODE,
    Names,
    option,
    option_fields,
    read_options,
)
from janus.device import MOST_SEGMENTS, check_dtype, use
from janus.model.stages import STAGES, trained_parts
from janus.prompts import SPLITS, TASK_ORDER, TASKS

CONFIG = "config.yaml"  # a run's options
RECIPES = Path(__file__).parent / "recipes"


class PerTask(click.ParamType):
    """A number for each task, as a dict: `vqa=100,t2i=80`, a YAML mapping, or `5:1:4` for vqa:text:t2i."""

    name = "V:T:I"
    takes_lists = True

    def __init__(self, number: click.ParamType) -> None:
        self._number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = value if isinstance(value, str) else ""
        if isinstance(value, Mapping):
            pairs = list(value.items())
        elif "=" in text:
            pairs = [part.partition("=")[::2] for part in text.split(",") if part.strip()]
        elif text.count(":") == 2:
            pairs = list(zip(TASK_ORDER, text.split(":"), strict=False))
        else:
            self.fail(f"expected 5:1:4 (vqa:text:t2i) or vqa=5,text=1,t2i=4, got {value!r}", param, ctx)
        numbers: dict[str, Any] = {}
        for name, number in pairs:
            if (task := str(name).strip()) not in TASK_ORDER or task in numbers:
                self.fail(f"expected {', '.join(TASK_ORDER)}, each at most once, got {task!r}", param, ctx)
            numbers[task] = self._number(str(number).strip())
        return numbers


_COUNT = click.IntRange(min=0)
_SIZE = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
_SCHEDULE = click.Choice(["constant", "cosine", "linear"])
_DECAY = click.FloatRange(min=0, max=1, max_open=True)

# in_graph: whether the option is part of a kept graph's key. Arguments of a graph are not.
_what = partial(option, group="What to train", in_graph=True)
_data = partial(option, group="Data", in_graph=False)
_rule = partial(option, group="Optimizer", in_graph=True)
_step = partial(option, group="Optimizer", in_graph=False)
_run = partial(option, group="Run", in_graph=False)
_compute = partial(option, group="Computation", in_graph=True)
_place = partial(option, group="Computation", in_graph=False)


@dataclass(frozen=True)
class TrainConfig:
    """The resolved options of one training run, made by `resolve`."""

    task: str = _what("mixed", "What to train on.", click.Choice([*TASKS, "mixed"]))
    stage: int = _what(
        3, "1: aligners and image head; 2: also the language model; 3: also SigLIP.", click.Choice([*STAGES])
    )
    train_gen_embed: bool = _what(
        True, "Train the embedding table of generated images too; untrained, it is noise to its aligner."
    )
    model: str = _what("tiny", "Folder, or preset (random weights).", metavar="DIR|PRESET", in_graph=False)
    shards: str = _data("data/shards", "Folder of shards.", metavar="DIR")
    sources: tuple[str, ...] = _data((), "Use only samples of these sources.", Names(), shown="all")
    ratio: Mapping[str, int] = _data(
        STAGES[3].ratio,
        "Samples of vqa:text:t2i (or vqa=5,text=1,t2i=4,edit=2) in every mixed step, exactly; 0 leaves a "
        "task out.",
        PerTask(_COUNT),
        shown="the stage's: 1:0:3, 2:3:5, 5:1:4",
    )
    samples: Mapping[str, int] = _data(
        {},
        "Use only this many samples per task (vqa=100,text=20,t2i=80), chosen by the hash of their id. A "
        "mixed run then trains the named tasks, in the ratio of these numbers.",
        PerTask(_COUNT),
        shown="all",
        metavar="TASK=N,…",
    )
    max_length: int = _data(1024, "Tokens of a sample, at most: longer ones are refused, never cut.", _SIZE)
    null_prompt_prob: float = _data(
        0.1, "Share of prompts to draw from that are nulled, for classifier-free guidance.", _DECAY
    )
    loss_weight: Mapping[str, float] = _data(
        {},
        "Weight of a task's targets in the step's mean loss (vqa=4,t2i=1).",
        PerTask(_ABOVE_ZERO),
        shown="1 each: every target counts the same",
        metavar="TASK=X,…",
    )

    steps: int = _step(100, "Optimizer steps.", _SIZE)
    batch_size: int = _step(
        10, "Samples per step, all tasks; a multiple of the ratio's sum.", _SIZE, shown="smallest from 8 on"
    )
    micro_batch: int = _step(
        8, "Samples in a micro-batch, at most.", click.IntRange(1, MOST_SEGMENTS - 1)
    )  # padding is a segment, too
    learning_rate: float = _step(
        STAGES[3].learning_rate, "Peak learning rate.", _ABOVE_ZERO, shown="the stage's: 1e-3, 1e-4, 4e-5"
    )
    schedule: str = _step("constant", "After warm-up: constant, or decaying to zero by the end.", _SCHEDULE)
    warmup_steps: int = _step(
        STAGES[3].warmup_steps,
        "Steps over which the learning rate rises linearly.",
        _COUNT,
        shown="the stage's: 600, 5000, 0, but at most a tenth of the steps",
    )
    beta1: float = _rule(0.9, "AdamW's decay of the first moment.", _DECAY)
    beta2: float = _rule(0.95, "AdamW's decay of the second moment.", _DECAY)
    eps: float = _step(1e-8, "AdamW's epsilon.", _ABOVE_ZERO)
    weight_decay: float = _step(0.0, "AdamW's decoupled weight decay.", click.FloatRange(min=0))
    clip_norm: float = _step(1.0, "Clip the gradient to this global norm.", _ABOVE_ZERO)
    skip_nonfinite: int = _step(0, "Non-finite steps to discard; one more stops the run.", _COUNT)
    out: str = _run("", "Folder of the run.", metavar="DIR", shown="outputs/TASK-001, the next free number")
    seed: int = _run(0, "Seed of the order of samples and the choice of nulled prompts.", _COUNT)
    save_every: int = _run(500, "Steps between checkpoints; 0: only after the last step.", _COUNT)
    keep: int = _run(3, "Keep this many checkpoints, the newest.", _SIZE)
    log_every: int = _run(1, "Steps between log lines.", _SIZE)
    tensorboard: bool = _run(False, "Write TensorBoard event files as well as metrics.jsonl.")
    eval_every: int = _run(0, "Steps between evaluations; 0: only losses, before and after.", _COUNT)
    eval_samples: int = _run(32, "Validation samples per task; 0: no validation.", _COUNT)
    mode: str = _compute("graph", "Compiled graphs, or op by op: the same numbers up to rounding.", MODE)
    device: str = _compute("auto", "Where to compute.", DEVICE)
    device_id: int = _place(0, "Which Ascend, where there are several.", DEVICE_ID)
    dtype: str = _compute(
        "auto",
        "What products compute in; masters, moments and sums are float32.",
        DTYPE,
        shown=BEST_DTYPE,
    )
    deterministic: bool = _place(
        True,
        "Ascend: sums keep their order, so that a resumed run repeats bits; slower. On CPU they always do.",
    )
    gradient_checkpointing: bool = _compute(False, "Recompute activations: less memory, a third more time.")

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each task in every step."""
        return counts_per_step(step_ratio(self.task, self.ratio, self.samples), self.batch_size)

    @property
    def trained_parts(self) -> frozenset[str]:
        """Parts of the network that are trained, as `janus.model.janus.PARTS` names them."""
        return trained_parts(self.stage, self.train_gen_embed)

    def on_device(self) -> Self:
        """With device and dtype resolved and in use from now on. Raises as `janus.device.use`."""
        used = use(self.device, self.dtype, self.device_id, self.deterministic)
        return replace(self, device=used.device, dtype=used.dtype)

    def asdict(self) -> dict[str, Any]:
        """Plain values for config.yaml; `resolve` takes them back."""
        plain = asdict(self)
        for name in ("ratio", "samples", "loss_weight"):
            plain[name] = {task: plain[name][task] for task in TASK_ORDER if task in plain[name]}
        return {**plain, "sources": list(self.sources)}

    def in_graphs(self) -> dict[str, Any]:
        """The options that decide a compiled graph besides sources and its arguments' shapes."""
        values = self.asdict()
        return {name: values[name] for name, entry in FIELDS.items() if entry.metadata["in_graph"]}


FIELDS = option_fields(TrainConfig)


@dataclass(frozen=True)
class EvalConfig:
    """The options of `trainer eval`. out: the folder whose `eval/` gets the results."""

    out: Path
    model: str = option(None, "Evaluate this model.", metavar="DIR|HUB_ID", shown="OUT's newest checkpoint")
    shards: Path = option(None, "Folder of shards.", FOLDER, shown="what OUT was trained on")
    split: str = option("validation", "Held-out split to evaluate.", click.Choice(SPLITS[1:]))
    samples: int = option(500, "Samples of each task, at most; the same ones each time.", _SIZE)
    pubmedqa_test: Path | None = option(
        None, "PubMedQA's test_ground_truth.json: answer yes, no or maybe, whichever is likeliest.", FILE
    )
    pictures: int = option(
        4, "Held-out captions, and edits, to draw; shown with their original pictures.", _COUNT
    )
    max_tokens: int = option(32, "Longest vqa answer in tokens.", _SIZE)
    batch: int = option(8, "Samples at a time.", _SIZE)
    seed: int = option(0, "Seed of the drawn pictures.", _COUNT)
    device: str = option("auto", "Where to compute.", DEVICE)
    device_id: int = option(0, "Which Ascend, where there are several.", DEVICE_ID)
    dtype: str = option("auto", "What products compute in.", DTYPE, shown=BEST_DTYPE)


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """The values of a YAML file, or of a shipped recipe by its name. UserError names file and field."""
    for path in (Path(name_or_path), RECIPES / f"{name_or_path}.yaml"):
        if path.is_file():
            return read_options(path, TrainConfig)
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise UserError(f"--config {name_or_path}: no such file, nor one of the recipes {names}")


def resolve(given: Mapping[str, Any]) -> TrainConfig:
    """The configuration from a recipe's values and the command line's. UserError names contradictions."""
    stage = STAGES[given.get("stage", TrainConfig.stage)]
    # At most a tenth: a short trial of stage 2 would otherwise end within its 5000 steps of warm-up.
    warmup_steps = min(stage.warmup_steps, given.get("steps", TrainConfig.steps) // 10)
    defaults = {"learning_rate": stage.learning_rate, "ratio": stage.ratio, "warmup_steps": warmup_steps}
    config = TrainConfig(**{**defaults, **given})
    if "batch_size" not in given:  # the smallest from 8 on
        total = sum(step_ratio(config.task, config.ratio, config.samples).values())
        config = replace(config, batch_size=-(-8 // total) * total)
    counts = config.counts  # raises where the batch cannot hold the ratio
    if config.task != "mixed" and config.samples.get(config.task) == 0:
        raise UserError(f"samples: {config.task}=0 leaves nothing to train on")
    if config.stage == 1 and "text" in counts:
        remedy = "leave text out (--ratio 1:0:3) or use another"
        raise UserError(f"stage: 1 trains nothing that text passes through; {remedy}")
    check_dtype(config.dtype, config.device)
    return config


def step_ratio(task: str, ratio: Mapping[str, int], samples: Mapping[str, int]) -> dict[str, int]:
    """Samples per task in the smallest exact step, without tasks that have none; UserError if there are none.

    Fixed numbers of samples decide the ratio, so that each is seen equally often.
    """
    if task != "mixed":
        return {task: 1}
    chosen = samples or ratio
    parts = {name: chosen[name] for name in TASK_ORDER if chosen.get(name, 0)}
    if not parts:
        raise UserError("ratio: every task has 0; give at least one task a share, for example 5:1:4")
    shared = gcd(*parts.values())
    return {name: part // shared for name, part in parts.items()}


def counts_per_step(ratio: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """Samples of each task in every step. UserError with sizes that hold the ratio if this one does not."""
    total = sum(ratio.values())
    if batch_size % total:
        below, written = batch_size // total * total, ",".join(f"{task}={n}" for task, n in ratio.items())
        use = " or ".join(str(size) for size in (below, below + total) if size)
        raise UserError(f"batch_size: {batch_size} samples cannot be {written} exactly; use {use}")
    return {task: part * batch_size // total for task, part in ratio.items()}
