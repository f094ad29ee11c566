"""Whether a row of the shards is one that its task's graph can take; says of which sample what is wrong."""

from __future__ import annotations

from math import isqrt

import numpy as np

from janus.common.errors import UserError
from janus.tokens import SpecialTokens
from shards.schema import PLACE, Fields
from trainer.stream.batch import BatchShape


def check_row(
    task: str, row: Fields, shape: BatchShape, special: SpecialTokens, held_out: bool = False
) -> None:
    """Raise UserError naming the sample if its task's graph cannot take it.

    held_out: nothing is trained on it, so it may be of the test split.
    """
    ids = np.frombuffer(row[PLACE["input_ids"]], np.int32)
    starts, ends = (np.frombuffer(row[PLACE[name]], np.int32) for name in ("span_starts", "span_ends"))
    slots = int((ids == special.image_placeholder).sum())
    wanted = 0 if task == "text" else shape.image.tokens
    problem: str | None
    if row[PLACE["task"]] != task.encode():
        problem = f"is of task {str(row[PLACE['task']], 'utf-8')}, not {task}"
    elif row[PLACE["split"]] == b"test" and not held_out:
        problem = "is marked test, which is never trained on"
    elif len(starts) == 0 or (starts >= ends).any():
        problem = "has no supervised tokens"
    elif starts.min() < 1 or ends.max() > len(ids):
        problem = f"has supervised spans outside its {len(ids)} tokens"
    elif slots != wanted:
        problem = f"has {slots} image placeholders, the model takes {wanted}"
    else:
        problem = _image_problem(task, row, int((ends - starts).sum()), shape)
    if problem:
        raise UserError(f"sample {name_of(row)}: {problem}; build the shards again for this model")


def _image_problem(task: str, row: Fields, supervised: int, shape: BatchShape) -> str | None:
    if task == "vqa":
        side = shape.image.size
        if row[PLACE["image"]] is None:
            return "has no image"
        if len(row[PLACE["image"]]) != 3 * side**2:
            return f"has an image of {isqrt(len(row[PLACE['image']]) // 3)} pixels, the model takes {side}"
    if task == "t2i":
        if row[PLACE["image_tokens"]] is None:
            return "has no image tokens (`pipelines` fills them in with the model's VQ encoder)"
        codes = np.frombuffer(row[PLACE["image_tokens"]], np.uint16)
        if len(codes) != shape.image.tokens:
            return f"has {len(codes)} image tokens, the model takes {shape.image.tokens}"
        if codes.max() >= shape.image.codes:
            return f"has image token {codes.max()}, the model has {shape.image.codes} codes"
        if supervised != shape.image.tokens:
            return f"supervises {supervised} positions, its image has {shape.image.tokens} tokens"
    return None


def name_of(row: Fields) -> str:
    """Its sample id."""
    return str(row[PLACE["sample_id"]], "utf-8")
