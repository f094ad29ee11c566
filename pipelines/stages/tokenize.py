"""Stage tokenize: rows → ids and supervised spans, over a process pool.

One part file per batch of rows, with an entry for each row, so that positions stay. A sample longer than the
limit is rejected, never cut: it would lose its end or its image.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from janus.common.console import track
from janus.images import ImagePreparation
from janus.prompts import Message, encode_samples
from janus.tokens import JanusTokenizer
from pipelines import tables
from pipelines.pool import KILLED, Chunk, chunks_of, map_chunks
from pipelines.stage import require_stage, run_stage


def run(work: Path, tokenizer: Path, max_length: int, train_begin: bool, workers: int) -> dict[str, Any]:
    """Encode every row of ingest; gives stage.json's content.

    Raises UserError if ingest has not run or `tokenizer` is not a tokenizer's folder.
    """
    ingested = require_stage("ingest", work)
    num_image_tokens = ImagePreparation.from_folder(tokenizer).num_image_tokens
    inputs = {
        "ingest": ingested["fingerprint"],
        "tokenizer": JanusTokenizer(tokenizer).sha256,
        "num_image_tokens": num_image_tokens,
        "max_length": max_length,
        "train_begin": train_begin,
    }

    def body(folder: Path) -> dict[str, Any]:
        sources = ingested["notes"]["read"]
        files = tables.row_files(work, sources)
        chunks = [c for s, file in zip(sources, files, strict=True) for c in chunks_of(file, folder, s)]
        encode = partial(
            _encode_chunk,
            tokenizer=tokenizer,
            num_image_tokens=num_image_tokens,
            max_length=max_length,
            train_begin=train_begin,
        )
        rejects: list[dict[str, Any]] = []
        rows = tables.read_columns(files, tables.ROW_SCHEMA, ["task"]).height
        with track("tokenize", rows) as advance:
            for done, rejected in map_chunks(encode, chunks, workers):
                rejects += rejected
                advance(done)
        tables.write_rejects(folder, rejects)
        return {"parts": [chunk.out.name for chunk in chunks]}

    return run_stage("tokenize", work, inputs, body)


def _encode_chunk(
    chunk: Chunk, tokenizer: Path, num_image_tokens: int, max_length: int, train_begin: bool
) -> tuple[int, list[dict[str, Any]]]:
    """Encode one batch of rows into its part file; gives the number of rows, and the rejects."""
    batch = chunk.read().to_pylist()
    rows = [[Message(**message) for message in row["messages"]] for row in batch]
    for i in chunk.skip:
        rows[i] = [Message("user", "")]  # an empty sample in its place, so that positions stay
    rejects = []
    samples: list[dict[str, Any]] = []
    for i, sample in enumerate(encode_samples(_tokenizer(tokenizer), rows, num_image_tokens, train_begin)):
        length = len(sample.input_ids)
        if i not in chunk.skip and length <= max_length:
            spans = [
                dict(zip(("start", "end", "kind"), span, strict=True)) for span in sample.supervised.tolist()
            ]
            samples.append({"input_ids": sample.input_ids, "supervised": spans, "num_tokens": length})
            continue
        samples.append({})
        pictures = sum(len(message.pictures) for message in rows[i])
        too_long = ("too_long", f"{length} tokens with {pictures} pictures, limit {max_length}")
        reason = KILLED if i in chunk.skip else too_long
        values = (batch[i]["source"], batch[i]["source_key"], "tokenize", *reason)
        rejects.append(dict(zip(tables.REJECT_SCHEMA.names, values, strict=True)))
    tables.write_table(chunk.out, pa.Table.from_pylist(samples, tables.TOKEN_SCHEMA))
    return len(batch), rejects


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> JanusTokenizer:
    """Once per worker: opening takes a second."""
    return JanusTokenizer(folder)
