"""How many bytes a training step needs, counted from the structure of the network. Nothing is allocated.

Weights, gradient buffers and AdamW's two moments are float32: 4 bytes for every parameter of the trained
network (all but the VQ tokenizer), 4 + 8 for every trained one. In bfloat16 each weight is also kept cast,
2 bytes.

Activations are what the backward of `janus/model/layers.py` reads again. With P = rows · length positions,
D width, F inner width, H heads, S length, B rows, a Llama layer keeps

    9·P·D   input, normed input, rotated q and k, v, attention's output (by heads, and joined), the middle of
            the layer, normed middle
    4·P·F   gate, up, the sigmoid, their product
    B·H·S²  the attention's probabilities

A frozen layer through which a gradient only passes keeps no inputs of its linear layers: 6·P·D + 3·P·F +
B·H·S². A SigLIP layer, over M = images · patches positions, keeps 9·M·D + 3·M·F + I·H·T² (its inner
activation before and after GELU, and Φ); frozen it keeps nothing, as no gradient reaches it. An aligner
keeps its input and twice the Llama's width; the image head the same before its classes. A head keeps
logits, log-probabilities and their gradient: 3·N·V for N supervised positions. Beside them stand the text
and the placed embeddings, the final norm's input and output (4·P·D), the angles for every head (4·P·D), the
mask for every head (B·H·S²), and, while one layer goes backward, as much again as it keeps. A step runs one
task at a time, so the largest counts. What the allocator adds is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click

from janus.common.options import DTYPE, option
from janus.model.config import JanusConfig
from janus.model.stages import trained_parts
from janus.prompts import TASKS

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Load:
    """What one micro-batch holds: `rows` of `length` tokens, one image a row where the task has images."""

    rows: int = option(1, "Rows of a micro-batch.", click.IntRange(min=1))
    length: int = option(1024, "Tokens of a row.", click.IntRange(min=1))
    answer: int = option(128, "Supervised tokens of a text or vqa row.", click.IntRange(min=1))
    dtype: str = option("float32", "What forward and backward compute in.", DTYPE)


@dataclass(frozen=True)
class StageBytes:
    """Bytes that training a stage needs, by what they are for."""

    weights: int
    casts: int
    gradients: int
    moments: int
    activations: int
    task: str  # the one with the most activations

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.casts + self.gradients + self.moments + self.activations


def stage_bytes(
    config: JanusConfig, parts: Mapping[str, int], stage: int, load: Load, train_gen_embed: bool
) -> StageBytes:
    """The bytes of a stage.

    parts: parameters of each part of the network, as `janus.model.janus.PARTS` names them.
    """
    trained_names = trained_parts(stage, train_gen_embed)
    trained = sum(parts[part] for part in trained_names)
    network = sum(count for part, count in parts.items() if part != "vq")
    tasks = {
        task: activations(config, task, load, trained_names)
        for task in TASKS
        if task != "text" or "llama" in trained_names  # frozen, text has nothing to train
    }
    task = max(tasks, key=lambda name: tasks[name])
    return StageBytes(
        weights=4 * network,
        casts=2 * network if load.dtype == "bfloat16" else 0,
        gradients=4 * trained,
        moments=8 * trained,
        activations=tasks[task] * BYTES[load.dtype],
        task=task,
    )


def activations(config: JanusConfig, task: str, load: Load, trained: frozenset[str]) -> int:
    """Elements kept for the backward of one micro-batch of a task; see the top of this file."""
    text = config.text
    positions, width = load.rows * load.length, text.hidden_size
    layer = _llama_layer(config, load, "llama" in trained)
    mask = load.rows * text.num_heads * load.length**2
    kept = text.num_layers * layer + 8 * positions * width + mask
    kept += _head(config, task, load) + _image_side(config, task, load, trained)
    return kept + layer


def _llama_layer(config: JanusConfig, load: Load, trained: bool) -> int:
    text, positions = config.text, load.rows * load.length
    wide, inner = (9, 4) if trained else (6, 3)
    scores = load.rows * text.num_heads * load.length**2
    return positions * (wide * text.hidden_size + inner * text.intermediate_size) + scores


def _head(config: JanusConfig, task: str, load: Load) -> int:
    """From the gathered states to the loss."""
    width = config.text.hidden_size
    if task == "t2i":
        return load.rows * config.num_image_tokens * 3 * (width + config.vq.num_embeddings)
    return load.rows * load.answer * (width + 3 * config.text.vocab_size)


def _image_side(config: JanusConfig, task: str, load: Load, trained: frozenset[str]) -> int:
    """Towers and aligners of the task's images."""
    if task == "text":
        return 0
    vision, positions = config.vision, load.rows * config.num_image_tokens
    inputs = vision.hidden_size if task == "vqa" else config.vq.embed_dim
    kept = positions * (inputs + 2 * config.text.hidden_size)
    if task == "vqa" and "siglip" in trained:
        scores = load.rows * vision.num_heads * config.num_image_tokens**2
        layer = positions * (9 * vision.hidden_size + 3 * vision.intermediate_size) + scores
        kept += vision.num_layers * layer
    return kept
