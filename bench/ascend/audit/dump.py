"""MindSpore's dump of a graph, read: every node with its primitive, its tensors and where it comes from.

A node of a dump, as MindSpore 2.10 writes it (a failure's text may break its first line):

      %2(CNode_7) = PrimFunc_RmsNorm(%0, %1, F32(1e-06)) primitive_attrs: {..} cnode_attrs: {..}
          : (<Tensor[BFloat16], (64, 128)>, <Tensor[BFloat16], (128)>, <Float32, NoShape>) -> (<Tuple[..]..>)
          # In file FILE:20~22, 4~41/    def construct(self, x):/
"""

import re
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
STRUCTURE = frozenset(("Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem", "Partial", "Switch"))
"""What holds a graph together and is no operation."""
VIEWS = frozenset(("Reshape", "ExpandDims", "Squeeze", "TransposeView", "ReshapeView"))
"""Operations that give another shape or stride to the same memory: no kernel."""

_START = re.compile(r"^  %\w+\([^)\n]*\) = ", re.M)
_HEAD = re.compile(r"(?P<name>[^\s(]+)\((?P<rest>.*)$", re.S)
_TYPES = re.compile(r"^      : \((?P<inputs>.*)\) -> \((?P<outputs>.*)\)$", re.M)
_PLACE = re.compile(r"^      # In file (\S+?):(\d+)", re.M)
_PREFIX = re.compile(r"^(PrimFunc_|DoSignaturePrimitive::S-Prim-|Primitive::|S-Prim-)")


@dataclass(frozen=True)
class TensorType:
    """dtype: as MindSpore spells it, "BFloat16". shape: a dimension that is not known is −1."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of all elements."""
        bits = re.search(r"\d+$", self.dtype)
        return prod(self.shape) * (int(bits[0]) // 8 if bits else 1)


@dataclass(frozen=True)
class Node:
    """inputs: the tensors of each argument; none where it is a number. outputs: all tensors.

    arguments, attributes: as they stand. places: files and lines, the innermost last.
    """

    primitive: str
    arguments: str
    attributes: str
    inputs: tuple[tuple[TensorType, ...], ...]
    outputs: tuple[TensorType, ...]
    places: tuple[str, ...]

    @property
    def tensors(self) -> list[TensorType]:
        """All input tensors in order."""
        return [tensor for argument in self.inputs for tensor in argument]

    def place(self) -> str:
        """The innermost line of ours, relative to the project; else the innermost; "?" if none is noted."""
        ours = [
            place for place in self.places if place.startswith(f"{ROOT}/") and "site-packages" not in place
        ]
        return (ours or self.places or ("?",))[-1].removeprefix(f"{ROOT}/")


def read_dump(path: Path) -> list[Node]:
    """The nodes of a dump in order; none if it breaks off before its end."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if "\n  Return(" not in text or not text.rstrip().endswith("}"):
        return []
    starts = [found.start() for found in _START.finditer(text)]
    blocks = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [_node(block) for block in blocks]


def _node(block: str) -> Node:
    head, _, tail = block.partition("\n      : (")
    named = _HEAD.match(_START.sub("", head, count=1))
    types = _TYPES.search(block)
    name, rest = (named["name"], named["rest"]) if named else ("?", "")
    end = _closing(rest)
    return Node(
        primitive=_PREFIX.sub("", name),
        arguments=rest[:end],
        attributes=rest[end + 1 :],
        inputs=tuple(map(_tensors, _items(types["inputs"]))) if types else (),
        outputs=tuple(tensor for item in _items(types["outputs"]) for tensor in _tensors(item))
        if types
        else (),
        places=tuple(f"{file}:{line}" for file, line in _PLACE.findall(tail)),
    )


def _closing(text: str) -> int:
    """Where the parenthesis is closed that was opened before `text`; its end if it is not."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _items(text: str) -> list[str]:
    """The top-level `<…>` of a list of them."""
    items, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character == "<":
            start = place if depth == 0 else start
            depth += 1
        elif character == ">":
            depth -= 1
            if depth == 0:
                items.append(text[start + 1 : place])
    return items


@cache
def _tensors(item: str) -> tuple[TensorType, ...]:
    """`Tuple[Tensor[BFloat16]*2], TupleShape((64, 128), (64, 1))`: what tensors that is."""
    dtypes = [
        dtype
        for dtype, times in re.findall(r"Tensor\[(\w+)\](?:\*(\d+))?", item)
        for _ in range(int(times or 1))
    ]
    shapes = [tuple(map(int, re.findall(r"-?\d+", shape))) for shape in re.findall(r"\(([-\d, ]*)\)", item)]
    return tuple(map(TensorType, dtypes, shapes))
