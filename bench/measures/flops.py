"""Operations of a text step, attention over the spans given; formulas in `janus/inspect/costs.py`."""

from collections.abc import Sequence

from janus.inspect.costs import transformer_operations
from janus.model.config import TextConfig


def text_step_flops(config: TextConfig, slots: int, head_rows: int, spans: Sequence[int]) -> int:
    """Operations of forward and backward of text batches, everything trained.

    slots: P. head_rows: N. spans: what attention runs over, the samples' lengths or the rows'.
    """
    head = 2 * head_rows * config.hidden_size * config.vocab_size
    return 3 * (transformer_operations(config, slots, spans) + head)
