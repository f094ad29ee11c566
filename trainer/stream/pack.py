"""Which samples share a row of attention slots.

Attention costs rows × length²: short samples beside one another in a row cost less than each in a row as long
as the longest. They do not see each other (segment ids).
"""

# Shapes: C calls, N samples of a call.

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def pack(lengths_CN: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, first slot) of each sample of each call, both int64 (C, N).

    Longest first, each to the row that is least full (longest-processing-time scheduling, Graham 1969). Where
    there are rows enough each sample has its own.
    """
    calls, samples = lengths_CN.shape
    if rows >= samples:
        return np.tile(np.arange(samples), (calls, 1)), np.zeros((calls, samples), np.int64)
    row_CN, slot_CN = np.empty((2, calls, samples), np.int64)
    full = np.zeros((calls, rows), np.int64)
    for places in np.argsort(-lengths_CN, axis=1, kind="stable").T[:, :, None]:
        least = full.argmin(1)[:, None]
        np.put_along_axis(row_CN, places, least, 1)
        np.put_along_axis(slot_CN, places, np.take_along_axis(full, least, 1), 1)
        longer = np.take_along_axis(full, least, 1) + np.take_along_axis(lengths_CN, places, 1)
        np.put_along_axis(full, least, longer, 1)
    return row_CN, slot_CN


def fullest_row(lengths_CN: np.ndarray, rows: int) -> int:
    """Slots that the fullest row of any call holds."""
    return int((pack(lengths_CN, rows)[1] + lengths_CN).max())


def cheapest_rows(lengths_CN: np.ndarray, length_of: Callable[[int], int]) -> int:
    """The number of rows with which attention over these calls costs least.

    length_of: of slots, the row length that holds them.
    """
    samples = lengths_CN.shape[1]
    return min(range(samples, 0, -1), key=lambda rows: rows * length_of(fullest_row(lengths_CN, rows)) ** 2)
