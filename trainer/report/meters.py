"""The meters that stay on in every run: what a run records of each interval between two log lines."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.stream.feed import StepData

if TYPE_CHECKING:
    from trainer.step import StepNumbers, TrainStep


@dataclass
class Interval:
    """What happened since the last line: sums over its steps, and when it began.

    step_seconds: of each step, from the moment the device had finished the one before until it had finished
    this one; steps that compiled a graph are left out, or their seconds would be the compiler's.
    """

    network: TrainStep
    began: float = field(default_factory=time.perf_counter)
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    slots: int = 0
    flops: int = 0
    waited: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    loss_sum: Counter[str] = field(default_factory=Counter)
    supervised: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._ended, self._graphs = self.began, self.network.graphs.count

    def add(self, data: StepData, waited: float, numbers: StepNumbers) -> None:
        """Count one step whose numbers have been read; the interval's last one must be applied as well."""
        now = time.perf_counter()
        if self.network.graphs.count == self._graphs:
            self.step_seconds.append(now - self._ended)
        self._ended, self._graphs = now, self.network.graphs.count
        self.steps += 1
        self.samples += data.samples
        self.tokens += data.tokens
        self.slots += data.slots
        self.flops += sum(self.network.flops(task, batch) for task, batch in data.batches)
        self.waited += waited
        self.loss_sum.update(numbers.loss_sum)
        self.supervised.update(numbers.supervised)

    def record(self) -> dict[str, Any]:
        """Mean losses per supervised token, and the meters; docs/DESIGN.md says what each one is."""
        seconds = self._ended - self.began
        return {
            "loss": self.loss_sum.total() / self.supervised.total(),
            "loss_per_task": {task: self.loss_sum[task] / n for task, n in self.supervised.items()},
            "seconds": seconds / self.steps,
            **step_time(self.step_seconds),
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "slots_per_second": self.slots / seconds,
            "padding": 1 - self.tokens / self.slots,
            "data_wait": self.waited / seconds,
            "data_wait_seconds": self.waited,
            "flops_per_second": self.flops / seconds,
            "compilations": self.network.graphs.count,
            "loaded": self.network.graphs.loaded,
            "compile_seconds": self.network.graphs.seconds,
            **peak_memory(self.network.device),
        }


def step_time(seconds: Sequence[float]) -> dict[str, float | None]:
    """Median and 95th percentile of steps' seconds; None where every step compiled something."""
    if not seconds:
        return {"step_seconds_median": None, "step_seconds_p95": None}
    median, p95 = np.percentile(seconds, (50, 95))
    return {"step_seconds_median": float(median), "step_seconds_p95": float(p95)}


def peak_memory(device: str) -> dict[str, int]:
    """Bytes held at the worst moment so far: by this process on the host, and on an Ascend device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device == "Ascend":  # never run there: untested
        import mindspore as ms

        peak["peak_device_memory"] = ms.runtime.max_memory_allocated()
    return peak
