"""The folder of a run, and all that is opened, checked and said before the first step."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.errors import UserError
from janus.common.files import exclusive_lock, hash_file, write_text
from janus.device import check_head_sizes
from janus.model.janus import PARTS, Janus, part_of
from janus.prompts import SIGNATURES
from janus.tokens import JanusTokenizer
from shards.compare.check import open_verified
from shards.manifest import MANIFEST, TOKENIZER
from shards.read import ShardSet
from trainer.config import CONFIG, TrainConfig
from trainer.run.checkpoint import SHAPES, RunCheckpoint, RunState, fingerprint, newest_checkpoint
from trainer.stream.feed import Feed
from trainer.stream.shapes import ImageShape

OUTPUTS = Path("outputs")  # where runs without --out go


@dataclass(frozen=True)
class Run:
    """A run, opened and checked. checkpoint: what it resumes from."""

    config: TrainConfig
    out: Path
    shards: ShardSet
    folder: ModelFolder
    tokenizer: JanusTokenizer
    feed: Feed
    state: RunState
    checkpoint: RunCheckpoint | None

    @property
    def steps_done(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0


def open_run(
    config: TrainConfig, lock: ExitStack, resume: bool = False, accepted: Collection[str] = ()
) -> Run:
    """Open and check everything that a run needs; UserError for whatever does not fit together.

    A resumed run is locked before its checkpoint is sought; a new run's folder is made last, so that a start
    that fails leaves none. Static shapes are the resumed run's own where nothing differs; if they do not hold
    the remaining steps, larger ones must be accepted. Then `trainer/train.py` writes config.yaml, truncates
    metrics and ledger to the checkpoint's step, and loads the optimizer's state.

    lock: locks out other trainers until it closes. accepted: fields that may differ from the resumed run.
    """
    config = config.on_device()
    out, checkpoint = named_folder(config, resume), None
    if out and resume:
        lock_folder(out, lock)
        checkpoint = newest_checkpoint(out, click.echo)
    shards = open_verified(Path(config.shards))
    now = fingerprint(config, hash_file(shards.folder / MANIFEST))
    shapes = checkpoint.kept_shapes(now, accepted) if checkpoint else {}
    tokenizer = JanusTokenizer((shards.folder / TOKENIZER).parent)
    folder = open_model(str(checkpoint.folder) if checkpoint else config.model, tokenizer.folder)
    check_head_sizes(folder.config.head_sizes, config.dtype)
    check_model(config.model, config.counts, folder, shards, tokenizer)
    feed = Feed(shards, config, tokenizer.special, ImageShape.of(folder.config), shapes)
    now[SHAPES] = {task: shape.sizes for task, shape in feed.shapes.items()}
    state = checkpoint.resumed_state(now, accepted) if checkpoint else RunState(now)
    if not resume:
        out = out or next_free_folder(config.task)
        lock_folder(out, lock)
        named_folder(config, resume)  # another run may have started there while this one opened its shards
    assert out is not None
    return Run(config, out, shards, folder, tokenizer, feed, state, checkpoint)


def check_model(
    name: str, tasks: Iterable[str], folder: ModelFolder, shards: ShardSet, tokenizer: JanusTokenizer
) -> None:
    """Raise UserError unless tokenizer and codes of the shards are the model's; the user calls it `name`."""
    own = folder.path / "tokenizer.json" if folder.path else None
    if own and own.is_file() and hash_file(own) != shards.manifest.tokenizer["sha256"]:
        remedy = f"build the shards with --tokenizer {name}"
        raise UserError(f"{own}: not the tokenizer of {shards.folder}; {remedy}")
    if (rows := folder.config.text.vocab_size) <= tokenizer.highest_id:
        raise UserError(
            f"model {name}: its embedding table has {rows} rows, the tokenizer of {shards.folder} has ids up "
            f"to {tokenizer.highest_id}; give the model that the shards were built for"
        )
    if any(SIGNATURES[task].drawn for task in tasks):
        folder.check_codes(shards.manifest.vq, shards.folder)


def named_folder(config: TrainConfig, resume: bool) -> Path | None:
    """The folder that --out names, or None. UserError if it holds a run without `resume`, or none with it."""
    out = Path(config.out)
    if resume and not config.out:
        newest = max(OUTPUTS.glob(f"*/{CONFIG}"), default=None, key=lambda path: path.stat().st_mtime)
        hint = f"; the newest is {newest.parent}" if newest else ""
        raise UserError(f"--resume needs --out, the folder of the run{hint}")
    if resume and not (out / CONFIG).is_file():
        raise UserError(f"--resume: {out} holds no run ({CONFIG} is missing)")
    if config.out and not resume and (out / CONFIG).exists():
        raise UserError(f"--out {out}: already holds a run; resume it (--resume) or choose another folder")
    return out if config.out else None


def next_free_folder(task: str) -> Path:
    """Make `outputs/TASK-001`, or the first number after it that is free."""
    number = 0
    while True:
        folder = OUTPUTS / f"{task}-{(number := number + 1):03d}"
        with suppress(FileExistsError):  # an older run, or one that started this moment
            folder.mkdir(parents=True)
            return folder


def lock_folder(out: Path, stack: ExitStack) -> None:
    """Make the folder if it is missing; lock out other trainers until `stack` closes, or raise UserError."""
    busy = f"--out {out}: another trainer is at work in this folder; wait for its end, or choose another"
    try:
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(exclusive_lock(out / ".lock", busy))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error}); choose another folder") from None


def write_config(out: Path, config: TrainConfig, changes: Iterable[Mapping[str, Any]] = ()) -> None:
    """Write the options, all but `out`, as a recipe for --config; below it `RunState.changes` as comments."""
    content = {name: value for name, value in config.asdict().items() if name != "out"}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    for change in changes:
        text += "# from step {step} on: {field} was {old!r}, now {new!r}\n".format_map(change)
    write_text(out / CONFIG, text)


def evaluated(out: Path, model: str | None, shards: Path | None) -> tuple[str, Path]:
    """(model, shards) to evaluate; for None, the run's newest checkpoint and its shards, or UserError."""
    if model and shards:
        return model, shards
    if not (out / CONFIG).is_file():
        raise UserError(f"{out} holds no run ({CONFIG} is missing); give --model and --shards")
    if model is None:
        checkpoint = newest_checkpoint(out, click.echo, rename=False)
        if checkpoint is None:
            raise UserError(f"{out} has no checkpoint yet; give --model, or wait for one")
        model = str(checkpoint.folder)
    return model, shards or Path(yaml.safe_load((out / CONFIG).read_text(encoding="utf-8"))["shards"])


def describe_data(run: Run, say: Callable[[str], None]) -> None:
    """Say everything that follows from configuration and shards."""
    config, feed = run.config, run.feed
    if run.checkpoint:
        say(f"resume: step {run.steps_done} of {run.checkpoint.folder}")
    say(f"run: {run.out}, task {config.task}, stage {config.stage}, seed {config.seed}")
    say(f"device: {config.device}, {config.mode} mode, {config.dtype}, weights and moments float32")
    say(f"model: {run.folder.description}")
    say(f"shards: {run.shards.folder}, {len(run.shards.manifest.shards)} files, verified")
    counts = " + ".join(f"{count} {task}" for task, count in config.counts.items())
    say(f"step: {config.batch_size} samples = {counts}; {config.steps} steps")
    for task, shape in feed.shapes.items():
        used, validation = len(feed.train[task]), len(feed.validation.get(task, ()))
        wanted = config.samples.get(task, used)
        fewer = f" (of {wanted} wanted)" if wanted > used else ""
        say(
            f"{task}: {used} rows{fewer}, {feed.plan.epochs(task, config.steps):.2f} epochs; {validation} "
            f"for validation; {feed.cuts[task][0]} × {shape.samples} samples in {shape.tokens} tokens, "
            f"{shape.states + shape.codes} states, attention {shape.attention_rows} × {shape.length}² a "
            "micro-batch"
        )
    longer = " (more than the run has)" if config.warmup_steps > config.steps else ""
    say(
        f"rate: {config.learning_rate:g} {config.schedule}, {config.warmup_steps} steps of warm-up{longer}; "
        f"AdamW {config.beta1:g}/{config.beta2:g}, decay {config.weight_decay:g}, clip {config.clip_norm:g}"
    )


def describe_network(model: Janus, trained: Collection[str], say: Callable[[str], None]) -> None:
    """Say how many elements of each part are trained and frozen. trained: names of parameters."""
    counts: dict[str, Counter[str]] = {"trained": Counter(), "frozen": Counter()}
    for p in model.get_parameters():
        counts["trained" if p.name in trained else "frozen"][part_of(p.name)] += p.size
    for kind, parts in counts.items():
        sizes = (f"{part} {parts[part]:,}" for part in PARTS if parts[part])
        say(f"{kind}: {', '.join(sizes) or 'nothing'}")
