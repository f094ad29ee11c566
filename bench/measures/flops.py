"""Operations of a text step, attention over the spans that are asked for; formulas in `trainer/flops.py`."""

from __future__ import annotations

from collections.abc import Iterable

from janus.model.config import TextConfig
from trainer.flops import llama_flops, text_head_flops


def text_step_flops(config: TextConfig, slots: int, head_rows: int, spans: Iterable[int]) -> int:
    """Operations of forward and backward of text batches, everything trained.

    slots: P. head_rows: N. spans: what attention runs over, the samples' lengths or the rows'.
    """
    return 3 * (llama_flops(config, slots, spans) + text_head_flops(config, head_rows))
