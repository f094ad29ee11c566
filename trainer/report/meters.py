"""The meters of every run: what is recorded of the steps between two log lines."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from janus import device
from trainer.step import StepNumbers, TrainStep
from trainer.stream.feed import StepData


class StepRecord:
    """Sums over the steps since the last line, and the record that `metrics.jsonl` gets of them.

    A step's time runs from when the device finished the previous step until it has finished this one. A step
    that compiled a graph is not timed: the time would be the compiler's. write: takes the record of one line.
    """

    def __init__(self, network: TrainStep, write: Callable[[Mapping[str, Any]], None]) -> None:
        self._network, self._write = network, write
        self.step_seconds: list[float] = []  # of every step, over all intervals
        self._begin()

    def _begin(self) -> None:
        self._began = self._ended = time.perf_counter()
        self._graphs, self._timed = self._network.graphs.count, len(self.step_seconds)
        self._waited = 0.0
        self._sums, self._loss_sum, self._supervised = Counter[str](), Counter[str](), Counter[str]()
        self._last: dict[str, Any] = {}  # of the interval's last step that was applied

    def add(
        self, step: int, data: StepData, numbers: StepNumbers, rate: float, waited: float, line: bool
    ) -> None:
        """Count one step at learning rate `rate`, unless it was skipped. waited: seconds, for its data.

        line: let the device finish, then write a record of the steps since the last one, if any was applied.
        """
        if line:
            self._network.wait()
        if numbers.finite:
            now, graphs = time.perf_counter(), self._network.graphs.count
            if graphs == self._graphs:
                self.step_seconds.append(now - self._ended)
            self._ended, self._graphs = now, graphs
            flops = sum(self._network.flops(batch) for _, batch in data.batches)
            self._sums.update(
                steps=1, samples=data.samples, tokens=data.tokens, slots=data.slots, flops=flops
            )
            self._waited += waited
            self._loss_sum.update(numbers.loss_sum)
            self._supervised.update(numbers.supervised)
            self._last = {"step": step, "learning_rate": rate, "grad_norm": numbers.grad_norm}
        if line:
            if self._last:
                self._write({**self._last, **self._means()})
            self._begin()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of validation and saving out of the steps' time."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self._began, self._ended = self._began + took, self._ended + took
        self._graphs = self._network.graphs.count

    def _means(self) -> dict[str, Any]:
        """Mean losses per target, and the meters; docs/DESIGN.md says what each one is."""
        seconds, sums, graphs = self._ended - self._began, self._sums, self._network.graphs
        rates = {
            f"{name}_per_second": sums[name] / seconds for name in ("samples", "tokens", "slots", "flops")
        }
        return {
            "loss": self._loss_sum.total() / self._supervised.total(),
            "loss_per_task": {task: self._loss_sum[task] / n for task, n in self._supervised.items()},
            "seconds": seconds / sums["steps"],
            **step_time(self.step_seconds[self._timed :]),
            **rates,
            "padding": 1 - sums["tokens"] / sums["slots"],
            "data_wait": self._waited / seconds,
            "data_wait_seconds": self._waited,
            "compilations": graphs.count,
            "loaded": graphs.loaded,
            "compile_seconds": graphs.seconds,
            **peak_memory(),
        }


def step_time(seconds: Sequence[float]) -> dict[str, float | None]:
    """Median and 95th percentile of the steps' seconds; None if every step compiled a graph."""
    median, p95 = np.percentile(seconds, (50, 95)).tolist() if seconds else (None, None)
    return {"step_seconds_median": median, "step_seconds_p95": p95}


def peak_memory() -> dict[str, int]:
    """Peak memory so far in bytes: of this process on the host, and on an Ascend device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    on_device = device.peak_memory()
    return peak if on_device is None else peak | {"peak_device_memory": on_device}
