"""Stage tokenize: rows → ids and supervised spans, over a process pool.

A part file per batch of rows, a row of it per row, so that positions stay. A sample longer than the
limit is set aside, never cut: it would lose its end or its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from janus.common.console import track
from janus.images import ImagePreparation
from janus.prompts import EncodedSample, PromptRow, encode_samples
from janus.tokens import JanusTokenizer, load_tokenizer
from pipelines.pool import KILLS_WORKER, map_chunks
from pipelines.rejects import reject_table, write_rejects
from pipelines.stage import require_stage, run_stage
from pipelines.tables import TOKEN_SCHEMA, num_batches, read_batch, read_columns, table_writer


@dataclass(frozen=True)
class Chunk:
    """One record batch of rows to encode."""

    rows: Path
    batch: int
    part: Path
    tokenizer: Path
    num_image_tokens: int
    max_length: int
    skip: frozenset[int] = frozenset()

    def names(self) -> list[str]:
        """Each row's source and key."""
        batch = read_batch(self.rows, self.batch)
        keys = zip(batch["source"].to_pylist(), batch["source_key"].to_pylist(), strict=True)
        return [f"row {source}/{key}" for source, key in keys]

    def __str__(self) -> str:
        return f"batch {self.batch} of {self.rows}"


def tokenize(work: Path, tokenizer: Path, max_length: int, workers: int) -> dict[str, Any]:
    """Encode every row of ingest; gives stage.json's content.

    Raises UserError if ingest has not run or the tokenizer folder is not one.
    """
    before = require_stage("ingest", work)
    preparation = ImagePreparation.from_folder(tokenizer)
    inputs = {
        "ingest": before["fingerprint"],
        "tokenizer": load_tokenizer(tokenizer).sha256,
        "num_image_tokens": preparation.num_image_tokens,
        "max_length": max_length,
    }

    def body(folder: Path) -> dict[str, Any]:
        chunks = [
            Chunk(
                rows,
                batch,
                folder / f"{source}-{batch:05d}.arrow",
                tokenizer,
                preparation.num_image_tokens,
                max_length,
            )
            for source in before["notes"]["read"]
            for rows in [work / "ingest" / f"{source}.rows.arrow"]
            for batch in range(num_batches(rows))
        ]
        return _tokenize_all(chunks, folder, workers)

    return run_stage("tokenize", work, inputs, body)


def _tokenize_all(chunks: Sequence[Chunk], folder: Path, workers: int) -> dict[str, Any]:
    total = sum(read_columns(path, ["task"]).num_rows for path in {chunk.rows for chunk in chunks})
    rejects, tokens = [], 0
    with track("tokenize", total) as advance:
        for rows, part_tokens, rejected in map_chunks(tokenize_chunk, chunks, workers):
            tokens += part_tokens
            rejects.append(rejected)
            advance(rows)
    write_rejects(folder, rejects)
    return {"tokens": tokens, "parts": [chunk.part.name for chunk in chunks]}


def tokenize_chunk(chunk: Chunk) -> tuple[int, int, pa.Table]:
    """Encode one batch into its part file; gives rows, tokens kept, and rejects."""
    batch = read_batch(chunk.rows, chunk.batch)
    skipped = np.isin(np.arange(batch.num_rows), list(chunk.skip))
    # A skipped row has an empty sample, so that positions stay.
    rows = [
        PromptRow("t2i", "") if skip else row for row, skip in zip(prompt_rows(batch), skipped, strict=True)
    ]
    encoded = encode_samples(_tokenizer(chunk.tokenizer), rows, chunk.num_image_tokens)
    lengths = np.array([len(sample.input_ids) for sample in encoded], np.int64)
    kept = (lengths <= chunk.max_length) & ~skipped
    with table_writer(chunk.part, TOKEN_SCHEMA) as writer:
        writer.write_batch(_token_batch(encoded, kept))
    detail = f"limit {chunk.max_length}"
    rejects = [
        {
            "source": batch["source"][i].as_py(),
            "source_key": batch["source_key"][i].as_py(),
            "stage": "tokenize",
            "reason": KILLS_WORKER if skipped[i] else "too_long",
            "detail": "a worker process died on it, twice"
            if skipped[i]
            else f"{lengths[i]} tokens, {detail}",
        }
        for i in np.flatnonzero(~kept).tolist()
    ]
    return batch.num_rows, int(lengths[kept].sum()), reject_table(rejects)


def prompt_rows(batch: pa.RecordBatch) -> list[PromptRow]:
    """The rows of a batch as the prompt layout takes them."""
    columns = (batch[name].to_pylist() for name in ("task", "prompt", "answer", "history"))
    return [
        PromptRow(task, prompt, answer, tuple((turn["user"], turn["assistant"]) for turn in history))
        for task, prompt, answer, history in zip(*columns, strict=True)
    ]


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> JanusTokenizer:
    """Once per worker: opening takes a second."""
    return load_tokenizer(folder)


def _token_batch(encoded: Sequence[EncodedSample], kept: np.ndarray) -> pa.RecordBatch:
    """Columns of TOKEN_SCHEMA, null where a row is not kept."""
    pairs = list(zip(encoded, kept.tolist(), strict=True))
    ids = [sample.input_ids if keep else sample.input_ids[:0] for sample, keep in pairs]
    spans = [sample.supervised if keep else sample.supervised[:0] for sample, keep in pairs]
    mask = pa.array(~kept)
    flat_spans = np.concatenate([np.empty((0, 2), np.int32), *spans])
    struct = pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(flat_spans[:, i])) for i in (0, 1)], ["start", "end"]
    )
    return pa.RecordBatch.from_arrays(
        [
            pa.ListArray.from_arrays(_offsets(ids), np.concatenate([np.empty(0, np.int32), *ids]), mask=mask),
            pa.ListArray.from_arrays(_offsets(spans), struct, mask=mask),
            pa.array([len(sample.input_ids) for sample in encoded], pa.int32(), mask=~kept),
        ],
        schema=TOKEN_SCHEMA,
    )


def _offsets(rows: Sequence[np.ndarray]) -> pa.Array:
    return pa.array(np.cumsum([0, *(len(row) for row in rows)]), pa.int32())
