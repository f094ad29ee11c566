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
"""Pictures a call: one graph serves all."""


class VQEncoder:
    """The encoder of one model, compiled once."""

    def __init__(self, folder: ModelFolder) -> None:
        """Build the VQ and load its weights; the graph is compiled by the first call."""
        self._encode = _compiled_vq(folder, "encode")

    def encode(self, pixels_IHWC: np.ndarray) -> np.ndarray:
        """Codes, uint16 (I, T), of uint8 pictures prepared for generation; `BATCH` of them."""
        from mindspore import Tensor

        codes, _ = self._encode(Tensor(pixels_IHWC))
        return codes.asnumpy().astype(np.uint16)


class VQDecoder:
    """The decoder of one model, compiled once."""

    def __init__(self, folder: ModelFolder) -> None:
        """Build the VQ and load its weights; the graph is compiled by the first call."""
        self._decode = _compiled_vq(folder, "decode")

    def decode(self, codes_IT: np.ndarray) -> np.ndarray:
        """Pictures, uint8 (I, H, W, 3), of codes; `BATCH` of them."""
        from mindspore import Tensor

        pictures = self._decode(Tensor(codes_IT.astype(np.int32))).asnumpy()
        return np.rint((pictures + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _compiled_vq(folder: ModelFolder, direction: str) -> Callable[..., Any]:
    device.use()
    return device.compiled(getattr(folder.build_vq(BATCH), direction))
