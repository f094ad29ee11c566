"""Kernels of an Ascend as a count: what each reads, writes, multiplies and keeps, forward and backward.

Nothing is allocated, nothing was measured. The forms are those of `janus/model/kernels/ascend.py`; at O1 a
chain of element-wise operations is one kernel. Each operand is counted once. Views are no kernels: reshapes,
heads on the flat axis. What a weight's gradient adds to its float32 buffer belongs to the weight.

Symbols: m, k, n of a product (m, k) × (k, n); H heads, S a span of attention, N rows that predict one of V
classes. Names ending in `_b` are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

FLOAT = INDEX = 4  # bytes of float32 and int32
MASK_b = 2048 * 2048  # flash attention's causal mask, uint8, one for all layers
STATS_b = 2 * 8 * FLOAT  # its maximum and sum for a head of a token, eight floats each

GROUPS: tuple[str, ...] = ("products", "attention", "norms", "rotary", "activations", "adds", "moves")
GROUPS += ("heads and loss", "gradient sums", "optimizer", "data")
"""Where in a step a kernel stands."""


@dataclass(frozen=True)
class Kernel:
    """One launch. reads, writes: bytes. kept: bytes that stay for its backward and for what follows it."""

    name: str
    group: str
    reads: int
    writes: int
    operations: int = 0
    kept: int = 0


Kernels = Iterator[Kernel]


class Part(NamedTuple):
    """How a part of the network runs. size: bytes of an element.

    trained: its weights get gradients. passes: its inputs do. group: of its products.
    """

    size: int
    trained: bool
    passes: bool = True
    group: str = "products"

    @property
    def backward(self) -> bool:
        """Whether any gradient comes back to it."""
        return self.trained or self.passes


def linear(m: int, k: int, n: int, part: Part, bias: bool = True, merged: bool = False) -> Kernels:
    """A product with a weight, its two gradients, and the bias.

    merged: one kernel adds the bias and what follows it, and sums its gradient.
    """
    size = part.size
    yield _product(m, k, n, part)
    if part.passes:
        yield _product(m, n, k, part)
    if part.trained:
        yield _product(k, m, n, part)
        yield into_buffer(k * n, size)
    if bias and not merged:
        yield simple("BiasAdd", "adds", size * (m + 1) * n, size * m * n)
    if bias and part.trained:
        yield from () if merged else (simple("BiasAddGrad", "adds", size * m * n, size * n),)
        yield into_buffer(n, size)


def _product(m: int, k: int, n: int, part: Part) -> Kernel:
    return Kernel("MatMul", part.group, part.size * (m * k + k * n), part.size * m * n, 2 * m * k * n)


def mlp(m: int, widths: tuple[int, int, int], part: Part, merged: bool = False) -> Kernels:
    """Two linear layers with GELU between them. merged: as `linear` has it, of the second's bias."""
    (inputs, inner, outputs), inner_b = widths, part.size * m * widths[1]
    yield from linear(m, inputs, inner, part)
    yield simple("GeluExt", "activations", inner_b, inner_b, (part.backward + part.trained) * inner_b)
    if part.backward:
        yield simple("GeluGradExt", "activations", 2 * inner_b, inner_b)
    yield from linear(m, inner, outputs, part._replace(passes=part.backward), merged=merged)


def swiglu(m: int, inner: int, part: Part) -> Kernels:
    """Of gate and up side by side, as one product gives them."""
    both_b = 2 * part.size * m * inner
    yield simple("Swiglu", "activations", both_b, both_b // 2, both_b + part.trained * both_b // 2)
    yield simple("SwigluGrad", "activations", both_b + both_b // 2, both_b)


def attention(
    width: int, heads: int, positions: int, spans: Sequence[int], part: Part, causal: bool
) -> Kernels:
    """Flash attention, the whole square of scores counted; in float32 `_plain_attention`."""
    if part.size == FLOAT:
        yield from _plain_attention(width, heads, [positions] if causal else spans, part, causal)
        return
    x_b, stats_b, mask_b = part.size * positions * width, STATS_b * positions * heads, causal * MASK_b
    square, kept = 4 * width * sum(span**2 for span in spans), part.backward * (4 * x_b + stats_b)
    yield Kernel("FlashAttentionScore", "attention", 3 * x_b + mask_b, x_b + stats_b, square, kept)
    if part.backward:
        reads = 5 * x_b + stats_b + mask_b
        yield Kernel("FlashAttentionScoreGrad", "attention", reads, 3 * x_b, 2 * square)


def _plain_attention(width: int, heads: int, spans: Sequence[int], part: Part, causal: bool) -> Kernels:
    """Products and a softmax of each span; where it is causal, the flat axis is one span under a mask."""
    pairs, x_b = sum(span**2 for span in spans), FLOAT * sum(spans) * width
    scores_b, operations = FLOAT * heads * pairs, 2 * width * pairs
    for _ in range(8 if part.backward else 4):
        yield simple("Transpose", "attention", x_b, x_b)
    for _ in range(3 if part.backward else 1):  # towards the scores and away from them
        yield Kernel("BatchMatMul", "attention", 2 * x_b, scores_b, operations)
        yield Kernel("BatchMatMul", "attention", scores_b + x_b, x_b, operations)
    if causal:
        yield simple("Add", "attention", scores_b + FLOAT * pairs, scores_b)
    yield simple("Softmax", "attention", scores_b, scores_b, part.backward * (4 * x_b + scores_b))
    if part.backward:
        yield simple("SoftmaxGrad", "attention", 2 * scores_b, scores_b)


def norm(name: str, rows: int, width: int, part: Part) -> Kernels:
    """RmsNorm, AddRmsNorm, or LayerNorm, which has a bias. Statistics are float32, one of a row or two.

    AddRmsNorm, which MindSpore makes of two, adds a branch to what goes past it and gives the sum as well.
    """
    count, added, x_b = (2 if name == "LayerNorm" else 1), name.startswith("Add"), part.size * rows * width
    stats_b, weights_b = FLOAT * count * rows, count * part.size * width
    kept = part.trained * x_b + part.backward * (x_b + stats_b)
    yield simple(name, "norms", (1 + added) * x_b + weights_b, (1 + added) * x_b + stats_b, kept)
    if part.backward:
        reads = 2 * x_b + stats_b + weights_b
        yield simple(f"{name.removeprefix('Add')}Grad", "norms", reads, x_b + FLOAT * count * width)
    if part.backward and added:
        yield simple("AddN", "adds", 2 * x_b, x_b)
    if part.trained:
        yield from (into_buffer(width, FLOAT if count == 1 else part.size) for _ in range(count))


def add(x_b: int, part: Part) -> Kernels:
    """A branch and what goes past it; the gradients of both."""
    yield simple("Add", "adds", 2 * x_b, x_b)
    if part.backward:
        yield simple("AddN", "adds", 2 * x_b, x_b)


def embedding(rows: int, table: tuple[int, int], part: Part) -> Kernels:
    """Rows of a float32 table; its gradient is as large as the table, and summed in float32."""
    elements = rows * table[1]
    yield simple("Gather", "moves", FLOAT * elements + INDEX * rows, FLOAT * elements)
    yield simple("Cast", "moves", FLOAT * elements, part.size * elements)
    if part.trained:
        yield simple("Cast", "moves", part.size * elements, FLOAT * elements)
        sums_b = FLOAT * table[0] * table[1]
        yield simple("UnsortedSegmentSum", "moves", FLOAT * elements + INDEX * rows, sums_b)
        yield into_buffer(table[0] * table[1], FLOAT)


def take_rows(of: int, taken: int, width: int, size: int, group: str) -> Kernels:
    """Rows of x, and their gradients summed; both in float32, so cast to it and back."""
    x, rows = of * width, taken * width
    yield simple("Cast", group, size * x, FLOAT * x)
    yield simple("Gather", group, FLOAT * rows + INDEX * taken, FLOAT * rows)
    yield simple("Cast", group, FLOAT * rows, size * rows)
    yield simple("Cast", group, size * rows, FLOAT * rows)
    yield simple("UnsortedSegmentSum", group, FLOAT * rows + INDEX * taken, FLOAT * x)
    yield simple("Cast", group, FLOAT * x, size * x)


def cross_entropy(rows: int, classes: int, part: Part) -> Kernels:
    """Of logits that are cast to float32; log-softmax and negative log-likelihood have a backward each."""
    logits_b, floats_b, label_b = part.size * rows * classes, FLOAT * rows * classes, INDEX * rows
    yield simple("Cast", part.group, logits_b, floats_b)
    yield simple("LogSoftmax", part.group, floats_b, floats_b, floats_b)
    yield simple("NLLLoss", part.group, FLOAT * rows + label_b, 2 * FLOAT)
    yield simple("NLLLossGrad", part.group, label_b + 2 * FLOAT, floats_b)
    yield simple("LogSoftmaxGrad", part.group, 2 * floats_b, floats_b)
    yield simple("Cast", part.group, floats_b, logits_b)


def into_buffer(elements: int, size: int) -> Kernel:
    """A gradient of `size` bytes an element, added to its float32 buffer."""
    return simple("AssignAdd", "gradient sums", (FLOAT + size) * elements, FLOAT * elements)


def update(elements: int, rounded: bool) -> Kernels:
    """Of one weight: its share of the norm, clipping, AdamW, the empty buffer, and a rounded copy."""
    float_b = FLOAT * elements
    yield simple("SquareSum", "optimizer", float_b, FLOAT)
    yield simple("Mul", "optimizer", float_b, float_b)
    yield simple("AdamApplyOneWithDecayAssign", "optimizer", 4 * float_b, 3 * float_b)
    yield simple("Fill", "optimizer", FLOAT, float_b)
    if rounded:
        yield simple("Cast", "optimizer", float_b, float_b // 2)


def simple(name: str, group: str, reads: int, writes: int, kept: int = 0) -> Kernel:
    """A kernel whose time is that of its bytes."""
    return Kernel(name, group, reads, writes, 0, kept)
