"""A sample's tokens as text, cut where supervision begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from shards.schema import Sample


@dataclass(frozen=True)
class Piece:
    """A run of tokens that are all supervised, or none of them."""

    text: str
    supervised: bool


def marked_pieces(sample: Sample, tokenizer: Tokenizer) -> list[Piece]:
    """The sample's `input_ids` as text, in order; every token is in exactly one piece."""
    spans = sample.supervised.tolist()
    edges = sorted({0, len(sample.input_ids), *chain.from_iterable(spans)})
    return [
        Piece(
            _decoded(sample.input_ids[lo:hi].tolist(), tokenizer),
            any(start <= lo < end for start, end in spans),
        )
        for lo, hi in pairwise(edges)
    ]


def _decoded(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of some tokens; a longer run of one token (image placeholders) as token×n."""
    out: list[str] = []
    plain: list[int] = []  # decoded together: a character may be spread over several tokens
    for token, run in groupby(ids):
        repeats = len(list(run))
        if repeats <= 3:
            plain += [token] * repeats
            continue
        single = tokenizer.decode([token], skip_special_tokens=False)
        out += [tokenizer.decode(plain, skip_special_tokens=False), f"{single}×{repeats} "]
        plain = []
    return "".join([*out, tokenizer.decode(plain, skip_special_tokens=False)])
