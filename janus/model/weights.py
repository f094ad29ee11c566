"""Where a network's parameters get their values: from a checkpoint, from a seed, or nowhere.

A Cell asks `weights.take("weight", shape)` for each parameter, so names and shapes are written down once,
beside the code that uses them, and a parameter has its value when it is made.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from mindspore import Parameter, Tensor

Source = Callable[[str, tuple[int, ...], str], np.ndarray]
"""Gives the value for (full name, shape, kind of initial value)."""


class Weights:
    """A place in the tree of parameter names, and the source of their values."""

    def __init__(self, source: Source, prefix: str = "") -> None:
        self._source, self._prefix = source, prefix

    def __truediv__(self, name: object) -> "Weights":
        return Weights(self._source, f"{self._prefix}{name}.")

    def take(self, name: str, shape: tuple[int, ...], kind: str = "fan_in") -> Parameter:
        """The parameter of this name, float32. kind: fan_in, ones or zeros."""
        full_name = self._prefix + name
        return Parameter(Tensor.from_numpy(self._source(full_name, shape, kind)), name=full_name)

    def take_joined(self, names: Sequence[str], shape: tuple[int, ...]) -> Parameter:
        """The `weight` of each of these names, of this shape each, below each other in one parameter."""
        joined = f"{self._prefix}({'|'.join(names)}).weight"
        values = [self._source(name, shape, "fan_in") for name in pieces(joined)]
        return Parameter(Tensor.from_numpy(np.concatenate(values)), name=joined)


def pieces(name: str) -> list[str]:
    """The names in a checkpoint of what a parameter holds: one, but for a joined one, `a.(b|c).weight`."""
    before, opened, rest = name.partition("(")
    if not opened:
        return [name]
    inner, _, after = rest.partition(")")
    return [before + own + after for own in inner.split("|")]


def parted(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of parameters by the names of a checkpoint: those of joined ones are parted."""
    return {
        own: part
        for name, array in arrays.items()
        for own, part in zip(pieces(name), np.split(array, len(pieces(name))), strict=True)
    }


def random_source(seed: int) -> Source:
    """Initial values that depend on the seed and the parameter's name alone.

    Of deviation 1/√(inputs of one output): 0.022 at 1B's width, where 0.02 is usual; a fixed 0.02 would be
    a quarter of that at width 128. A row of an embedding table counts as one output.
    """

    def source(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        if kind in ("ones", "zeros"):
            return np.full(shape, float(kind == "ones"), np.float32)
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        std = prod(shape[1:]) ** -0.5
        return generator.standard_normal(shape, np.float32) * np.float32(std)

    return source
