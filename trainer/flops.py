"""Floating-point operations of a training step: those of matrix products alone, by formula.

A product of (m, k) and (k, n) is 2·m·k·n. A backward is up to two products of the same size: one for the
inputs' gradient, one for the weights', so what is trained costs three times its forward. With P token slots,
D width, F inner width, V vocabulary, N states that reach a head, Lᵢ the samples' lengths, the forward is

    Llama, per layer    8·P·D² (q, k, v, output) + 6·P·D·F (gate, up, down) + 4·D·Σ Lᵢ² (attention)
    SigLIP, per layer   8·M·D² + 4·M·D·F + 4·D·I·T², for I images of T patches, M = I·T, and its own D and F
    text head           2·N·D·V
    image head          2·N·D·(D + codes)
    aligners            2·M·(inputs·D + D²)
    patches             2·M·3·patch²·D

Attention counts the block-diagonal (Σ Lᵢ², the causal half not taken off), not the padded rows it may be
computed in. Helper products that stand in for sums (norms, rotary), convolutions and element-wise work are
not counted. A frozen part costs its forward, and one more where gradients pass through it (Llama and text
head in stage 1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from janus.model.config import JanusConfig, TextConfig, VisionConfig
from trainer.stream.shapes import Batch


def llama_flops(config: TextConfig, slots: int, spans: Iterable[int]) -> int:
    """Forward of the language model without its head. slots: P. spans: Lᵢ, what attention runs over."""
    width, inner = config.hidden_size, config.intermediate_size
    linear = slots * (8 * width**2 + 6 * width * inner)
    return config.num_layers * (linear + 4 * width * sum(span**2 for span in spans))


def text_head_flops(config: TextConfig, states: int) -> int:
    """Forward of lm_head for N states."""
    return 2 * states * config.hidden_size * config.vocab_size


def siglip_flops(config: VisionConfig, images: int) -> int:
    """Forward of the vision encoder."""
    width, inner, tokens = config.hidden_size, config.intermediate_size, config.num_image_tokens
    linear = images * tokens * (8 * width**2 + 4 * width * inner)
    attention = 4 * width * images * tokens**2
    patches = 2 * images * tokens * 3 * config.patch_size**2 * width
    return config.num_layers * (linear + attention) + patches


def batch_flops(config: JanusConfig, task: str, batch: Batch, trained: Collection[str]) -> int:
    """Forward and backward of one micro-batch. trained: parts with gradients, as stages name them."""
    width, tokens = config.text.hidden_size, config.num_image_tokens
    spans = np.bincount(batch.segment_ids_BS.reshape(-1))[1:].tolist()  # samples may share a row
    slots, states = batch.input_ids_P.size, batch.labels_N.size
    forward = {"llama": llama_flops(config.text, slots, spans)}
    if task == "t2i":
        assert batch.image_tokens_IT is not None
        entries = batch.image_tokens_IT.size
        forward["gen_aligner"] = 2 * entries * (config.vq.embed_dim * width + width**2)
        forward["gen_head"] = 2 * states * width * (width + config.vq.num_embeddings)
    else:
        forward["lm_head"] = text_head_flops(config.text, states)
    if task == "vqa":
        assert batch.pixels_IHWC is not None
        images = len(batch.pixels_IHWC)
        forward["siglip"] = siglip_flops(config.vision, images)
        forward["aligner"] = 2 * images * tokens * (config.vision.hidden_size * width + width**2)
    return sum(flops * _passes(part, trained) for part, flops in forward.items())


def _passes(part: str, trained: Collection[str]) -> int:
    """Forward, gradient of the inputs, gradient of the weights: how many of the three the part takes.

    Every stage trains the aligners, so all that stands behind them passes gradients on.
    """
    return 3 if part in trained else 1 if part == "siglip" else 2
