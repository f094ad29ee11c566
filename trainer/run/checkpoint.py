"""Checkpoints: a model folder with the optimizer and the run's place beside it, whole or not there.

`<out>/checkpoints/step-000100/` is a model folder in the transformers layout, so it can be given as
`--model`; `optimizer.safetensors` and `state.json` let a run go on. state.json is written last and holds
the sha256 of every other file, and of itself; the folder gets its name when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.checkpoint.tensors import TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.common.files import FULL, write_folder
from shards.manifest import hash_file
from trainer.config import TrainConfig
from trainer.stream.plan import PLAN_VERSION

if TYPE_CHECKING:
    from mindspore import Tensor

STATE, OPTIMIZER = "state.json", "optimizer.safetensors"

SHAPES = "shapes"
"""The fingerprint's field for the sizes of the batches, which `fingerprint` cannot know."""

_PLACES = ("shards", "out")
_PACE = ("steps", "save_every", "keep", "log_every", "eval_every", "skip_nonfinite")
FREE_TO_CHANGE = frozenset((*_PLACES, *_PACE, "tensorboard"))
"""Options that may differ when a run is resumed: they leave the numbers of a step as they were.

Not mode and device, which round sums differently. Not eval_samples: the longest of them can enlarge the
static shapes."""


@dataclass(frozen=True)
class RunState:
    """What a run must remember beside weights and optimizer; the place in the data is the step alone.

    fingerprint: what must stay as it is. changes: what was changed knowingly on resume (`--resume-with`).
    skipped: the steps whose gradient was not finite and thrown away.
    """

    fingerprint: Mapping[str, Any]
    changes: tuple[Mapping[str, Any], ...] = ()
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, how many steps are in it, and what its run was."""

    folder: Path
    step: int
    state: RunState

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors by name."""
        from mindone.safetensors.mindspore import load_file

        return load_file(self.folder / OPTIMIZER)


def fingerprint(config: TrainConfig, shards_sha256: str) -> dict[str, Any]:
    """What must not change when a run is resumed.

    shards_sha256: of the manifest, which holds the hash of every shard.
    """
    kept = {name: value for name, value in config.asdict().items() if name not in FREE_TO_CHANGE}
    if config.schedule != "constant":
        kept["steps"] = config.steps  # the whole curve of the learning rate depends on it
    return {**kept, "shards_sha256": shards_sha256, "plan_version": PLAN_VERSION}


def begun_shapes(
    checkpoint: Checkpoint, now: Mapping[str, Any], accepted: Collection[str]
) -> Mapping[str, Any]:
    """The sizes of the batches that the run has begun with; none where its numbers are changed knowingly.

    now: the fingerprint, which has no shapes yet. Raises UserError as `resumed_state`.
    """
    shapes = checkpoint.state.fingerprint.get(SHAPES)
    state = resumed_state(checkpoint, {**now, SHAPES: shapes}, set(accepted) - {SHAPES})
    return {} if shapes is None or state != checkpoint.state else shapes


def resumed_state(checkpoint: Checkpoint, now: Mapping[str, Any], accepted: Collection[str]) -> RunState:
    """The state to go on with under the fingerprint `now`, every change noted in it.

    Raises UserError naming every field that differs and is not accepted, with old and new value, or a
    field that is accepted and does not differ. Shapes follow from the others: they are refused alone, where
    more steps need larger ones.
    """
    old = checkpoint.state.fingerprint
    changed = [name for name in sorted({*old, *now}) if old.get(name) != now.get(name)]
    follows = {SHAPES} & set(changed) if len(changed) > 1 else set()
    if refused := [name for name in changed if name not in accepted and name not in follows]:
        named = "; ".join(f"{name} was {old.get(name)}, now {now.get(name)}" for name in refused)
        if SHAPES in refused:
            named += " (more steps need larger batches, whose sums round otherwise)"
        options = " ".join(f"--resume-with {name}" for name in refused)
        raise UserError(
            f"--resume {checkpoint.folder}: {named}; resume with the old values, start another run, or let "
            f"the numbers change knowingly ({options})"
        )
    if idle := sorted(set(accepted) - set(changed)):
        there = ", ".join(changed) or "nothing"
        raise UserError(f"--resume-with {idle[0]}: does not differ from the run; what differs is {there}")
    changes = [
        {"step": checkpoint.step, "field": name, "old": old.get(name), "new": now.get(name)}
        for name in changed
    ]
    return RunState(now, (*checkpoint.state.changes, *changes), checkpoint.state.skipped)


def save_checkpoint(
    out: Path,
    step: int,
    save_model: Callable[[Path], None],
    optimizer: Mapping[str, Tensor],
    state: RunState,
    keep: int,
    source: Path | None = None,
) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`; returns its folder.

    save_model: writes the model folder's files into the folder it is given. source: the checkpoint that the
    process began from; it stays, for what is never trained is copied from it at every save.
    Raises UserError if the disk does not take it.
    """
    target = _folder(out) / _name(step)

    def write(folder: Path) -> None:
        save_model(folder)
        save_safetensors(
            folder / OPTIMIZER, {name: TensorToSave.of(tensor) for name, tensor in optimizer.items()}
        )
        files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
        content = {"step": step, **asdict(state), "sha256": files}
        content["digest"] = _digest(content)
        (folder / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    try:
        write_folder(target, write)
    except OSError as error:
        there = _folders(out)
        left = f"{there[0]} is whole, --resume goes on from it" if there else "there is no earlier one"
        cause = "the disk is full" if error.errno in FULL else "could not be written"
        raise UserError(f"{target}: {cause} ({error}); {left}") from None
    for old in _folders(out)[keep:]:
        if old != source:
            shutil.rmtree(old)
    return target


def newest_checkpoint(out: Path, warn: Callable[[str], None], set_aside: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there never was one. Each damaged one is warned of.

    set_aside: rename those to `damaged-step-…`, so that `keep` does not count them. Not for one who only
    reads, beside a run that may be going on.
    Raises UserError if there are some and none is whole.
    """
    damaged: dict[Path, str] = {}
    for folder in _folders(out):
        problem, checkpoint = _read(folder)
        if checkpoint:
            for passed, what in damaged.items():
                aside = f"; it is {_set_aside(passed)} now" if set_aside else ""
                warn(f"warning: {passed} is passed over: {what}{aside}")
            return checkpoint
        damaged[folder] = problem
    if damaged:
        named = "; ".join(f"{folder}: {problem}" for folder, problem in damaged.items())
        raise UserError(f"{out}: no checkpoint is whole ({named}); start another run")
    return None


def _set_aside(folder: Path) -> str:
    """Rename a damaged checkpoint; gives its new name."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)
    return aside.name


def _folder(out: Path) -> Path:
    return out / "checkpoints"


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _folders(out: Path) -> list[Path]:
    """Finished checkpoint folders, the newest first."""
    return sorted(_folder(out).glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))[::-1]


def _read(folder: Path) -> tuple[str, Checkpoint | None]:
    """(what is wrong, None) or ("", the checkpoint)."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if content.pop("digest") != _digest(content) or folder.name != _name(content["step"]):
            return f"{STATE} is not what was written", None
        for name, sha256 in content["sha256"].items():
            if hash_file(folder / name) != sha256:
                return f"{name} is not what was written", None
        changes, skipped = tuple(content["changes"]), tuple(content["skipped"])
        return "", Checkpoint(folder, content["step"], RunState(content["fingerprint"], changes, skipped))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is not whole ({error!r})", None
