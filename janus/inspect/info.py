"""What a model is and what training it will need, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from typing import Any

from janus.checkpoint.folder import ModelFolder
from janus.inspect.memory import Load, stage_bytes
from janus.model.stages import STAGES

GIB = 2**30


def describe(folder: ModelFolder, load: Load, train_gen_embed: bool) -> dict[str, Any]:
    """Layout, dtypes, sizes, parameters of each part, and the bytes of each stage, as plain values."""
    from janus.model.janus import PARTS, parameter_shapes, part_of

    parts = dict.fromkeys(PARTS, 0)
    for name, shape in parameter_shapes(folder.config).items():
        parts[part_of(name)] += prod(shape)
    stages = {}
    for stage in STAGES:
        needed = stage_bytes(folder.config, parts, stage, load, train_gen_embed)
        stages[str(stage)] = asdict(needed) | {"total": needed.total}
    checkpoint = folder.checkpoint
    return {
        "model": folder.name,
        "layout": checkpoint.layout if checkpoint else None,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}) if checkpoint else [],
        "bytes_on_disk": sum(t.nbytes for t in checkpoint.tensors.values()) if checkpoint else 0,
        "config": asdict(folder.config),
        "parameters": parts,
        "load": asdict(load),
        "stages": stages,
    }


def lines(description: dict[str, Any]) -> Iterator[str]:
    """The description for a person."""
    parameters, load = description["parameters"], description["load"]
    if description["layout"]:
        stored = f"{'/'.join(description['dtypes'])}, {_gib(description['bytes_on_disk'])} GiB on disk"
        yield f"{description['model']}: {description['layout']} layout, {stored}"
    else:
        yield f"{description['model']}: no weights there; random ones will be made"
    for part, sizes in description["config"].items():
        yield f"  {part:7} " + ", ".join(f"{name} {value}" for name, value in sizes.items())
    yield f"parameters: {sum(parameters.values()):,}"
    for part, count in parameters.items():
        yield f"  {part:12} {count:>14,}"
    batch = f"a micro-batch of {load['rows']} rows × {load['length']} tokens, {load['dtype']}"
    yield f"GiB that training needs, {batch}:"
    columns = ("weights", "casts", "gradients", "moments", "activations", "total")
    yield "  stage " + "".join(f"{name:>13}" for name in columns) + "  most in"
    for stage, needed in description["stages"].items():
        yield (
            f"  {stage:5} " + "".join(f"{_gib(needed[name]):>13}" for name in columns) + f"  {needed['task']}"
        )


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
