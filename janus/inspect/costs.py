"""What a network costs: parameters, the bytes of a training step, its operations. Nothing is allocated.

Symbols: P token positions, D width, F inner width, H heads, N targets, V vocabulary, I images of T tokens,
M = I·T, S the length of a span that attention runs over.

Operations are those of the products, 2·m·k·n each: no convolutions, no element-wise work, no helper products
that stand in for sums. A layer takes 8·P·D² for q, k, v and output, 2·P·D·F for each of its inner products
(Llama three, SigLIP two), and 4·D·ΣS² for attention: the block-diagonal, the causal half not taken off.

Bytes. Weights, gradients and AdamW's two moments are float32: 4 bytes for every parameter of the trained
network (all but the VQ tokenizer), 4 + 8 for every trained one. In bfloat16 each weight is also kept cast, 2
bytes. Activations are what the backward of `janus/model/kernels` reads again. A Llama layer keeps

    9·P·D   input, normed input, rotated q and k, v, attention's output (twice), middle, normed middle
    4·P·F   gate, up, the sigmoid, their product
    H·ΣS²   the attention's probabilities

A frozen layer through which a gradient only passes keeps no inputs of its linear layers: 6·P·D + 3·P·F +
H·ΣS². A SigLIP layer keeps 9·M·D + 3·M·F + H·I·T² (its inner activation before and after GELU, and Φ);
frozen it keeps nothing, as no gradient reaches it. An aligner keeps its input and twice the Llama's width;
the image head the same before its classes. A head keeps logits, log-probabilities and their gradient, 3·N·V.
Further: text and placed embeddings, the final norm's input and output (4·P·D), the angles for every head
(4·P·D), the mask for every head (H·ΣS²), and, while one layer goes backward, as much again as it keeps. A
step runs one task at a time, so the largest counts. What the allocator adds is not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import click

from janus.common.options import DTYPE, option
from janus.device import dtypes
from janus.model.config import JanusConfig, TextConfig, VisionConfig
from janus.model.stages import STAGES, trained_parts
from janus.prompts import SIGNATURES

if TYPE_CHECKING:
    from janus.checkpoint.folder import ModelFolder

BYTES = {"float32": 4, "bfloat16": 2}
COLUMNS = ("weights", "casts", "gradients", "moments", "activations", "total")


@dataclass(frozen=True)
class Work:
    """What one micro-batch gives the network. positions: P. spans: each S. targets: of text, N.

    understood, drawn: pictures, I of each kind; each token of a drawn one is a target.
    """

    positions: int
    spans: Sequence[int]
    targets: int
    understood: int
    drawn: int


@dataclass(frozen=True)
class Load:
    """What one micro-batch holds: `rows` of `length` tokens, one image a row where the task has images."""

    rows: int = option(1, "Rows of a micro-batch.", click.IntRange(min=1))
    length: int = option(1024, "Tokens of a row.", click.IntRange(min=1))
    answer: int = option(128, "Supervised tokens of a text or vqa row.", click.IntRange(min=1))
    dtype: str = option("auto", "What products compute in.", DTYPE, shown="bfloat16 on Ascend, else float32")

    def on(self, device: str) -> Load:
        """With the dtype that training on `device` has."""
        return replace(self, dtype=dtypes(device)[-1]) if self.dtype == "auto" else self

    def work(self, config: JanusConfig, task: str) -> Work:
        """This load as a micro-batch of a task."""
        kinds = SIGNATURES[task]
        counts = (self.answer * kinds.text, kinds.understood, kinds.drawn)
        return Work(self.rows * self.length, [self.length] * self.rows, *(self.rows * n for n in counts))


def operations(config: JanusConfig, work: Work, trained: Collection[str]) -> int:
    """Forward and backward of one micro-batch. trained: parts with gradients, as stages name them."""
    width, vq, vision, tokens = config.text.hidden_size, config.vq, config.vision, config.num_image_tokens
    shown, drawn = work.understood * tokens, work.drawn * tokens
    layers = transformer_operations(vision, shown, [vision.num_image_tokens] * work.understood)
    forward = {
        "llama": transformer_operations(config.text, work.positions, work.spans),
        "lm_head": 2 * work.targets * width * config.text.vocab_size,
        "gen_aligner": 2 * drawn * (vq.embed_dim * width + width**2),
        "gen_head": 2 * drawn * width * (width + vq.num_embeddings),
        "siglip": layers + 2 * shown * 3 * vision.patch_size**2 * vision.hidden_size,
        "aligner": 2 * shown * (vision.hidden_size * width + width**2),
    }
    # Forward, gradient of the inputs, gradient of the weights: how many of the three the part takes. Every
    # stage trains the aligners, so gradients pass through all that follows them.
    passes = {part: 3 if part in trained else 1 if part == "siglip" else 2 for part in forward}
    # Attention has no weights: its backward takes both gradients of its products, frozen or not.
    frozen = 0 if "llama" in trained else attention_operations(config.text, work.spans)
    return frozen + sum(count * passes[part] for part, count in forward.items())


def transformer_operations(config: TextConfig | VisionConfig, positions: int, spans: Sequence[int]) -> int:
    """Forward of the layers of a Llama or SigLIP."""
    width, inner = config.hidden_size, config.intermediate_size
    products = 3 if isinstance(config, TextConfig) else 2
    linear = positions * (8 * width**2 + 2 * products * width * inner)
    return config.num_layers * linear + attention_operations(config, spans)


def attention_operations(config: TextConfig | VisionConfig, spans: Sequence[int]) -> int:
    """Forward of the attention of all layers: its two products."""
    return config.num_layers * 4 * config.hidden_size * sum(span**2 for span in spans)


def activations(config: JanusConfig, work: Work, trained: Collection[str]) -> int:
    """Elements kept for the backward of one micro-batch; see the top of this file."""
    text, vision, vq, positions = config.text, config.vision, config.vq, work.positions
    width, tokens = text.hidden_size, config.num_image_tokens
    scores = text.num_heads * sum(span**2 for span in work.spans)
    wide, inner = (9, 4) if "llama" in trained else (6, 3)
    layer = positions * (wide * width + inner * text.intermediate_size) + scores
    kept = (text.num_layers + 1) * layer + 8 * positions * width + scores
    kept += work.targets * (width + 3 * text.vocab_size)
    kept += work.drawn * tokens * (3 * (width + vq.num_embeddings) + vq.embed_dim + 2 * width)
    kept += work.understood * tokens * (vision.hidden_size + 2 * width)
    if work.understood and "siglip" in trained:
        scores = work.understood * vision.num_heads * tokens**2
        inner = 9 * vision.hidden_size + 3 * vision.intermediate_size
        kept += vision.num_layers * (work.understood * tokens * inner + scores)
    return kept


def stage_bytes(
    config: JanusConfig, parts: Mapping[str, int], stage: int, load: Load, train_gen_embed: bool
) -> dict[str, Any]:
    """Bytes that training a stage needs, by `COLUMNS`, and the `task` with the most activations.

    parts: parameters of each part of the network, as `janus.model.janus.PARTS` names them.
    """
    names = trained_parts(stage, train_gen_embed)
    trained = sum(parts[part] for part in names)
    network = sum(count for part, count in parts.items() if part != "vq")
    tasks = {
        task: activations(config, load.work(config, task), names)
        for task in ("text", "vqa", "t2i")
        if task != "text" or "llama" in names  # frozen, text has nothing to train
    }
    task = max(tasks, key=lambda name: tasks[name])
    needed = {
        "weights": 4 * network,
        "casts": 2 * network if load.dtype == "bfloat16" else 0,
        "gradients": 4 * trained,
        "moments": 8 * trained,
        "activations": tasks[task] * BYTES[load.dtype],
    }
    return {**needed, "total": sum(needed.values()), "task": task}


def describe(folder: ModelFolder, load: Load, train_gen_embed: bool) -> dict[str, Any]:
    """Layout, dtypes, sizes, parameters of each part, and the bytes of each stage, as plain values."""
    from janus.model.janus import PARTS, parameter_shapes, part_of

    parts = dict.fromkeys(PARTS, 0)
    for name, shape in parameter_shapes(folder.config).items():
        parts[part_of(name)] += prod(shape)
    checkpoint = folder.checkpoint
    stored = list(checkpoint.tensors.values()) if checkpoint else []
    return {
        "model": folder.name,
        "layout": checkpoint.layout if checkpoint else None,
        "dtypes": sorted({tensor.dtype for tensor in stored}),
        "bytes_on_disk": sum(tensor.nbytes for tensor in stored),
        "config": asdict(folder.config),
        "parameters": parts,
        "load": asdict(load),
        "stages": {str(s): stage_bytes(folder.config, parts, s, load, train_gen_embed) for s in STAGES},
    }


def lines(description: dict[str, Any]) -> Iterator[str]:
    """The description for a person."""
    parameters, load, stored = description["parameters"], description["load"], "has no weights"
    if description["layout"]:
        dtypes, size = "/".join(description["dtypes"]), _gib(description["bytes_on_disk"])
        stored = f"{description['layout']} layout, {dtypes}, {size} GiB on disk"
    yield f"{description['model']}: {stored}"
    for part, sizes in description["config"].items():
        yield f"  {part:7} " + ", ".join(f"{name} {value}" for name, value in sizes.items())
    yield f"parameters: {sum(parameters.values()):,}"
    yield from (f"  {part:12} {count:>14,}" for part, count in parameters.items())
    batch = f"{load['rows']} rows × {load['length']} tokens, {load['dtype']}"
    yield f"GiB that training needs, a micro-batch of {batch}:"
    yield "  stage " + "".join(f"{name:>13}" for name in COLUMNS) + "  most in"
    for stage, needed in description["stages"].items():
        sizes = "".join(f"{_gib(needed[name]):>13}" for name in COLUMNS)
        yield f"  {stage:5} {sizes}  {needed['task']}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
