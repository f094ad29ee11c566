"""What a compiled graph must not hold: each rule is a function of its nodes and says what is wrong.

`RULES` are those of one graph; `layer_faults` and `count_faults` compare two. Each has a case in tests/ascend
that breaks it.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from bench.ascend.audit.dump import STRUCTURE, VIEWS, Node, TensorType
from bench.ascend.audit.support import Support
from janus.device import HEAD_STEP, LARGEST_HEAD, MOST_SEGMENTS
from janus.inspect.kernels import Kernel
from janus.model.kernels.ascend import CAUSAL

FUSED = "GraphKernel_"
"""What MindSpore fuses out of element-wise operations at O1; level O0 shows the parts."""
LAYER_KERNELS = 40
"""Kernels of a Llama layer, forward, backward and adding up, at most."""
NEAR = 0.02
"""How far bytes may be from the count, as a share of it."""
LARGEST_CONSTANT = 2**20
MASK = TensorType("UInt8", (CAUSAL, CAUSAL))
TND, CAUSAL_MODES, MOST_HEADS, MOST_TOKENS = 4, (2, 3), 256, 2**20
"""MindSpore's number of layout TND, its causal modes; limits of `mindspore.ops.flash_attention_score`."""

Rule = Callable[[Sequence[Node], Support], Iterator[str]]


def kernels(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that are launched: neither structure nor another view of the same memory."""
    return [node for node in nodes if node.primitive not in STRUCTURE | VIEWS]


def fallbacks(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """Kernel selection found nothing on Ascend, and MindSpore would compute on the host without a word.

    One TensorToTuple is allowed: flash attention takes where segments end from the host.
    """
    marked = [node for node in nodes if "kernel_backoff" in node.attributes]
    tuples = sum(node.primitive == "TensorToTuple" for node in marked)
    yield from (_at(node, "has no Ascend kernel") for node in marked if node.primitive != "TensorToTuple")
    if tuples > 1:
        yield f"TensorToTuple is there {tuples} times: the host is waited for at each"


def undocumented(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """Neither MindSpore documents the primitive for Ascend nor the table names a source."""
    seen: set[str] = set()
    for node in kernels(nodes):
        if node.primitive in seen or node.primitive.startswith(FUSED):
            continue
        seen.add(node.primitive)
        if not support.known(node.primitive):
            yield _at(node, "is neither documented for Ascend nor allowed by support.yaml")


def lone_gradients(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """MindSpore rewrites this gradient only beside its forward; alone, CANN's kernel gives the loss."""
    for node in nodes:
        if node.primitive == "SparseSoftmaxCrossEntropyWithLogits" and "is_grad: Bool(1)" in node.attributes:
            yield _at(node, "is left with is_grad: on Ascend its first output is the loss")


def narrow_sums(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """The backward of a gather: no page says that A2 adds up bfloat16 there."""
    for node in nodes:
        if node.primitive == "UnsortedSegmentSum" and node.tensors[0].dtype == "BFloat16":
            yield _at(node, "adds up bfloat16, for which no kernel is known; gather float32")


def long_integers(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """Tensors of 64-bit integers, which come of a forgotten dtype."""
    for node in kernels(nodes):
        if node.primitive not in support.int64 and any(tensor.dtype == "Int64" for tensor in node.tensors):
            yield _at(node, "reads int64; make it int32")


def dtypes(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """MindSpore does not look at the dtypes of a kernel of aclnn; CANN's tables do."""
    for node in nodes:
        rows, found = support.dtypes.get(node.primitive, []), tuple(t.dtype for t in node.tensors)
        if rows and not any(found[: len(row)] == row for row in rows):
            yield _at(node, f"reads {', '.join(found[: len(rows[0])])}, which its table of A2 does not have")


def packed_attention(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """Limits of flash attention, and of its layout TND."""
    for node in nodes:
        if node.primitive == "FlashAttentionScore":
            yield from (_at(node, fault) for fault in _attention_faults(node))


def _attention_faults(node: Node) -> Iterator[str]:
    *_, (heads, size) = (tensor.shape[-2:] for tensor in node.tensors[:1])
    next_tokens, _, layout, mode = [int(number) for number in re.findall(r"I64\((-?\d+)\)", node.arguments)][
        -4:
    ]
    if size % HEAD_STEP or size > LARGEST_HEAD:
        yield f"has heads {size} wide; it takes multiples of {HEAD_STEP} up to {LARGEST_HEAD}"
    if heads > MOST_HEADS:
        yield f"has {heads} heads; it takes {MOST_HEADS}"
    if layout != TND:
        return
    if node.tensors[0].shape[0] > MOST_TOKENS:
        yield f"has {node.tensors[0].shape[0]} tokens; TND takes {MOST_TOKENS}"
    if mode not in CAUSAL_MODES or MASK not in node.tensors:
        yield f"has sparse mode {mode}; TND takes 2 or 3 with a mask ({CAUSAL}, {CAUSAL}) of uint8"
    if next_tokens:
        yield f"has next_tokens {next_tokens}; TND takes 0"


def end_faults(ends: Sequence[int], tokens: int) -> Iterator[str]:
    """What TND does not take of where segments end: empty ones, another end than `tokens`, too many."""
    lengths = [end - start for start, end in zip((0, *ends), ends, strict=False)]
    if min(lengths) < 1:
        yield f"segments are of lengths {lengths}; TND takes none of zero"
    if ends[-1] != tokens:
        yield f"the last segment ends at {ends[-1]} of {tokens} tokens"
    if len(ends) > MOST_SEGMENTS:
        yield f"there are {len(ends)} segments; TND takes {MOST_SEGMENTS}"


def constants(nodes: Sequence[Node], support: Support) -> Iterator[str]:
    """A large constant stands in device memory once for every graph. The causal mask is one."""
    found = {
        match
        for node in nodes
        for match in re.findall(r"Tensor\(shape=\[([\d, ]+)\], dtype=(\w+)", node.arguments)
    }
    for dimensions, dtype in sorted(found):
        constant = TensorType(dtype, tuple(map(int, dimensions.split(", "))))
        if constant.bytes > LARGEST_CONSTANT and constant != MASK:
            yield f"holds a constant {constant.dtype} {constant.shape}; make it an argument"


def layer_faults(one: Sequence[Node], two: Sequence[Node]) -> Iterator[str]:
    """one, two: the same graph with one and with two Llama layers."""
    found = len(kernels(two)) - len(kernels(one))
    if found > LAYER_KERNELS:
        yield f"a Llama layer has {found} kernels, forward and backward; at most {LAYER_KERNELS}"


def count_faults(one: Sequence[Node], two: Sequence[Node], counted: Sequence[Kernel]) -> Iterator[str]:
    """The same against `counted`: the kernels of that layer by `janus info --device Ascend`."""
    found, moved = len(kernels(two)) - len(kernels(one)), _moved(two) - _moved(one)
    expected = sum(kernel.reads + kernel.writes for kernel in counted)
    if found != len(counted):
        yield f"a Llama layer has {found} kernels; `janus info --device Ascend` counts {len(counted)}"
    if abs(moved / expected - 1) > NEAR:
        yield f"a Llama layer moves {moved:,} bytes; `janus info --device Ascend` counts {expected:,}"


def _moved(nodes: Sequence[Node]) -> int:
    return sum(tensor.bytes for node in kernels(nodes) for tensor in (*node.tensors, *node.outputs))


RULES: tuple[Rule, ...] = (
    fallbacks,
    undocumented,
    lone_gradients,
    narrow_sums,
    long_integers,
    dtypes,
    packed_attention,
    constants,
)


def _at(node: Node, fault: str) -> str:
    return f"{node.primitive} {fault} ({node.place()})"
