"""The kernels of a micro-batch on an Ascend, in the order of the network. Nothing was measured.

Symbols: P token positions, D width, F inner width, M patches of all pictures. Names ending in `_b` are bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from janus.inspect import kernels
from janus.inspect.costs import BYTES, Work
from janus.inspect.kernels import FLOAT, Kernel, Kernels, Part
from janus.model.config import JanusConfig, TextConfig, VisionConfig

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def holder(name: str) -> str:
    """The parameter that holds a checkpoint's weight: the Llama's joined products have one."""
    for joined, names in JOINED.items() if "language_model." in name else ():
        for own in names:
            name = name.replace(f".{own}.", f".{joined}.")
    return name


def micro_batch(config: JanusConfig, work: Work, trained: Collection[str], dtype: str) -> list[Kernel]:
    """Forward and backward of one micro-batch. trained: parts with gradients, as stages name them."""
    size, width, tokens = BYTES[dtype], config.text.hidden_size, config.num_image_tokens
    shown, drawn = work.understood * tokens, work.drawn * tokens
    parts = {name: Part(size, name in trained) for name in ("llama", "siglip", "aligner", "gen_aligner")}
    embeds, siglip = Part(size, "gen_embed" in trained), "siglip" in trained
    found = [*kernels.embedding(work.positions, (config.text.vocab_size, width), parts["llama"])]
    if shown:
        found += _siglip(config.vision, work.understood, parts["siglip"]._replace(passes=siglip))
        widths = config.vision.hidden_size, width, width
        found += kernels.mlp(shown, widths, parts["aligner"]._replace(passes=siglip))
    if drawn:
        codes, code_width = config.vq.num_embeddings, config.vq.embed_dim
        found += kernels.embedding(drawn, (codes, code_width), embeds)
        widths = code_width, width, width
        found += kernels.mlp(drawn, widths, parts["gen_aligner"]._replace(passes=embeds.trained))
    if shown + drawn:
        found += _place(work.positions, shown + drawn, width, size)
    found += _llama(config.text, work.positions, work.spans, parts["llama"])
    if work.targets:
        head = Part(size, "lm_head" in trained, group="heads and loss")
        found += kernels.take_rows(work.positions, work.targets, width, size, head.group)
        found += kernels.linear(work.targets, width, config.text.vocab_size, head, bias=False)
        found += kernels.cross_entropy(work.targets, config.text.vocab_size, head)
    if drawn:
        head = Part(size, "gen_head" in trained, group="heads and loss")
        found += kernels.take_rows(work.positions, drawn, width, size, head.group)
        found += kernels.mlp(drawn, (width, width, config.vq.num_embeddings), head, merged=True)
        found += kernels.cross_entropy(drawn, config.vq.num_embeddings, head)
    if size == FLOAT:  # only pixels are cast
        found = [kernel for kernel in found if kernel.name != "Cast" or kernel.group == "data"]
    return found


def llama_layer(config: TextConfig, positions: int, spans: Sequence[int], part: Part) -> Kernels:
    """One layer of the Llama, forward and backward; the sums of its gradients included.

    A branch is added by the norm behind it: the first norm has the sum of the layer before.
    """
    width, inner = config.hidden_size, config.intermediate_size
    x_b, angles_b = part.size * positions * width, 2 * part.size * positions * config.head_size
    yield from kernels.norm("AddRmsNorm", positions, width, part)
    yield from kernels.linear(positions, width, 3 * width, part, bias=False)
    yield kernels.simple("Split", "moves", 3 * x_b, 3 * x_b)
    yield kernels.simple("Concat", "moves", 3 * x_b, 3 * x_b)  # the gradients of q, k and v
    for _ in range(2):
        yield kernels.simple("RotaryPositionEmbedding", "rotary", x_b + angles_b, x_b)
        yield kernels.simple("RotaryPositionEmbeddingGrad", "rotary", x_b + angles_b, x_b)
    yield from kernels.attention(width, config.num_heads, positions, spans, part, causal=True)
    yield from kernels.linear(positions, width, width, part, bias=False)
    yield from kernels.norm("AddRmsNorm", positions, width, part)
    yield from kernels.linear(positions, width, 2 * inner, part, bias=False)
    yield from kernels.swiglu(positions, inner, part)
    yield from kernels.linear(positions, inner, width, part, bias=False)


def _llama(config: TextConfig, positions: int, spans: Sequence[int], part: Part) -> Kernels:
    angles_b = FLOAT * positions * config.head_size
    yield kernels.simple("Mul", "rotary", kernels.INDEX * positions, angles_b)
    for name in ("Cos", "Sin", "Mul", "Mul"):  # those of the queries are scaled
        yield kernels.simple(name, "rotary", angles_b, angles_b)
    for _ in range(4 if part.size < FLOAT else 0):
        yield kernels.simple("Cast", "rotary", angles_b, angles_b // 2, angles_b // 2)
    for _ in range(config.num_layers):
        yield from llama_layer(config, positions, spans, part)
    yield from kernels.norm("RmsNorm", positions, config.hidden_size, part)


def _siglip(config: VisionConfig, images: int, part: Part) -> Kernels:
    tokens, width = config.num_image_tokens, config.hidden_size
    patches, pixels = images * tokens, 3 * config.patch_size**2
    x_b, cut_b, position_b = part.size * patches * width, FLOAT * patches * pixels, FLOAT * tokens * width
    yield kernels.simple("Cast", "data", patches * pixels, cut_b)
    yield kernels.simple("MulsSub", "data", cut_b, cut_b)
    yield kernels.simple("Transpose", "data", cut_b, cut_b)
    yield from kernels.linear(patches, pixels, width, Part(FLOAT, part.trained, passes=False), merged=True)
    yield kernels.simple("Tile", "data", position_b, images * position_b)
    yield kernels.simple("Add", "adds", 2 * images * position_b, x_b)
    if part.trained:
        yield kernels.simple("ReduceSum", "adds", images * position_b, position_b)
        yield kernels.simple("ReduceSum", "adds", images * position_b, FLOAT * width)
        yield kernels.into_buffer(tokens * width, FLOAT)
    for _ in range(config.num_layers):
        yield from siglip_layer(config, images, part)
    yield from kernels.norm("LayerNorm", patches, width, part)


def siglip_layer(config: VisionConfig, images: int, part: Part) -> Kernels:
    """One layer of SigLIP, as `llama_layer`."""
    tokens, width, inner = config.num_image_tokens, config.hidden_size, config.intermediate_size
    patches, x_b = images * tokens, part.size * images * tokens * width
    yield from kernels.norm("LayerNorm", patches, width, part)
    for _ in range(3):
        yield from kernels.linear(patches, width, width, part)
    if part.backward:
        yield kernels.simple("AddN", "adds", 3 * x_b, x_b)  # what comes back through q, k and v
    yield from kernels.attention(width, config.num_heads, patches, [tokens] * images, part, causal=False)
    yield from kernels.linear(patches, width, width, part, merged=True)
    yield from kernels.add(x_b, part)
    yield from kernels.norm("LayerNorm", patches, width, part)
    yield from kernels.mlp(patches, (width, inner, width), part, merged=True)
    yield from kernels.add(x_b, part)


def _place(positions: int, images: int, width: int, size: int) -> Kernels:
    """Text and pictures behind each other, then each position's row."""
    both_b, index_b = size * (positions + images) * width, kernels.INDEX * positions
    yield kernels.simple("Concat", "moves", both_b, both_b)
    for name in ("Greater", "Add", "Select"):
        yield kernels.simple(name, "moves", index_b, index_b)
    yield from kernels.take_rows(positions + images, positions, width, size, "moves")
    yield kernels.simple("Split", "moves", both_b, both_b)
