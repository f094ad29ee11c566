"""Steps whose loss or gradient is not finite: their record, and how many may be skipped.

`<out>/nonfinite/step-000007/` holds `samples.arrow` (the ledger's rows), `inputs.npz` (every array of every
micro-batch, `0.vqa.input_ids_P`) and `numbers.json`. The step has not been applied.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter

from janus.common.errors import UserError
from janus.common.files import write_folder
from trainer.run.ledger import step_rows, write_rows
from trainer.step import StepNumbers
from trainer.stream.feed import StepData


@dataclass
class Skips:
    """The steps that a run has skipped, before this start too. allowed: how many it may skip."""

    out: Path
    allowed: int
    steps: tuple[int, ...]

    def add(
        self, step: int, data: StepData, numbers: StepNumbers, weights: Iterable[Parameter]
    ) -> tuple[dict[str, Any], str]:
        """Record the step; returns metrics record and log line. UserError if no more may be skipped."""
        folder = self.out / "nonfinite" / f"step-{step:06d}"
        write_folder(folder, lambda folder: _write(folder, step, data, numbers, weights))
        per_target = {task: total / numbers.supervised[task] for task, total in numbers.loss_sum.items()}
        losses = ", ".join(f"{task} {loss:.4g}" for task, loss in per_target.items())
        what = f"step {step}: loss {losses}; gradient norm {numbers.grad_norm:.4g}"
        if len(self.steps) >= self.allowed:
            raise UserError(
                f"{what}; not applied, its samples and inputs are in {folder}: look at them, lower "
                f"--learning-rate in another run, or --resume with --skip-nonfinite {self.allowed + 1}"
            )
        self.steps = (*self.steps, step)
        count = len(self.steps)
        line = f"warning: {what}; skipped, {count} of {self.allowed} allowed, kept in {folder}"
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
    # In float64: squares may overflow float32.
    norms = {w.name: math.sqrt(np.square(w.asnumpy(), dtype=np.float64).sum()) for w in weights}
    content = {"step": step, **vars(numbers), "parameter_norms": norms}
    (folder / "numbers.json").write_text(json.dumps(_plain(content), indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """NaN and infinity as text: JSON has neither."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value if math.isfinite(value) else str(value)
