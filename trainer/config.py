"""Every option of a run: its name, default, help and what it accepts, in one dataclass.

The command line and the YAML keys are both made from these fields. What is not given comes, in this
order, from the YAML recipe, the stage's row of the report (`janus/model/stages.py`), the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from janus.common.errors import UserError
from janus.model.stages import STAGES
from janus.prompts import TASK_ORDER, TASKS
from trainer import values
from trainer.stream.mix import counts_per_step, default_batch_size, step_ratio
from trainer.values import Kind

CONFIG = "config.yaml"
"""The file of a run that holds its options."""

WHAT, DATA, OPTIMIZER, RUN = "What to train", "Data", "Optimizer", "Run"


def _option(default: Any, kind: Kind, group: str, help: str, shown: str | None = None) -> Any:
    """A field that is an option. shown: the default as help words it, where it is not a constant."""
    default_text = f"{default}" if shown is None else shown
    metadata = {"help": help, "kind": kind, "group": group, "default": default_text}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """One training run, everything resolved. Made by `resolve`; the field's metadata holds its help."""

    task: str = _option("mixed", values.choice(*TASKS, "mixed"), WHAT, "What to train on.")
    stage: int = _option(
        3,
        values.numbered_choice(*STAGES),
        WHAT,
        "1: both aligners and the image head; 2: and the language model; 3: and the vision encoder.",
    )
    train_gen_embed: bool = _option(
        True,
        values.flag(),
        WHAT,
        "Train the embedding table of generated images too. The report does not say; a table that has "
        "never been trained can only be noise to the aligner behind it.",
        shown="yes",
    )
    model: str = _option(
        "tiny", values.text("DIR|PRESET"), WHAT, "A model folder, or a preset with random weights."
    )

    shards: str = _option("data/shards", values.text("DIR"), DATA, "Folder of shards.")
    sources: tuple[str, ...] = _option(
        (), values.names(), DATA, "Use only samples of these sources.", shown="all"
    )
    ratio: Mapping[str, int] = _option(
        STAGES[3].ratio,
        values.task_ratio(),
        DATA,
        "Samples of vqa:text:t2i in every mixed step, in this order, exactly; 0 leaves a task out.",
        shown="the stage's: 1:0:3, 2:3:5, 5:1:4",
    )
    samples: Mapping[str, int] = _option(
        {},
        values.task_counts(),
        DATA,
        "Use only so many samples per task, for example vqa=100,text=20,t2i=80: always the same ones, by "
        "the hash of their id. A mixed run then takes its ratio from them, and only the tasks named.",
        shown="all",
    )
    max_length: int = _option(
        1024, values.whole(1), DATA, "Longest sample in tokens; longer ones stop the start, none is cut."
    )
    null_prompt_prob: float = _option(
        0.1,
        values.number(0, 1),
        DATA,
        "Probability that a t2i sample's prompt is nulled, for classifier-free guidance.",
    )

    steps: int = _option(100, values.whole(1), OPTIMIZER, "Optimizer steps.")
    batch_size: int = _option(
        10,
        values.whole(1),
        OPTIMIZER,
        "Samples per step, all tasks together; a multiple of the ratio's sum.",
        shown="the smallest such multiple from 8 on",
    )
    micro_batch: int = _option(
        8, values.whole(1), OPTIMIZER, "At most so many samples go through a graph at a time."
    )
    learning_rate: float = _option(
        STAGES[3].learning_rate,
        values.number(0, above_low=True),
        OPTIMIZER,
        "Peak learning rate.",
        shown="the stage's: 1e-3, 1e-4, 4e-5",
    )
    schedule: str = _option(
        "constant",
        values.choice("constant", "cosine", "linear"),
        OPTIMIZER,
        "After the warm-up: constant, or down to zero over the remaining steps.",
    )
    warmup_steps: int = _option(
        STAGES[3].warmup_steps,
        values.whole(),
        OPTIMIZER,
        "Steps over which the rate rises linearly.",
        shown="the stage's: 600, 5000, 0, but at most a tenth of the steps",
    )
    beta1: float = _option(0.9, values.number(0, 1), OPTIMIZER, "AdamW's decay of the first moment.")
    beta2: float = _option(0.95, values.number(0, 1), OPTIMIZER, "AdamW's decay of the second moment.")
    eps: float = _option(1e-8, values.number(0, above_low=True), OPTIMIZER, "AdamW's epsilon.")
    weight_decay: float = _option(0.0, values.number(), OPTIMIZER, "AdamW's decoupled weight decay.")
    clip_norm: float = _option(
        1.0, values.number(0, above_low=True), OPTIMIZER, "Largest global norm of the gradient."
    )
    skip_nonfinite: int = _option(
        0,
        values.whole(),
        OPTIMIZER,
        "Steps that may be thrown away for a loss or gradient that is not finite; one more stops the run.",
    )

    out: str = _option(
        "", values.text("DIR"), RUN, "Folder of the run.", shown="outputs/TASK-001, the next free number"
    )
    mode: str = _option(
        "graph", values.choice("graph", "pynative"), RUN, "Compiled graphs, or op by op: the same numbers."
    )
    device: str = _option("auto", values.choice("auto", "CPU", "Ascend"), RUN, "Where to run.")
    dtype: str = _option(
        "float32",
        values.choice("float32", "bfloat16"),
        RUN,
        "What the forward and backward compute in (bfloat16: Ascend only). Weights and moments are float32.",
    )
    gradient_checkpointing: bool = _option(
        False,
        values.flag(),
        RUN,
        "Compute each layer again in the backward instead of keeping what is inside it: less memory, about a "
        "third more time.",
        shown="no",
    )
    seed: int = _option(0, values.whole(), RUN, "Decides the order of samples and which prompts are nulled.")
    save_every: int = _option(500, values.whole(), RUN, "Steps between checkpoints; 0: only the last step.")
    keep: int = _option(3, values.whole(1), RUN, "Checkpoints to keep, the newest.")
    log_every: int = _option(1, values.whole(1), RUN, "Steps between log lines.")
    tensorboard: bool = _option(
        False, values.flag(), RUN, "Write TensorBoard event files beside metrics.jsonl too.", shown="no"
    )
    eval_every: int = _option(
        0,
        values.whole(),
        RUN,
        "Steps between validations, each with a small evaluation: answers to 8 held-out questions, accuracy "
        "of image tokens. 0: the loss alone, before and after.",
    )
    eval_samples: int = _option(32, values.whole(), RUN, "Validation samples per task; 0: no validation.")

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each task in every step."""
        return counts_per_step(step_ratio(self.task, self.ratio, self.samples), self.batch_size)

    def asdict(self) -> dict[str, Any]:
        """Plain values, as config.yaml holds them and `resolve` takes them back."""
        plain = asdict(self)
        for name in ("ratio", "samples"):
            plain[name] = {task: plain[name][task] for task in TASK_ORDER if task in plain[name]}
        return {**plain, "sources": list(self.sources)}


FIELDS: dict[str, Field] = {option.name: option for option in fields(TrainConfig)}


def resolve(given: Mapping[str, Any]) -> TrainConfig:
    """The whole configuration from the values that were given (parsed; recipe and command line merged).

    Raises UserError naming the fields that contradict each other.
    """
    stage = STAGES[given.get("stage", TrainConfig.stage)]
    chosen = {"learning_rate": stage.learning_rate, "ratio": stage.ratio, **given}
    # A short trial of stage 2 would otherwise end within its 5000 steps of warm-up.
    steps = chosen.get("steps", TrainConfig.steps)
    chosen.setdefault("warmup_steps", min(stage.warmup_steps, steps // 10))
    config = TrainConfig(**chosen)
    if "batch_size" not in given:
        ratio = step_ratio(config.task, config.ratio, config.samples)
        config = TrainConfig(**chosen, batch_size=default_batch_size(ratio))
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    counts = config.counts  # raises where the batch cannot hold the ratio
    if config.task != "mixed" and config.samples.get(config.task) == 0:
        raise UserError(f"samples: {config.task}=0 leaves nothing to train on")
    if config.stage == 1 and "text" in counts:
        raise UserError(
            "stage: 1 trains nothing that text passes through; leave text out (--ratio 1:0:3) or use another"
        )
    if config.dtype == "bfloat16" and config.device == "CPU":
        raise UserError("dtype: bfloat16 has no kernels on CPU; use --dtype float32")
