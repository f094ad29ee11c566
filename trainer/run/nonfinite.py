"""What is kept of a step whose loss or gradient is not finite: its samples, its inputs, the weights' norms.

`<out>/nonfinite/step-000007/` holds `samples.arrow` (the ledger's rows), `inputs.safetensors` (every array
of every call, `0.vqa.input_ids_P`) and `numbers.json`. Nothing of the step has been applied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from janus.checkpoint.tensors import TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.common.files import write_folder
from trainer.run.ledger import write_rows
from trainer.stream.feed import StepData

if TYPE_CHECKING:
    from mindspore import Parameter

    from trainer.step import StepNumbers

NONFINITE = "nonfinite"
_DTYPES = {"int32": "I32", "uint8": "U8"}


class Skips:
    """The steps of a run that were skipped, and how many may be."""

    def __init__(self, out: Path, allowed: int, steps: tuple[int, ...]) -> None:
        """steps: those skipped before this start."""
        self._out, self._allowed, self.steps = out, allowed, steps

    def add(
        self, step: int, data: StepData, rows: pa.Table, numbers: StepNumbers, weights: Iterable[Parameter]
    ) -> tuple[dict[str, Any], str]:
        """Keep what is known of a step that is not finite (`keep_step`); gives its record and log line.

        Raises UserError where no further step may be skipped.
        """
        folder = keep_step(self._out, step, data, rows, numbers, weights)
        what = f"step {step}: {describe(numbers)}"
        if len(self.steps) >= self._allowed:
            raise UserError(
                f"{what}; not applied, its samples and inputs are in {folder}: look at them, lower "
                f"--learning-rate in another run, or --resume with --skip-nonfinite {self._allowed + 1}"
            )
        self.steps = (*self.steps, step)
        count = len(self.steps)
        line = f"warning: {what}; skipped, {count} of {self._allowed} allowed, kept in {folder}"
        return {"step": step, "count": count, "kept": folder.name}, line


def describe(numbers: StepNumbers) -> str:
    """`loss vqa 6.91, t2i nan; gradient norm nan`."""
    losses = ", ".join(
        f"{task} {total / numbers.supervised[task]:.4g}" for task, total in numbers.loss_sum.items()
    )
    return f"loss {losses}; gradient norm {numbers.grad_norm:.4g}"


def keep_step(
    out: Path, step: int, data: StepData, rows: pa.Table, numbers: StepNumbers, weights: Iterable[Parameter]
) -> Path:
    """Write all that is known of the step; returns the folder. Raises OSError if the disk does not take it.

    rows: the ledger's of this step.
    """
    target = out / NONFINITE / f"step-{step:06d}"
    content = {
        "step": step,
        "loss_sum": {task: _plain(total) for task, total in numbers.loss_sum.items()},
        "supervised": numbers.supervised,
        "grad_norm": _plain(numbers.grad_norm),
        "parameter_norms": {weight.name: _plain(_norm(weight.asnumpy())) for weight in weights},
    }

    def write(folder: Path) -> None:
        write_rows(folder / "samples.arrow", [rows])
        save_safetensors(folder / "inputs.safetensors", _inputs(data))
        (folder / "numbers.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    write_folder(target, write)
    return target


def _inputs(data: StepData) -> Mapping[str, TensorToSave]:
    arrays = {
        f"{call}.{task}.{name}": array
        for call, (task, batch) in enumerate(data.batches)
        for name, array in vars(batch).items()
        if isinstance(array, np.ndarray)
    }
    return {name: _to_save(array) for name, array in arrays.items()}


def _to_save(array: np.ndarray) -> TensorToSave:
    return TensorToSave(_DTYPES[array.dtype.name], array.shape, lambda: [array])


def _norm(array: np.ndarray) -> float:
    # In float64: what overflows in float32 is what is looked for.
    return float(np.sqrt(np.square(array, dtype=np.float64).sum()))


def _plain(number: float) -> Any:
    """JSON has no NaN and no infinity: those as text."""
    return number if math.isfinite(number) else str(number)
