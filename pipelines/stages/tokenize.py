"""Stage tokenize: rows → ids and supervised spans, over a process pool.

One part file per batch of rows, with an entry for each row, so that positions stay. A sample longer than the
limit is set aside, never cut: it would lose its end or its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from janus.common.console import track
from janus.images import ImagePreparation
from janus.prompts import EncodedSample, PromptRow, encode_samples
from janus.tokens import JanusTokenizer, load_tokenizer
from pipelines.pool import KILLED_TWICE, KILLS_WORKER, Chunk, chunks_of, map_chunks
from pipelines.rejects import write_rejects
from pipelines.stage import require_stage, run_stage
from pipelines.tables import REJECT_SCHEMA, ROW_SCHEMA, TOKEN_SCHEMA, read_columns, row_files, table_writer


def run(work: Path, tokenizer: Path, max_length: int, workers: int) -> dict[str, Any]:
    """Encode every row of ingest; gives stage.json's content.

    Raises UserError if ingest has not run or `tokenizer` is not a tokenizer's folder.
    """
    ingested = require_stage("ingest", work)
    num_image_tokens = ImagePreparation.from_folder(tokenizer).num_image_tokens
    inputs = {
        "ingest": ingested["fingerprint"],
        "tokenizer": load_tokenizer(tokenizer).sha256,
        "num_image_tokens": num_image_tokens,
        "max_length": max_length,
    }

    def body(folder: Path) -> dict[str, Any]:
        files = dict(zip(ingested["notes"]["read"], row_files(work, ingested["notes"]["read"]), strict=True))
        chunks = [chunk for source, file in files.items() for chunk in chunks_of(file, folder, source)]
        encode = partial(
            encode_chunk, tokenizer=tokenizer, num_image_tokens=num_image_tokens, max_length=max_length
        )
        rejects, tokens = [], 0
        with track("tokenize", read_columns(files.values(), ROW_SCHEMA, ["task"]).num_rows) as advance:
            for rows, part_tokens, rejected in map_chunks(encode, chunks, workers):
                tokens += part_tokens
                rejects.append(rejected)
                advance(rows)
        write_rejects(folder, rejects)
        return {"tokens": tokens, "parts": [chunk.out.name for chunk in chunks]}

    return run_stage("tokenize", work, inputs, body)


def encode_chunk(
    chunk: Chunk, tokenizer: Path, num_image_tokens: int, max_length: int
) -> tuple[int, int, pa.Table]:
    """Encode one batch of rows into its part file; gives rows, tokens kept, and rejects."""
    batch = chunk.read()
    # A skipped row has an empty sample, so that positions stay.
    rows = [PromptRow("t2i", "") if i in chunk.skip else row for i, row in enumerate(_prompt_rows(batch))]
    encoded = encode_samples(_tokenizer(tokenizer), rows, num_image_tokens)
    lengths = np.array([len(sample.input_ids) for sample in encoded], np.int64)
    kept = lengths <= max_length
    kept[list(chunk.skip)] = False
    with table_writer(chunk.out, TOKEN_SCHEMA) as writer:
        writer.write_batch(_token_batch(encoded, kept))
    rejects = [
        {
            "source": batch["source"][i].as_py(),
            "source_key": batch["source_key"][i].as_py(),
            "stage": "tokenize",
            "reason": KILLS_WORKER if i in chunk.skip else "too_long",
            "detail": KILLED_TWICE if i in chunk.skip else f"{lengths[i]} tokens, limit {max_length}",
        }
        for i in np.flatnonzero(~kept).tolist()
    ]
    return batch.num_rows, int(lengths[kept].sum()), pa.Table.from_pylist(rejects, REJECT_SCHEMA)


def _prompt_rows(batch: pa.RecordBatch) -> list[PromptRow]:
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
    samples = [sample if keep else None for sample, keep in zip(encoded, kept.tolist(), strict=True)]
    columns = {
        "input_ids": [sample and sample.input_ids for sample in samples],
        "supervised": [
            sample and [{"start": start, "end": end} for start, end in sample.supervised.tolist()]
            for sample in samples
        ],
        "num_tokens": [sample and len(sample.input_ids) for sample in samples],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in TOKEN_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=TOKEN_SCHEMA)
