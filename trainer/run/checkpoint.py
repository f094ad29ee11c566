"""Checkpoints: a model folder with optimizer and run state, written atomically.

`<out>/checkpoints/step-000100/` is a model folder in the transformers layout (`--model` takes it);
`optimizer.safetensors` and `state.json` let a run resume. state.json is written last and holds the sha256 of
every other file, and of itself; the folder gets its name when all of it is on the disk.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindspore import Tensor

from janus.checkpoint.tensors import TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.common.files import FULL, hash_file, write_folder
from trainer.config import TrainConfig
from trainer.stream.plan import PLAN_VERSION

STATE, OPTIMIZER = "state.json", "optimizer.safetensors"
SHAPES = "shapes"  # the fingerprint's field for the static shapes; `open_run` adds it
FREE_TO_CHANGE = {"shards", "out", "steps", "save_every", "keep", "log_every", "eval_every"}
FREE_TO_CHANGE |= {"skip_nonfinite", "tensorboard", "device_id"}
"""Options that may differ on resume: they leave the numbers of a step alone. Mode and device round
differently; a larger eval_samples enlarges the static shapes."""


@dataclass(frozen=True)
class RunState:
    """What a run remembers besides weights, optimizer and step, which is its place in the data.

    fingerprint: what must not change. changes: what `--resume-with` overrode. skipped: non-finite steps.
    """

    fingerprint: Mapping[str, Any]
    changes: tuple[Mapping[str, Any], ...] = ()
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunCheckpoint:
    """A whole checkpoint."""

    folder: Path
    step: int
    state: RunState

    def kept_shapes(self, now: Mapping[str, Any], accepted: Collection[str]) -> Mapping[str, Any]:
        """The shapes to keep, {} if an accepted change affects the numbers; raises as `resumed_state`."""
        shapes = self.state.fingerprint.get(SHAPES)
        state = self.resumed_state({**now, SHAPES: shapes}, set(accepted) - {SHAPES})
        return {} if shapes is None or state != self.state else shapes

    def resumed_state(self, now: Mapping[str, Any], accepted: Collection[str]) -> RunState:
        """The state to resume with under the fingerprint `now`; it records every change.

        UserError names each field that differs and is not accepted, or one that is accepted and does not
        differ. Shapes follow from the others: they are refused only where nothing else differs (more steps).
        """
        old = self.state.fingerprint
        changed = [name for name in sorted({*old, *now}) if old.get(name) != now.get(name)]
        allowed = {*accepted, SHAPES} if len(changed) > 1 else accepted
        if refused := [name for name in changed if name not in allowed]:
            named = "; ".join(f"{name} was {old.get(name)}, now {now.get(name)}" for name in refused)
            if SHAPES in refused:
                named += " (more steps need larger batches, whose sums round otherwise)"
            options = " ".join(f"--resume-with {name}" for name in refused)
            raise UserError(
                f"--resume {self.folder}: {named}; resume with the old values, start another run, or accept "
                f"that the numbers change ({options})"
            )
        if unchanged := sorted(set(accepted) - set(changed)):
            differs = ", ".join(changed) or "nothing"
            raise UserError(f"--resume-with {unchanged[0]}: is as in the run; what differs is {differs}")
        changes = (
            {"step": self.step, "field": name, "old": old.get(name), "new": now.get(name)} for name in changed
        )
        return RunState(now, (*self.state.changes, *changes), self.state.skipped)


def fingerprint(config: TrainConfig, shards_sha256: str) -> dict[str, Any]:
    """What must not change on resume. shards_sha256: of the manifest, which holds every shard's hash."""
    kept = {name: value for name, value in config.asdict().items() if name not in FREE_TO_CHANGE}
    if config.schedule != "constant":
        kept["steps"] = config.steps  # they shape the whole curve of the learning rate
    return {**kept, "shards_sha256": shards_sha256, "plan_version": PLAN_VERSION}


def save_checkpoint(
    out: Path, step: int, save_model: Callable[[Path], object], optimizer: dict[str, Tensor], state: RunState
) -> Path:
    """Write a checkpoint, its model by `save_model`; returns its folder. UserError if the disk is full."""
    target = out / "checkpoints" / f"step-{step:06d}"

    def write(folder: Path) -> None:
        save_model(folder)
        save_safetensors(folder / OPTIMIZER, TensorToSave.of(optimizer))
        files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
        content = {"step": step, **asdict(state), "sha256": files}
        content["digest"] = _digest(content)
        (folder / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    try:
        write_folder(target, write)
    except OSError as error:
        earlier = _folders(out)
        whole = f"{earlier[0]} is whole, --resume it" if earlier else "there is no earlier one"
        cause = "the disk is full" if error.errno in FULL else "could not be written"
        raise UserError(f"{target}: {cause} ({error}); {whole}") from None
    return target


def remove_old(out: Path, keep: int, source: Path | None = None) -> None:
    """Remove all but the newest `keep` and `source`, from which each save copies what is never trained."""
    for old in {*_folders(out)[keep:]} - {source}:
        shutil.rmtree(old)


def newest_checkpoint(out: Path, warn: Callable[[str], None], rename: bool = True) -> RunCheckpoint | None:
    """The newest whole checkpoint, None if there never was one; UserError if there are some, all damaged.

    rename: damaged ones to `damaged-step-…`, so that `keep` does not count them. A reader must not: the run
    may still be in progress.
    """
    damaged: dict[Path, str] = {}
    for folder in _folders(out):
        try:
            checkpoint = _read(folder)
        except UserError as error:
            damaged[folder] = str(error)
            continue
        for skipped, problem in damaged.items():
            if rename:
                renamed = skipped.with_name(f"damaged-{skipped.name}")
                shutil.rmtree(renamed, ignore_errors=True)
                problem += f"; it is {skipped.replace(renamed).name} now"
            warn(f"warning: {skipped} is skipped: {problem}")
        return checkpoint
    if damaged:
        named = "; ".join(f"{folder}: {problem}" for folder, problem in damaged.items())
        raise UserError(f"{out}: no checkpoint is whole ({named}); start another run")
    return None


def _read(folder: Path) -> RunCheckpoint:
    """The checkpoint, every file of it hashed. Raises UserError saying what is damaged."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        digest, step = content.pop("digest"), content["step"]
        damaged = [name for name, sha256 in content["sha256"].items() if hash_file(folder / name) != sha256]
        if digest != _digest(content) or folder.name != f"step-{step:06d}":
            damaged = [STATE]
        state = RunState(content["fingerprint"], tuple(content["changes"]), tuple(content["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"it is not whole ({type(error).__name__}: {error})") from None
    if damaged:
        raise UserError(f"{damaged[0]} is not what was written")
    return RunCheckpoint(folder, step, state)


def _folders(out: Path) -> list[Path]:
    """Finished checkpoint folders, the newest first."""
    folders = (out / "checkpoints").glob("step-*")
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
