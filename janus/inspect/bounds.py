"""How far a device's numbers may be from the reference, by dtype.

float32: fixed bounds, some ten times what a CPU gives. bfloat16: a value has 8 significant bits, so one
rounding is off by at most UNIT of it, in the mean by less than half. n roundings on the way to a result are
off in no particular direction: by less than UNIT·√n of its norm. Rounded are, on the longest path, every
result that is written and every weight of a product. The backward goes that path again, and reads what the
forward was off by: three times as many. Emulated on a CPU, `tiny` takes up to half of each bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np

from janus.model.config import JanusConfig

UNIT = {"bfloat16": 2.0**-8}
"""Largest relative error of one rounding."""
ABSOLUTE, LOSS, RELATIVE = 1e-4, 1e-5, 1e-3
"""float32's bounds: features, logits and latents; losses; gradients (of the norm)."""
PRODUCT, BIAS = 2, 1  # a product rounds its weight and its result
LLAMA_LAYER = 1 + PRODUCT + 1 + 2 + PRODUCT + 1 + 1 + PRODUCT + 1 + PRODUCT + 1
"""Norm, q k v, rotation, probabilities, attention, output, sum; norm, gate and up, SwiGLU, down, sum."""
VISION_LAYER = 1 + PRODUCT + BIAS + 2 + PRODUCT + BIAS + 1 + 1 + 2 * (PRODUCT + BIAS) + 1 + 1
"""Norm, q k v, probabilities, attention, output, sum; norm, two products with GELU between, sum."""
MLP = 2 * (PRODUCT + BIAS) + 1
"""An aligner, or the image head: two products with GELU between."""


@dataclass(frozen=True)
class Check:
    """One quantity: its largest difference from the reference, and the tolerance."""

    name: str
    difference: float  # NaN where there is nothing to compare
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Bounds:
    """Compares quantities of one network, computed in `dtype`."""

    config: JanusConfig
    dtype: str

    @property
    def vision(self) -> int:
        """Roundings of SigLIP's features: patches, positions, layers, norm."""
        return PRODUCT + BIAS + 1 + VISION_LAYER * self.config.vision.num_layers + 1

    def logits(self, task: str) -> int:
        """Roundings of a task's logits."""
        before = {"text": 1, "vqa": self.vision + MLP, "t2i": 1 + MLP}[task]
        head = MLP if task == "t2i" else PRODUCT
        return before + LLAMA_LAYER * self.config.text.num_layers + 1 + head

    def values(self, name: str, actual: np.ndarray, expected: np.ndarray, roundings: int) -> Check:
        """float32: the largest difference of an element; else the norm of all differences over the norm."""
        if self.dtype == "float32":
            return Check(name, float(np.abs(actual - expected).max()), ABSOLUTE)
        difference = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        return Check(f"{name} (relative)", float(difference), self._relative(roundings))

    def loss(self, task: str, actual: float, expected: float, logits_NV: np.ndarray) -> Check:
        """A mean loss. logits_NV: the reference's, of the states that count.

        ∂loss/∂logits of a state is p − onehot, at most √2 long, and N states are averaged.
        """
        size = float(np.sqrt(np.square(logits_NV).mean()))
        bound = sqrt(2 / len(logits_NV)) * size * self._relative(self.logits(task))
        return Check(f"{task}.loss", abs(actual - expected), LOSS if self.dtype == "float32" else bound)

    def norms(self, task: str, actual: Mapping[str, float], expected: Mapping[str, float]) -> Check:
        """The gradient norms of all parameters; NaN for other parameters than expected."""
        furthest = furthest_norm(actual, expected)
        return Check(f"{task}.grad_norms (relative)", furthest, self._gradient(task))

    def gradient(self, task: str, name: str, actual: np.ndarray, expected: np.ndarray) -> Check:
        """One parameter's gradient in full."""
        difference = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        return Check(f"{name} (relative)", float(difference), self._gradient(task))

    def _relative(self, roundings: int) -> float:
        return UNIT.get(self.dtype, 0.0) * sqrt(roundings)

    def _gradient(self, task: str) -> float:
        return RELATIVE if self.dtype == "float32" else self._relative(3 * self.logits(task))


def furthest_norm(actual: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """The largest relative difference of a gradient's norm; NaN where not both have the same ones."""
    if actual.keys() != expected.keys():
        return float("nan")
    return max(abs(actual[name] - norm) / max(norm, 1e-30) for name, norm in expected.items())
