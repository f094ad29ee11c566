"""TensorBoard event files beside metrics.jsonl, written by tensorboardX: every number of every record."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from janus.common.errors import UserError
from trainer.report.records import numbers


def require_writer() -> None:
    """Raise UserError if the writer library is not installed."""
    if find_spec("tensorboardX") is None:
        raise UserError(
            "--tensorboard: tensorboardX is not installed; pip install tensorboardX, or leave the option out"
        )


class EventFiles:
    """The event file of one start of a run."""

    def __init__(self, folder: Path, start: int) -> None:
        """start: the last step done; TensorBoard drops what older files hold of later steps."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def add(self, record: Mapping[str, Any]) -> None:
        """A record's numbers as scalars: `step/loss_per_task/vqa`, `validation/loss_per_task/vqa`."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
