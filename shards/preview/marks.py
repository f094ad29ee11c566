"""A sample's tokens as text, cut where supervision begins and ends."""

from __future__ import annotations

from itertools import chain, groupby, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from shards.schema import Sample


def marked_pieces(sample: Sample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, whether it is supervised) in order; every token of the sample is in exactly one piece."""
    spans = sample.supervised.tolist()
    edges = sorted({0, len(sample.input_ids), *chain.from_iterable(spans)})
    pieces = []
    for lo, hi in pairwise(edges):
        supervised = any(start <= lo < end for start, end in spans)
        pieces.append((_decoded(sample.input_ids[lo:hi].tolist(), tokenizer), supervised))
    return pieces


def _decoded(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of some tokens; a run of more than three of one token (image placeholders) as token×n."""
    text = ""
    plain: list[int] = []  # decoded together: a character may be spread over several tokens
    for token, run in groupby(ids):
        repeats = len(list(run))
        if repeats <= 3:
            plain += [token] * repeats
            continue
        single = tokenizer.decode([token], skip_special_tokens=False)
        text += f"{tokenizer.decode(plain, skip_special_tokens=False)}{single}×{repeats} "
        plain = []
    return text + tokenizer.decode(plain, skip_special_tokens=False)
