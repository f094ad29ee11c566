"""Micro-batches whose graphs are compiled: small samples of each task, through the trainer's collation."""

import numpy as np

from janus.model.config import JanusConfig
from janus.model.kernels import takes_slots
from janus.prompts import IMAGE, SIGNATURES, TEXT
from janus.tokens import SpecialTokens
from shards.schema import RowBlock
from trainer.stream.collate import collate
from trainer.stream.shapes import Batch, Counts, ImageShape, shape_for

SPECIAL = SpecialTokens(
    bos=0, eos=1, pad=2, begin_of_image=3, end_of_image=4, image_placeholder=5, user=6, assistant=7
)
WORD, PROMPT, ANSWER = 8, 12, 20
"""The id of every word; words of a prompt and of an answer."""


def batch_of(task: str, config: JanusConfig) -> Batch:
    """A micro-batch of two equal samples, with room for a third.

    A sample is a prompt, an understood picture, a drawn one and an answer, those of them that the task has.
    """
    signature, image, samples = SIGNATURES[task], ImageShape.of(config), 2
    parts: list[tuple[int, int, int | None]] = [(WORD, PROMPT, None)]
    parts += [(SPECIAL.image_placeholder, image.tokens, None)] * signature.understood
    parts += [(SPECIAL.image_placeholder, image.tokens, IMAGE)] * signature.drawn
    parts += [(WORD, ANSWER, TEXT)] * signature.text
    ids, lengths, kinds = zip(*parts, strict=True)
    ends = np.cumsum(lengths)
    spans = [
        (end - length, end, kind)
        for end, length, kind in zip(ends, lengths, kinds, strict=True)
        if kind is not None
    ]
    starts_L, ends_L, kinds_L = np.tile(np.array(spans, np.int32), (samples, 1)).T
    pixels = np.zeros((image.size, image.size, 3), np.uint8)
    each = np.ones(samples, np.int64)
    rows = RowBlock(
        sample_ids=[f"{task}-{i}" for i in range(samples)],
        tasks=[task] * samples,
        splits=["train"] * samples,
        lengths_R=each * ends[-1],
        ids_K=np.tile(np.repeat(np.array(ids, np.int32), lengths), samples),
        spans_R=each * len(spans),
        starts_L=starts_L,
        ends_L=ends_L,
        kinds_L=kinds_L,
        codes_R=each * image.tokens * signature.drawn,
        codes=np.zeros(samples * image.tokens * signature.drawn, np.uint16),
        images_R=each * signature.understood,
        images=[pixels] * samples * signature.understood,
    )
    sizes = ends[-1], ANSWER * signature.text, int(signature.understood), int(signature.drawn)
    present = np.arange(samples + 1)[None] < samples
    counts = Counts(*(present * int(size) for size in sizes))
    shape = shape_for(counts, image, slots=takes_slots())
    (batch,) = collate(task, rows, [samples], shape, SPECIAL)
    return batch
