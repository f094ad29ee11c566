"""Steps whose loss or gradient is not finite: what is kept of them, and how many may be skipped.

`<out>/nonfinite/step-000007/` holds `samples.arrow` (the ledger's rows), `inputs.npz` (every array of every
micro-batch, `0.vqa.input_ids_P`) and `numbers.json`. Nothing of the step has been applied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus.common.errors import UserError
from janus.common.files import write_folder
from trainer.run.ledger import step_rows, write_rows
from trainer.stream.feed import StepData

if TYPE_CHECKING:
    from mindspore import Parameter

    from trainer.step import StepNumbers


class Skips:
    """The steps of a run that were skipped, and how many may be."""

    def __init__(self, out: Path, allowed: int, steps: tuple[int, ...]) -> None:
        """steps: those skipped before this start."""
        self._out, self._allowed, self.steps = out, allowed, steps

    def add(
        self, step: int, data: StepData, numbers: StepNumbers, weights: Iterable[Parameter]
    ) -> tuple[dict[str, Any], str]:
        """Keep what is known of a step that is not finite; gives its record and log line.

        Raises UserError where no further step may be skipped, OSError if the disk does not take it.
        """
        folder = self._out / "nonfinite" / f"step-{step:06d}"
        write_folder(folder, lambda folder: _write(folder, step, data, numbers, weights))
        losses = ", ".join(
            f"{task} {total / numbers.supervised[task]:.4g}" for task, total in numbers.loss_sum.items()
        )
        what = f"step {step}: loss {losses}; gradient norm {numbers.grad_norm:.4g}"
        if len(self.steps) >= self._allowed:
            raise UserError(
                f"{what}; not applied, its samples and inputs are in {folder}: look at them, lower "
                f"--learning-rate in another run, or --resume with --skip-nonfinite {self._allowed + 1}"
            )
        self.steps = (*self.steps, step)
        count = len(self.steps)
        line = f"warning: {what}; skipped, {count} of {self._allowed} allowed, kept in {folder}"
        return {"step": step, "count": count, "kept": folder.name}, line


def _write(
    folder: Path, step: int, data: StepData, numbers: StepNumbers, weights: Iterable[Parameter]
) -> None:
    write_rows(folder / "samples.arrow", [step_rows(step, data)])
    inputs = {
        f"{number}.{task}.{name}": array
        for number, (task, batch) in enumerate(data.batches)
        for name, array in vars(batch).items()
        if isinstance(array, np.ndarray)
    }
    np.savez(folder / "inputs.npz", **inputs)
    content = {
        "step": step,
        "loss_sum": {task: _plain(total) for task, total in numbers.loss_sum.items()},
        "supervised": numbers.supervised,
        "grad_norm": _plain(numbers.grad_norm),
        "parameter_norms": {weight.name: _plain(_norm(weight.asnumpy())) for weight in weights},
    }
    (folder / "numbers.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _norm(array: np.ndarray) -> float:
    # In float64: what overflows in float32 is what is looked for.
    return float(np.sqrt(np.square(array, dtype=np.float64).sum()))


def _plain(number: float) -> Any:
    """JSON has no NaN and no infinity: those as text."""
    return number if math.isfinite(number) else str(number)
