"""Our trainer as a user runs it: compiled graphs, samples on a flat axis, codes from the shards.

python -m bench.sides.ours FOLDER TASK COUNTS, COUNTS as JSON: samples of each task in every step.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.measures.link import Job, serve
from bench.measures.step import head_rows, text_step_flops
from bench.measures.workload import Workload

RATE = 1e-4


class Ours:
    """A trainer that takes steps when told to."""

    def __init__(self, workload: Workload, task: str, counts: dict[str, int]) -> None:
        from janus.checkpoint.folder import open_model
        from trainer.step import TrainStep

        options: dict[str, Any] = {"device": "CPU"}
        if task != "mixed":
            options |= {"batch_size": counts[task], "micro_batch": counts[task]}
        self.config = workload.config(task, counts if task == "mixed" else None, **options)
        self.feed = workload.feed(self.config)
        self.folder = open_model(workload.size, workload.shards / "tokenizer")
        began = time.perf_counter()
        self.network = TrainStep(self.folder.build(), self.feed.signatures, self.config)
        self.train(1, 1)
        self.about = {"first_step": time.perf_counter() - began, "samples": sum(self.config.counts.values())}

    def train(self, first: int, last: int) -> dict[str, float]:
        """Steps `first` to `last` as a run takes them: seconds, and those waited for data after the first."""
        from trainer.stream.feed import steps_ahead

        waits, began = [], time.perf_counter()
        for _, data, waited in steps_ahead(self.feed, first, last):
            waits.append(waited)
            self._accumulate(data.batches, data.supervised)
            self._update()
        return {"seconds": time.perf_counter() - began, "waited": sum(waits[1:])}

    def mixed(self, step: int) -> float:
        """Seconds of one optimizer step whose batches are ready."""
        data = self.feed.step(step)
        began = time.perf_counter()
        self._accumulate(data.batches, data.supervised)
        self._update()
        return time.perf_counter() - began

    def parts(self, step: int) -> float:
        """Seconds of the same samples, each task's forward and backward alone, and of one update."""
        data, seconds = self.feed.step(step), 0.0
        for task in self.feed.shapes:
            batches = [pair for pair in data.batches if pair[0] == task]
            began = time.perf_counter()
            self._accumulate(batches, data.supervised)
            self.network.wait()
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        self._update()
        return seconds + time.perf_counter() - began

    def text(self, step: int) -> dict[str, float]:
        """Seconds of one text step, and its operations with attention counted both ways."""
        seconds, data = self.mixed(step), self.feed.step(step)
        batches = [batch for _, batch in data.batches]
        slots, heads = data.slots, sum(map(head_rows, batches))
        lengths = [length for batch in batches for length in batch.lengths]
        shape = self.feed.shapes["text"]
        rows = [shape.length] * shape.attention_rows * len(batches)
        text = self.folder.config.text
        return {
            "seconds": seconds,
            "flops": text_step_flops(text, slots, heads, lengths),
            "dense_flops": text_step_flops(text, slots, heads, rows),
        }

    def export(self, step: int, path: str) -> int:
        """Write the step's samples for a peer that cannot read shards; gives how many."""
        arrays: dict[str, np.ndarray] = {}
        number = 0
        for task in self.feed.shapes:
            for index in self.feed.plan.draw(task, step).indices:
                sample = self.feed.train[task].read(int(index))
                arrays[f"{number}.{task}.input_ids"] = sample.input_ids
                arrays[f"{number}.{task}.supervised"] = sample.supervised[:, :2]
                if sample.images:
                    arrays[f"{number}.{task}.image"] = sample.images[0]
                if sample.image_tokens.size:
                    arrays[f"{number}.{task}.image_tokens"] = sample.image_tokens
                number += 1
        np.savez(Path(path), **arrays)
        return number

    def _accumulate(self, batches: list[Any], supervised: int) -> None:
        for task, batch in batches:
            self.network.accumulate(task, batch, 1.0 / supervised)

    def _update(self) -> None:
        self.network.measure()
        self.network.apply(RATE)
        self.network.wait()


def matmul(size: int = 2048) -> dict[str, float]:
    """Operations per second of a float32 product of size³ in MindSpore's graph and in NumPy."""
    import mindspore as ms
    from mindspore import Tensor, ops

    left, right = np.random.default_rng(0).standard_normal((2, size, size), np.float32)

    def product(x: Tensor, y: Tensor) -> Tensor:
        return ops.matmul(x, y)

    graph, x, y = ms.jit(product), Tensor(left), Tensor(right)
    runs = {"MindSpore": lambda: graph(x, y).asnumpy(), "NumPy": lambda: left @ right}
    rates = {}
    for name, run in runs.items():
        run()
        rates[name] = 2 * size**3 / min(_seconds(run) for _ in range(3))
    return rates


def _seconds(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def start(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Job]]:
    """The trainer, warm, and its jobs."""
    folder, task, counts = arguments
    ours = Ours(Workload(Path(folder)), task, json.loads(counts))
    jobs = {name: getattr(ours, name) for name in ("train", "mixed", "parts", "text", "export")}
    return ours.about, {**jobs, "matmul": matmul}


if __name__ == "__main__":
    serve(start)
