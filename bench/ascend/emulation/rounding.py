"""bfloat16 in NumPy: arrays of float32 whose values bfloat16 holds, and how a kernel comes by them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 values, ties to even (CANN's CAST_RINT), as float32. x: finite."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def to_bfloat16_away(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 values, ties away from 0 (CANN's CAST_ROUND), as float32. x: finite."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Arithmetic:
    """How the forms compute. inner: what a kernel computes in.

    store: what becomes of a result that goes to memory. cast: the same where CANN has another rule for ties,
    as for what flash attention hands from its vector cores to its cube.
    """

    inner: Any
    store: Callable[[np.ndarray], np.ndarray]
    cast: Callable[[np.ndarray], np.ndarray]

    def load(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """The arrays as a kernel has them inside."""
        return [np.asarray(array, self.inner) for array in arrays]


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x


EXACT = Arithmetic(np.float64, _unchanged, _unchanged)
"""float64 throughout: what a form means."""

BFLOAT16 = Arithmetic(np.float32, to_bfloat16, to_bfloat16_away)
"""bfloat16 in memory, float32 inside, as the Ascend kernels have it."""


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """‖found − exact‖₂ / ‖exact‖₂."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def mean_relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """The mean of |found − exact| / |exact| over the elements that are not 0."""
    used = exact != 0
    return float(np.mean(np.abs(found[used] - exact[used]) / np.abs(exact[used])))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Of the angle between two arrays."""
    x, y = (array.ravel().astype(np.float64) for array in (x, y))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
