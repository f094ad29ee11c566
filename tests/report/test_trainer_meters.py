"""Operations by formula, against products counted one by one; step times."""

from __future__ import annotations

import numpy as np
import pytest

from bench.measures.flops import text_step_flops
from janus.model.config import JanusConfig, TextConfig, VisionConfig, VQConfig
from janus.model.stages import trained_parts
from trainer.flops import batch_flops
from trainer.report.meters import peak_memory, step_time
from trainer.stream.shapes import Batch

CONFIG = JanusConfig(
    TextConfig(hidden_size=4, num_layers=3, num_heads=1, intermediate_size=6, vocab_size=10),
    VisionConfig(hidden_size=2, num_layers=5, num_heads=1, intermediate_size=7, image_size=6, patch_size=3),
    VQConfig(embed_dim=3, num_embeddings=11),
)
SLOTS, STATES, IMAGES = 16, 9, 2
LENGTHS = (5, 8)


def _batch(task: str) -> Batch:
    segments = np.zeros((2, 15), np.int32)  # both samples in one row
    segments[1, : sum(LENGTHS)] = np.repeat([1, 2], LENGTHS)
    flat, states = np.zeros(SLOTS, np.int32), np.zeros(STATES, np.int32)
    pixels = np.zeros((IMAGES, 6, 6, 3), np.uint8) if task == "vqa" else None
    codes = np.zeros((IMAGES, 4), np.int32) if task == "t2i" else None
    token_of = np.zeros_like(segments)
    return Batch(flat, flat, flat, token_of, flat, segments, states, states, pixels, codes, 2, 13, 8)


def _product(m: int, k: int, n: int) -> int:
    return 2 * m * k * n


def _attention(length: int, width: int) -> int:
    return _product(length, width, length) + _product(length, length, width)


LLAMA = 3 * (
    4 * _product(SLOTS, 4, 4) + 3 * _product(SLOTS, 4, 6) + sum(_attention(length, 4) for length in LENGTHS)
)
TEXT_HEAD = _product(STATES, 4, 10)
SIGLIP = _product(8, 3 * 9, 2) + 5 * (
    4 * _product(8, 2, 2) + 2 * _product(8, 2, 7) + IMAGES * _attention(4, 2)
)
ALIGNER = _product(8, 2, 4) + _product(8, 4, 4)
GEN_ALIGNER = _product(8, 3, 4) + _product(8, 4, 4)
GEN_HEAD = _product(STATES, 4, 4) + _product(STATES, 4, 11)


@pytest.mark.parametrize(
    ("task", "stage", "expected"),
    [
        ("text", 3, 3 * (LLAMA + TEXT_HEAD)),
        ("vqa", 3, 3 * (LLAMA + TEXT_HEAD + SIGLIP + ALIGNER)),
        ("vqa", 2, 3 * (LLAMA + TEXT_HEAD + ALIGNER) + SIGLIP),
        ("vqa", 1, 2 * (LLAMA + TEXT_HEAD) + 3 * ALIGNER + SIGLIP),
        ("t2i", 3, 3 * (LLAMA + GEN_ALIGNER + GEN_HEAD)),
        ("t2i", 1, 2 * LLAMA + 3 * (GEN_ALIGNER + GEN_HEAD)),
    ],
)
def test_operations_are_those_of_the_products(task: str, stage: int, expected: int) -> None:
    assert batch_flops(CONFIG, task, _batch(task), trained_parts(stage, True)) == expected


def test_the_benchmarks_text_step_has_the_same_formula() -> None:
    assert text_step_flops(CONFIG.text, SLOTS, STATES, LENGTHS) == 3 * (LLAMA + TEXT_HEAD)


def test_step_times() -> None:
    times = step_time([0.1 * n for n in range(1, 102)])
    assert times["step_seconds_median"] == pytest.approx(5.1)
    assert times["step_seconds_p95"] == pytest.approx(9.6)
    assert step_time([]) == {"step_seconds_median": None, "step_seconds_p95": None}


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory("CPU")["peak_memory"]
    block = np.ones(200 * 2**20, np.uint8)
    after = peak_memory("CPU")["peak_memory"]
    assert before <= after
    assert after > block.nbytes
