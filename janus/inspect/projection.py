"""`janus info --device Ascend`: memory, bytes, launches and a projected time of a training step.

A projection, not measured: nobody has run this on an Ascend. A kernel takes as long as its operations at a
share of the card's peak, its bytes at a bandwidth, or a launch, whichever is longest; they follow each other
without gaps. The rates are options; docs/ascend.md says where their defaults come from. Not counted: what
MindSpore's allocator and CANN's workspaces add to memory, waiting for data, compilation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import click

from janus.common.errors import UserError
from janus.common.options import option
from janus.inspect.ascend import holder, micro_batch
from janus.inspect.costs import BYTES, Load
from janus.inspect.kernels import GROUPS, Kernel, update
from janus.model.config import JanusConfig
from janus.model.stages import trained_parts
from janus.prompts import SIGNATURES

LABEL = "projection, not measured"
PEAK = {"bfloat16": 313.0, "float32": 87.0}
_step = partial(option, group="Step on an Ascend")
_rate = partial(option, group="Assumptions about the Ascend")
_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_SHARE = click.FloatRange(min=0, max=1, min_open=True)


class MicroBatch(NamedTuple):
    """rows: samples, of `length` tokens each, `answer` of them targets where the task has targets of text."""

    task: str
    rows: int
    length: int
    answer: int

    def __str__(self) -> str:
        supervised = f":{self.answer}" if SIGNATURES[self.task].text else ""
        return f"{self.task}:{self.rows}x{self.length}{supervised}"

    @property
    def parts(self) -> set[str]:
        """Parts of the network that it runs through."""
        kinds = SIGNATURES[self.task]
        understood = {"siglip", "aligner"} if kinds.understood else set()
        drawn = {"gen_embed", "gen_aligner", "gen_head"} if kinds.drawn else set()
        return {"llama"} | understood | drawn | ({"lm_head"} if kinds.text else set())


class _MicroBatchType(click.ParamType):
    """TASK:ROWSxLENGTH, or TASK:ROWSxLENGTH:ANSWER."""

    name = "task:rowsxlength[:answer]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> MicroBatch:
        """Raises click.BadParameter for anything else."""
        task, _, sizes = value.partition(":")
        shape, _, answer = sizes.partition(":")
        rows, _, length = shape.partition("x")
        numbers = [rows, length, answer or "128"]
        if task not in SIGNATURES or not all(number.isdecimal() and int(number) for number in numbers):
            self.fail(f"expected {self.name}, as t2i:8x632 or vqa:4x660:5, got {value!r}", param, ctx)
        return MicroBatch(task, *map(int, numbers))


@dataclass(frozen=True)
class Step:
    """What a step trains."""

    stage: int = _step(3, "Stage whose parts are trained.", click.IntRange(1, 3))
    batch: tuple[MicroBatch, ...] = _step(
        (),
        "A micro-batch of the step, as vqa:4x660:5; may be repeated.",
        _MicroBatchType(),
        shown="one of each task, of --rows, --length and --answer",
    )


@dataclass(frozen=True)
class Card:
    """What an Ascend 910B is taken to do."""

    peak_tflops: float | None = _rate(
        None, "Peak of its products, 10¹² operations a second.", _ABOVE_0, shown="313, in float32 87"
    )
    product_share: float = _rate(0.65, "Share of the peak that products reach.", _SHARE)
    attention_share: float = _rate(0.4, "Share that flash attention reaches, by the whole square.", _SHARE)
    bandwidth: float = _rate(1.1, "TB/s of device memory that kernels reach.", _ABOVE_0)
    gather_bandwidth: float = _rate(0.35, "TB/s that gathers and sums by index reach.", _ABOVE_0)
    adamw_bandwidth: float = _rate(0.65, "TB/s that AdamW reaches.", _ABOVE_0)
    launch_us: float = _rate(5.0, "Microseconds that the smallest kernel takes.", _ABOVE_0)
    usable_gib: float = _rate(58.0, "GiB that MindSpore can use of the card's 64.", _ABOVE_0)

    def seconds(self, kernel: Kernel, dtype: str) -> float:
        """How long a kernel takes."""
        share = self.attention_share if kernel.group == "attention" else self.product_share
        rates = {
            "Gather": self.gather_bandwidth,
            "UnsortedSegmentSum": self.gather_bandwidth,
            "AdamApplyOneWithDecayAssign": self.adamw_bandwidth,
        }
        return max(
            kernel.operations / ((self.peak_tflops or PEAK[dtype]) * 1e12 * share),
            (kernel.reads + kernel.writes) / (rates.get(kernel.name, self.bandwidth) * 1e12),
            self.launch_us * 1e-6,
        )

    def total(self, kernels: Iterable[Kernel], dtype: str) -> dict[str, float]:
        """Operations, bytes moved, launches and seconds of these kernels together."""
        found = list(kernels)
        return {
            "operations": sum(kernel.operations for kernel in found),
            "bytes": sum(kernel.reads + kernel.writes for kernel in found),
            "launches": len(found),
            "seconds": sum(self.seconds(kernel, dtype) for kernel in found),
        }


def project(config: JanusConfig, load: Load, step: Step, card: Card, train_gen_embed: bool) -> dict[str, Any]:
    """Memory, operations, bytes, launches and seconds of a step, as plain values.

    load: its dtype, and the micro-batches where `step` names none. Raises UserError where one trains nothing.
    """
    trained = trained_parts(step.stage, train_gen_embed)
    batches = step.batch or _one_of_each(load, trained)
    runs = {str(batch): _kernels(config, batch, trained, load.dtype) for batch in batches}
    weights, dtype = _weights(config), load.dtype
    mine = _trained(weights, batches, trained)
    runs["update"] = [kernel for own in mine for kernel in update(own.elements, own.rounded(dtype))]
    every = [kernel for batch in (*map(str, batches), "update") for kernel in runs[batch]]
    return {
        "label": LABEL,
        "stage": step.stage,
        "dtype": dtype,
        "batches": [*map(str, batches)],
        "card": asdict(card) | {"peak_tflops": card.peak_tflops or PEAK[dtype]},
        "memory": _memory(weights, batches, trained, dtype, runs),
        "runs": {name: card.total(kernels, dtype) for name, kernels in runs.items()},
        "groups": {g: card.total((k for k in every if k.group == g), dtype) for g in GROUPS},
        "step": card.total(every, dtype),
    }


def _one_of_each(load: Load, trained: frozenset[str]) -> tuple[MicroBatch, ...]:
    tasks = [task for task in ("text", "vqa", "t2i") if task != "text" or "llama" in trained]
    return tuple(MicroBatch(task, load.rows, load.length, load.answer) for task in tasks)


def _kernels(config: JanusConfig, batch: MicroBatch, trained: frozenset[str], dtype: str) -> list[Kernel]:
    if not batch.parts & trained:
        raise UserError(f"batch: {batch} has nothing to train in this stage; leave it out")
    load = Load(batch.rows, batch.length, batch.answer, dtype)
    return micro_batch(config, load.work(config, batch.task), trained, dtype)


class _Weight(NamedTuple):
    part: str
    elements: int
    float32: bool  # whatever the dtype

    def rounded(self, dtype: str) -> bool:
        """Whether it is a shorter copy of a float32 master."""
        return not self.float32 and dtype != "float32"

    def bytes(self, dtype: str) -> int:
        """On the card, its master not counted."""
        return self.elements * (BYTES[dtype] if self.rounded(dtype) else 4)


@cache
def _weights(config: JanusConfig) -> list[_Weight]:
    """Of the network that is trained, all but the VQ tokenizer."""
    from janus.model.janus import parameter_shapes, part_of, working_names

    elements: Counter[str] = Counter()
    for name, shape in parameter_shapes(config).items():
        elements[holder(name)] += prod(shape)
    working = {holder(name) for name in working_names(config)}
    weights = [_Weight(part_of(name), n, name not in working) for name, n in elements.items()]
    return [weight for weight in weights if weight.part != "vq"]


def _trained(
    weights: Iterable[_Weight], batches: Iterable[MicroBatch], trained: frozenset[str]
) -> list[_Weight]:
    """Those that get a gradient."""
    used = trained & set().union(*(batch.parts for batch in batches))
    return [weight for weight in weights if weight.part in used]


def _memory(
    weights: Sequence[_Weight],
    batches: Sequence[MicroBatch],
    trained: frozenset[str],
    dtype: str,
    runs: Mapping[str, Sequence[Kernel]],
) -> dict[str, int]:
    """Bytes on the card by what they are for, and on the host while the network is loaded.

    in_graph: the gradients of a micro-batch, all alive before the first is added to its buffer, as on a CPU.
    activations: what is kept for the backward, and the largest gradient that comes in and goes out.
    """
    mine = _trained(weights, batches, trained)
    own = sum(weight.elements for weight in mine)
    masters = sum(4 * weight.elements for weight in mine if weight.rounded(dtype))
    in_graph = [sum(w.bytes(dtype) for w in _trained(weights, [b], trained)) for b in batches]
    network = sum(weight.elements for weight in weights)
    device = {
        "weights": sum(weight.bytes(dtype) for weight in weights),
        "masters": masters,
        "gradients": 4 * own,
        "in_graph": max(in_graph),
        "moments": 8 * own,
        "activations": max(_activations(runs[str(batch)]) for batch in batches),
    }
    return {**device, "total": sum(device.values()), "host": 4 * network + masters}


def _activations(kernels: Sequence[Kernel]) -> int:
    of_weights = ("AssignAdd", "UnsortedSegmentSum")
    largest = max(kernel.writes for kernel in kernels if kernel.name not in of_weights)
    return sum(kernel.kept for kernel in kernels) + 2 * largest


def lines(description: dict[str, Any]) -> Iterator[str]:
    """The projection for a person."""
    card, memory, dtype = description["card"], description["memory"], description["dtype"]
    batches = " + ".join(description["batches"])
    yield f"{LABEL}: stage {description['stage']}, {dtype}, a step of {batches}"
    free = card["usable_gib"] - memory["total"] / 2**30
    verdict = f"{free:.1f} left" if free >= 0 else f"does not fit, {-free:.1f} too many"
    yield f"GiB on the card, of {card['usable_gib']:.0f} usable: {verdict}"
    yield from (f"  {n.replace('_', ' '):12} {b / 2**30:>9.2f}" for n, b in memory.items() if n != "host")
    yield f"GiB on the host while it loads: {memory['host'] / 2**30:.2f}"
    yield f"  {'':20} {'TFLOP':>9} {'GB moved':>9} {'launches':>9} {'ms':>9}"
    for name, total in (description["groups"] | description["runs"] | {"step": description["step"]}).items():
        figures = f"{total['operations'] / 1e12:9.2f} {total['bytes'] / 1e9:9.1f} {total['launches']:9.0f}"
        yield f"  {name:20} {figures} {total['seconds'] * 1e3:9.1f}"
    yield "assuming " + ", ".join(f"{name} {value:g}" for name, value in card.items())
