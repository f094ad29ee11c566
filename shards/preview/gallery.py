"""The samples of a preview: which ones are drawn, and what the page shows of each."""

from collections.abc import Callable, Sequence
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from janus.common.console import track
from janus.common.page import picture_uri
from janus.prompts import SPLITS
from shards.manifest import TOKENIZER
from shards.pictures import DRAWN, Pictures
from shards.read import ShardSet
from shards.schema import Sample

SEED = 0
PICTURE_BYTES = 12_000_000  # of all pictures; base64 makes them a third larger: the page stays under 20 MB
TEXT_CHARACTERS = 2_500_000  # of all samples; each field is cut at its share, but not below a screenful
_FIELDS_PER_SAMPLE, _SCREENFUL, _LONGEST = 4, 500, 6000
_MESSAGES = 12  # the last ones of a sample

Decode = Callable[[np.ndarray], np.ndarray]
"""VQ codes (T,) to a uint8 picture (H, W, 3)."""


def choose(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """Up to `count` rows of `page.row_table`, evenly from every task, source and split; always the same.

    Strata take turns, so that the first screen shows something of each; the rows of one are in shard order.
    """
    split_order = pl.col("split").replace_strict(SPLITS, range(len(SPLITS)))
    by = ("task", "source", split_order, "index")
    ranked = rows.sort(*by, descending=[True, False, False, False])  # pictures first
    strata = ranked.partition_by("task", "source", "split", maintain_order=True, as_dict=True)
    shares = allot([stratum.height for stratum in strata.values()], count)
    chosen = []
    for (key, stratum), share in zip(strata.items(), shares, strict=True):
        rng = np.random.default_rng([SEED, *"/".join(map(str, key)).encode()])
        places = np.sort(rng.choice(stratum.height, share, replace=False))
        chosen.append(stratum[places].with_columns(turn=pl.int_range(pl.len())))
    return pl.concat(chosen).sort("turn", maintain_order=True).drop("turn")


def allot(sizes: Sequence[int], total: int) -> list[int]:
    """A share of `total` for each size: equal, but none above its size; the others share the remainder."""
    shares, left = [0] * len(sizes), total
    for done, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = min(sizes[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares


def code_decoder(shards: ShardSet, model: str) -> Decode:
    """A decoder of the shards' codes. Raises UserError if there are none, or `model` did not make them."""
    from janus.checkpoint.folder import open_model
    from janus.generate.pictures import vq_decoder

    folder = open_model(model, (shards.folder / TOKENIZER).parent)
    folder.check_codes(shards.manifest.vq, shards.folder)
    return vq_decoder(folder)


def cards(shards: ShardSet, chosen: pl.DataFrame, decode: Decode | None) -> list[dict[str, Any]]:
    """What the page shows of each chosen row. Raises UserError that names a damaged row."""
    tokenizer = Tokenizer.from_file(str(shards.folder / TOKENIZER))
    text_limit = max(_SCREENFUL, min(_LONGEST, TEXT_CHARACTERS // (_FIELDS_PER_SAMPLE * chosen.height)))
    pictures = chosen.select(pl.col("understood") + pl.col("drawn") * (2 if decode else 1))
    picture_limit = PICTURE_BYTES // max(1, int(pictures.to_series().sum()))
    label = "reading samples, decoding codes" if decode else "reading samples"
    shown = []
    with track(label, chosen.height, "samples") as advance:
        for row in chosen.iter_rows(named=True):
            sample = shards.rows(row["split"], row["task"]).read(row["index"])
            shown.append(_card(sample, shards.pictures[DRAWN], tokenizer, decode, text_limit, picture_limit))
            advance()
    return shown


def _card(
    sample: Sample,
    originals: Pictures,
    tokenizer: Tokenizer,
    decode: Decode | None,
    text_limit: int,
    picture_limit: int,
) -> dict[str, Any]:
    """text_limit: characters of a field. picture_limit: bytes of a picture."""
    pieces = marked_pieces(sample, tokenizer)
    long = sum(len(text) for text, _ in pieces) > text_limit
    piece_limit = text_limit // len(pieces) if long else text_limit
    pictures, messages = _conversation(sample, originals, decode)
    return {
        **{name: getattr(sample, name) for name in ("task", "source", "split")},
        "id": sample.sample_id,
        "messages": [
            {"role": role, "text": _cut(text, text_limit), "pictures": own}
            for role, text, own in messages[-_MESSAGES:]
        ],
        "prompt": _cut(sample.prompt, text_limit),
        "answer": _cut(sample.answer, text_limit),
        "tokens": len(sample.input_ids),
        "supervised": int((sample.supervised[:, 1] - sample.supervised[:, 0]).sum()),
        "pieces": [[_cut(text, piece_limit), supervised] for text, supervised in pieces],
        "pictures": [[caption, picture_uri(pixels, picture_limit)] for caption, pixels in pictures],
        "codes": len(sample.image_tokens),
    }


def _conversation(
    sample: Sample, originals: Pictures, decode: Decode | None
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, str, list[int]]]]:
    """Pictures with captions; and of each message its role, text and places of its pictures."""
    shown, places = iter(sample.images), []
    codes = iter(np.split(sample.image_tokens.astype(np.int32), max(1, len(sample.drawn))))
    pictures: list[tuple[str, np.ndarray]] = []
    for message in sample.messages:
        first = len(pictures)
        for name in message.pictures:
            if message.role == "user":
                pictures.append(("as the model sees it", next(shown)))
                continue
            codes_T = next(codes)
            if name in originals:
                pictures += [("original", original) for original in originals.read([name])]
            if decode is not None:
                pictures.append(("its codes, decoded", decode(codes_T)))
        places.append((message.role, message.text, list(range(first, len(pictures)))))
    return pictures, places


def _cut(text: str, limit: int) -> str:
    """The text, or its beginning and how much more there is."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def marked_pieces(sample: Sample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The sample's tokens as text, cut where supervision begins or ends: (text, whether it is supervised)."""
    spans = sample.supervised[:, :2].tolist()
    edges = sorted({0, len(sample.input_ids), *chain.from_iterable(spans)})
    pieces = []
    for lo, hi in pairwise(edges):
        supervised = any(start <= lo < end for start, end in spans)
        pieces.append((_decoded(sample.input_ids[lo:hi].tolist(), tokenizer), supervised))
    return pieces


def _decoded(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of the tokens; more than three of one token in a row (image placeholders) as token×n."""
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
