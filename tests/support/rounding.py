"""How far float32 may be from the exact result: from the operation, not from what one machine gave."""

from collections.abc import Mapping

import numpy as np

from janus.model.config import JanusConfig

UNIT = 2.0**-24
"""Largest relative error of one float32 rounding."""


def rounding_bound(magnitude: float | np.ndarray, terms: int, operations: int = 1) -> float:
    """Largest plausible error of `operations` sums of `terms` terms, one behind the other.

    Roundings of a sum add up like a random walk: UNIT × √terms × magnitude. magnitude: the largest absolute
    value of an array.
    """
    return float(operations * UNIT * terms**0.5 * np.abs(magnitude).max())


def gradient_bound(gradients: Mapping[str, np.ndarray], name: str, terms: int, operations: int) -> float:
    """`rounding_bound` of a parameter's gradient. A bias sums what its weight does: a key's to nothing."""
    like = (name, name.replace(".bias", ".weight"))
    return max(rounding_bound(gradients[own], terms, operations) for own in like)


def logits_bound(config: JanusConfig, task: str, logits: np.ndarray) -> float:
    """How far the logits of two float32 networks may be apart, which both round.

    Six products a layer (q, scores, values, output, up, down), one in the head. vqa has before them patches,
    vision layers and an aligner's two; t2i an aligner's two, and two in its head.
    """
    text, vision = config.text, config.vision
    operations = {"text": 1, "vqa": 4 + 6 * vision.num_layers, "t2i": 4}[task] + 6 * text.num_layers
    widest = max(text.intermediate_size, vision.intermediate_size, 3 * vision.patch_size**2)
    return 2 * rounding_bound(logits, widest, operations)
