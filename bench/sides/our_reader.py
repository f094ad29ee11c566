"""Our reader alone: shards opened, checksums on, batches of 8 as the graphs take them; no MindSpore.

python -m bench.sides.our_reader FOLDER TASK PIXELS, PIXELS how the shards hold pictures: webp or raw.
"""

import time
from pathlib import Path
from typing import Any

from bench.measures.link import Job, serve
from bench.measures.workload import Workload

BATCH, STEPS = 8, 2000


def start(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Job]]:
    """Opened; `about` holds what that took, in seconds and in MB of memory."""
    from trainer.stream.feed import steps_ahead

    folder, task, pixels = arguments
    workload = Workload(Path(folder), pixels)
    config = workload.config(task, batch_size=BATCH, micro_batch=BATCH, steps=STEPS, device="CPU")
    began = time.perf_counter()
    feed = workload.feed(config)
    opened = time.perf_counter()
    feed.step(1)
    first = time.perf_counter() - opened
    about = {"open": opened - began, "first_batch": first, "megabytes": _memory()}

    def read(samples: int) -> float:
        """Samples per second."""
        seen, began = 0, time.perf_counter()
        for _, data, _ in steps_ahead(feed, 1, -(-samples // BATCH)):
            seen += data.samples
        return seen / (time.perf_counter() - began)

    return about, {"read": read}


def _memory() -> float:
    """Resident megabytes of this process, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    serve(start)
