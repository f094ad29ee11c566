"""Step times and memory."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.report.meters import peak_memory, step_time


def test_step_times() -> None:
    times = step_time([0.1 * n for n in range(1, 102)])
    assert times["step_seconds_median"] == pytest.approx(5.1)
    assert times["step_seconds_p95"] == pytest.approx(9.6)
    assert step_time([]) == {"step_seconds_median": None, "step_seconds_p95": None}


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory()["peak_memory"]
    block = np.ones(200 * 2**20, np.uint8)
    after = peak_memory()["peak_memory"]
    assert before <= after
    assert after > block.nbytes
