"""Pictures to VQ codes and back, in bulk: float32, each way one compiled graph with one static batch.

Shapes: I images, H×W pixels, T tokens of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder

BATCH = 1
"""Pictures a call. The last call is filled up, so that one graph serves all."""


class VQEncoder:
    """The encoder of one model, compiled once."""

    batch_size = BATCH

    def __init__(self, folder: ModelFolder) -> None:
        """Build the VQ and load its weights; the graph is compiled by the first call."""
        self._encode = _compiled_vq(folder, "encode")

    def encode(self, pixels_IHWC: np.ndarray) -> np.ndarray:
        """Codes, uint16 (I, T), of uint8 pictures prepared for generation; at most `batch_size`."""
        codes, _ = self._encode(_filled(pixels_IHWC, np.uint8))
        return codes.asnumpy()[: len(pixels_IHWC)].astype(np.uint16)


class VQDecoder:
    """The decoder of one model, compiled once."""

    batch_size = BATCH

    def __init__(self, folder: ModelFolder) -> None:
        """Build the VQ and load its weights; the graph is compiled by the first call."""
        self._decode = _compiled_vq(folder, "decode")

    def decode(self, codes_IT: np.ndarray) -> np.ndarray:
        """Pictures, uint8 (I, H, W, 3), of codes; at most `batch_size`."""
        pictures = self._decode(_filled(codes_IT, np.int32)).asnumpy()[: len(codes_IT)]
        return np.rint((pictures + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _compiled_vq(folder: ModelFolder, direction: str) -> Callable[..., Any]:
    device.use()
    return device.compiled(getattr(folder.build_vq(BATCH), direction))


def _filled(some: np.ndarray, dtype: type) -> Any:
    """A tensor of BATCH entries, zeros behind the given ones."""
    from mindspore import Tensor

    filled: np.ndarray = np.zeros((BATCH, *some.shape[1:]), dtype)
    filled[: len(some)] = some
    return Tensor(filled)
