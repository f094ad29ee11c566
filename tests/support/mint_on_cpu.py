"""Operations of mindspore.mint that have no CPU kernel, in the forms of MindSpore that have one.

mindone's networks call them. With these they compute on a CPU what their documentation says, so that what we
do with those networks can be tested here; that Ascend's own kernels agree cannot.
"""

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, ops


def _arange(start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None) -> Tensor:
    bounds = (0, start) if end is None else (start, end)
    return Tensor(np.arange(*(int(bound) for bound in bounds), step), dtype or ms.int64)


def _embedding(self: Any, ids: Tensor) -> Tensor:
    return ops.gather(self.weight, ids, 0)


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=self.eps)(
        x, self.weight, self.bias
    )[0]


def _conv2d(self: Any, x: Tensor) -> Tensor:
    return ops.conv2d(x, self.weight, self.bias, self.stride)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return ops.gelu(x, approximate)


def _cross_entropy(self: Any, logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.astype(ms.int32)
    return ops.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction=self.reduction)


def _pad_last(x: Tensor, pad: tuple[int, int], value: float = 0) -> Tensor:
    edges = [ops.full((*x.shape[:-1], width), value, dtype=x.dtype) if width else None for width in pad]
    return ops.concat([part for part in (edges[0], x, edges[1]) if part is not None], -1)


def use_cpu_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the forms in place until the test ends."""
    functional = mint.nn.functional
    for owner, name, form in (
        (mint, "arange", _arange),
        (mint.nn.Embedding, "construct", _embedding),
        (mint.nn.LayerNorm, "construct", _layer_norm),
        (mint.nn.Conv2d, "construct", _conv2d),
        (Tensor, "clone", lambda self: self.copy()),
        (functional, "gelu", _gelu),
        (functional, "pad", _pad_last),
        (mint.nn.CrossEntropyLoss, "construct", _cross_entropy),
    ):
        monkeypatch.setattr(owner, name, form)
