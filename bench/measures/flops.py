"""Operations of a text step, attention over the spans given, and the rows that reach a head.

Formulas are in `janus/inspect/costs.py`.
"""

from collections.abc import Sequence

from janus.inspect.costs import transformer_operations
from janus.model.config import TextConfig
from trainer.stream.shapes import Batch


def text_step_flops(config: TextConfig, slots: int, head_rows: int, spans: Sequence[int]) -> int:
    """Operations of forward and backward of text batches, everything trained.

    slots: P. head_rows: N. spans: what attention runs over, the samples' lengths or the rows'.
    """
    head = 2 * head_rows * config.hidden_size * config.vocab_size
    return 3 * (transformer_operations(config, slots, spans) + head)


def head_rows(batch: Batch) -> int:
    """Rows of a batch that reach a head, of text or of images, used or not."""
    return sum(len(labels) for labels in (batch.labels_N, batch.image_labels_N) if labels is not None)
