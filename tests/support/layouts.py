"""Layouts of conversations written by hand, and the ids and spans that they stand for.

`<img>`, `<draw>`, `<begin-draw>`: begin_of_image, placeholders and end_of_image of a picture. Supervised are
what stands in [[ ]], placeholders of the latter two, begin_of_image of the last. `{system}`: Janus-Pro's own.
"""

import re
from collections.abc import Iterable
from itertools import groupby

from janus.prompts import IMAGE, SYSTEM_TEXT, TEXT
from janus.tokens import JanusTokenizer, SpecialTokens

_MARKS = re.compile(r"(<img>|<draw>|<begin-draw>|<eos>|<\|User\|>|<\|Assistant\|>|\[\[|\]\])")


def laid_out(layout: str, tokenizer: JanusTokenizer, tokens: int) -> tuple[list[int], list[list[int]]]:
    """Ids and spans of a layout whose pictures have so many tokens."""
    special, image = tokenizer.special, image_of(tokenizer.special, tokens)
    known = {"<img>": image, "<draw>": image, "<begin-draw>": image, "<eos>": [special.eos]}
    known |= {"<|User|>": [special.user], "<|Assistant|>": [special.assistant]}
    ids, kinds, said = [special.bos], list[int | None]([None]), False
    for piece in filter(None, _MARKS.split(layout.replace("{system}", f"{SYSTEM_TEXT}\n\n"))):
        if piece in ("[[", "]]"):
            said = piece == "[["
            continue
        own = known[piece] if piece in known else tokenizer.encode_texts([piece])[0]
        ids += own
        begin = TEXT if piece == "<begin-draw>" else None
        drawn = piece in ("<draw>", "<begin-draw>")
        kinds += [begin, *[IMAGE] * tokens, None] if drawn else [TEXT if said else None] * len(own)
    return ids, spans_of(kinds)


def image_of(special: SpecialTokens, tokens: int) -> list[int]:
    """The ids of a picture of so many tokens."""
    return [special.begin_of_image, *[special.image_placeholder] * tokens, special.end_of_image]


def spans_of(kinds: Iterable[int | None]) -> list[list[int]]:
    """start, end and kind of each run of targets. kinds: of each token, None where it is no target."""
    spans, at = [], 0
    for kind, run in groupby(kinds):
        at, start = at + len(list(run)), at
        spans += [] if kind is None else [[start, at, kind]]
    return spans
