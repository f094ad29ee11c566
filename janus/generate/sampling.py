"""From logits to the next token: guidance, temperature and seeded draws, on the host.

A draw depends on the seed, on the number of what is generated (picture 0, 1, 2, …) and on the step, and on
nothing else: a picture does not change with the pictures that share its batch.

Shapes: B rows, V classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def guide(conditional_BV: np.ndarray, unconditional_BV: np.ndarray, guidance: float) -> np.ndarray:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): u + guidance · (c − u), (B, V)."""
    return unconditional_BV + guidance * (conditional_BV - unconditional_BV)


def uniforms(seed: int, numbers: Sequence[int], step: int) -> np.ndarray:
    """One number in [0, 1) for each of `numbers` at this step, float64 (B,)."""
    words = [np.random.Philox(key=seed, counter=[0, 0, number, step]).random_raw() for number in numbers]
    return (np.array(words, np.uint64) >> np.uint64(11)) * 2.0**-53


def choose(logits_BV: np.ndarray, temperature: float, uniforms_B: np.ndarray) -> np.ndarray:
    """The class each row draws, int32 (B,): the likeliest where temperature is 0, else by inverse CDF."""
    if temperature == 0:
        return logits_BV.argmax(-1).astype(np.int32)
    scaled_BV = logits_BV.astype(np.float64) / temperature
    weights_BV = np.exp(scaled_BV - scaled_BV.max(-1, keepdims=True))
    rising_BV = np.cumsum(weights_BV, -1)
    drawn = [
        np.searchsorted(rising_V, u * rising_V[-1], side="right")
        for rising_V, u in zip(rising_BV, uniforms_B, strict=True)
    ]
    return np.array(drawn, np.int32)
