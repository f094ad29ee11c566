"""A checkpoint folder in either layout, opened: sizes, and every tensor under its transformers name.

`model_type` in config.json tells the layout, that is, how tensors are named. Weights are in safetensors or
torch's .bin, in one file or in parts with an index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.checkpoint.layouts import from_deepseek, from_transformers
from janus.checkpoint.names import deepseek_name, from_deepseek_names
from janus.checkpoint.tensors import StoredTensor, open_safetensors
from janus.checkpoint.torchfile import open_torch
from janus.common.errors import UserError
from janus.common.files import read_json
from janus.model.config import JanusConfig

LAYOUTS = {"janus": "transformers", "multi_modality": "deepseek"}
"""By the `model_type` of their config.json."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, the preferred first; `<file>.index.json` lists parts."""
SHOWN = 10  # problems that an error prints


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds. tensors: names and shapes are exactly those of the network."""

    layout: str
    content: dict[str, Any]  # config.json
    config: JanusConfig
    tensors: dict[str, StoredTensor]


def open_checkpoint(folder: Path) -> Checkpoint | None:
    """Open a folder; None where it has no weights.

    Raises UserError for whatever is missing, broken, or does not fit together.
    """
    weights = _find_weights(folder)
    if weights is None:
        return None
    path = folder / "config.json"
    content = read_json(path, "a checkpoint needs it")
    found = content.get("model_type")
    layout = LAYOUTS.get(str(found))
    if layout is None:
        raise UserError(f"{path}: model_type is {found!r}; expected {' or '.join(LAYOUTS)} (Janus-Pro's)")
    tensors: dict[str, StoredTensor] = {}
    for part in _parts(weights) if weights.suffix == ".json" else [weights]:
        tensors |= open_safetensors(part) if part.suffix == ".safetensors" else open_torch(part)
    if layout == "transformers":
        config = from_transformers(content, path)
    else:
        from janus.model.janus import parameter_shapes

        config = from_deepseek(content, tensors, path, weights)
        tensors = from_deepseek_names(tensors, parameter_shapes(config))
    _check_tensors(config, tensors, weights, layout)
    return Checkpoint(layout, content, config, tensors)


def _find_weights(folder: Path) -> Path | None:
    """The file of weights, or the index of their parts. Raises UserError for parts without an index."""
    for path in (folder / f"{name}{index}" for name in WEIGHT_FILES for index in ("", ".index.json")):
        if path.is_file():
            return path
    for name in WEIGHT_FILES:
        if parts := sorted(folder.glob(name.replace(".", "-*."))):
            raise UserError(
                f"{folder / name}.index.json: no such file; {parts[0].name} is a part and needs it"
            )
    return None


def _parts(index: Path) -> list[Path]:
    places = read_json(index, "the parts need it").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: has no weight_map; fetch it again")
    parts = [index.with_name(Path(name).name) for name in sorted(set(places.values()))]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: no such file, {index.name} names it; fetch that part")
    return parts


def _check_tensors(config: JanusConfig, tensors: Mapping[str, StoredTensor], path: Path, layout: str) -> None:
    """Raise UserError, with the file's own names, unless names and shapes are exactly the network's."""
    from janus.model.janus import parameter_shapes

    expected = parameter_shapes(config)

    def stored_name(name: str) -> str:
        return deepseek_name(name).name if layout == "deepseek" and name in expected else name

    problems = [f"missing {stored_name(name)}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{stored_name(name)} is {tensor.shape}, expected {expected[name]}"
        for name, tensor in tensors.items()
        if tensor.shape != expected.get(name, tensor.shape)
    ]
    if problems := list(dict.fromkeys(problems)):  # q, k and v of one tensor
        more = f" … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{path}: not the weights of its config.json: {'; '.join(problems[:SHOWN])}{more}; "
            "use the config.json and weights of one model"
        )
