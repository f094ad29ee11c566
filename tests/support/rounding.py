"""How far float32 may be from the exact result: from the operation, not from what one machine gave."""

import numpy as np

UNIT = 2.0**-24
"""Largest relative error of one float32 rounding."""


def rounding_bound(magnitude: float | np.ndarray, terms: int, operations: int = 1) -> float:
    """Largest plausible error of `operations` sums of `terms` terms, one behind the other.

    Roundings of a sum add up like a random walk: UNIT × √terms × magnitude. magnitude: the largest absolute
    value of an array.
    """
    return float(operations * UNIT * terms**0.5 * np.abs(magnitude).max())
