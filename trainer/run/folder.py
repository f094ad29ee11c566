"""The folder of a run: which one, what it may hold already, and its config.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import yaml

from janus.common.errors import UserError
from janus.common.files import exclusive_lock, write_text
from trainer.config import CONFIG, TrainConfig
from trainer.run.checkpoint import newest_checkpoint

OUTPUTS = Path("outputs")


def named_folder(config: TrainConfig, resume: bool) -> Path | None:
    """The folder that --out names, None without --out. A run is never overwritten.

    Raises UserError if the folder holds a run and `resume` is False, or none and it is True.
    """
    if not config.out:
        if resume:
            runs = OUTPUTS.glob(f"*/{CONFIG}")
            newest = max(runs, default=None, key=lambda path: path.stat().st_mtime)
            hint = f"; the newest is {newest.parent}" if newest else ""
            raise UserError(f"--resume needs --out, the folder of the run{hint}")
        return None
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    if resume and not (out / CONFIG).is_file():
        raise UserError(f"--resume: {out} holds no run ({CONFIG} is missing)")
    if not resume and (out / CONFIG).exists():
        raise UserError(f"--out {out}: already holds a run; resume it (--resume) or choose another folder")
    return out


def next_free_folder(task: str) -> Path:
    """Make `outputs/TASK-001`, or the first number after it that is free."""
    number = 1
    while True:
        folder = OUTPUTS / f"{task}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # an older run, or one that started this moment
            number += 1
        else:
            return folder


def lock_folder(out: Path, stack: ExitStack) -> None:
    """Make the folder if it is missing, and lock out other trainers until `stack` closes.

    Raises UserError if another trainer holds the lock, or the folder cannot be written to.
    """
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
    """(model, shards) to evaluate; where None, the run's newest checkpoint and its shards.

    Raises UserError if the run has none.
    """
    if model and shards:
        return model, shards
    if not (out / CONFIG).is_file():
        raise UserError(f"{out} holds no run ({CONFIG} is missing); give --model and --shards")
    if model is None:
        checkpoint = newest_checkpoint(out, click.echo, set_aside=False)
        if checkpoint is None:
            raise UserError(f"{out} has no checkpoint yet; give --model, or wait for one")
        model = str(checkpoint.folder)
    return model, shards or Path(yaml.safe_load((out / CONFIG).read_text(encoding="utf-8"))["shards"])
