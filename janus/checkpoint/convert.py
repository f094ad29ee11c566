"""One layout to the other, or to another dtype. Tensors are read, cast and written one at a time.

Every tensor that both layouts have comes out bit for bit as it went in, unless a dtype is asked for.
DeepSeek's layout also has SigLIP's pooling head (`attn_pool.*`) and `codebook_used`, which no output depends
on and transformers' layout lacks: what is written here leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from janus.checkpoint.deepseek import tensors_to_deepseek, to_deepseek
from janus.checkpoint.folder import ModelFolder, copy_tokenizer, write_json
from janus.checkpoint.open import Checkpoint
from janus.checkpoint.tensors import StoredTensor, TensorToSave, cast, save_safetensors
from janus.checkpoint.torchfile_write import save_torch
from janus.common.errors import UserError
from janus.common.files import write_folder
from janus.model.config import JanusConfig, to_transformers
from janus.tokens import load_tokenizer

DTYPES = {"bfloat16": "BF16", "float32": "F32", "as-is": None}
"""What a user may ask for, and the name in files."""
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def convert(source: ModelFolder, target: Path, layout: str, dtype: str | None) -> None:
    """Write `source` as a checkpoint of `layout` (transformers, deepseek) into the new folder `target`.

    dtype: F32 or BF16; None keeps each tensor's own. The same layout keeps its config.json.
    The folder is there when it is whole.
    Raises UserError for a source without weights, or a target that exists.
    """
    if source.checkpoint is None or source.path is None:
        raise UserError(f"{source.name}: has no weights to convert; name a checkpoint")
    if target.exists():
        raise UserError(f"{target}: exists already; name a new folder, or remove it")
    write: Callable[[Path, Path, Checkpoint, str | None], None] = {
        "transformers": _write_transformers,
        "deepseek": _write_deepseek,
    }[layout]
    target.parent.mkdir(parents=True, exist_ok=True)
    path, checkpoint = source.path, source.checkpoint

    def fill(folder: Path) -> None:
        write(folder, path, checkpoint, dtype)
        copy_tokenizer(path, folder)

    write_folder(target, fill)


def _write_transformers(folder: Path, source: Path, checkpoint: Checkpoint, dtype: str | None) -> None:
    if checkpoint.layout == "transformers":
        content = checkpoint.content
    else:
        content = to_transformers(checkpoint.config, _token_ids(source))
    write_json(folder / "config.json", content | {"dtype": _common_dtype(checkpoint, dtype)})
    tensors = {name: _to_save(name, tensor, dtype) for name, tensor in checkpoint.tensors.items()}
    save_safetensors(folder / "model.safetensors", tensors)


def _to_save(name: str, tensor: StoredTensor, dtype: str | None) -> TensorToSave:
    def chunks() -> list[np.ndarray]:
        return [cast(name, tensor, dtype)]

    return TensorToSave(dtype or tensor.dtype, tensor.shape, chunks)


def _write_deepseek(folder: Path, source: Path, checkpoint: Checkpoint, dtype: str | None) -> None:
    if checkpoint.layout == "deepseek":
        content = checkpoint.content
    else:
        _check_expressible(checkpoint.config, source)
        content = to_deepseek(checkpoint.config)
    write_json(folder / "config.json", content | {"torch_dtype": _common_dtype(checkpoint, dtype)})
    save_torch(folder / "pytorch_model.bin", tensors_to_deepseek(checkpoint.tensors, dtype))


def _check_expressible(config: JanusConfig, source: Path) -> None:
    """Raise UserError for what DeepSeek's config.json has no field for."""
    if config.vision.layer_norm_eps != 1e-6:
        raise UserError(
            f"{source / 'config.json'}: vision_config.layer_norm_eps is {config.vision.layer_norm_eps}; "
            "DeepSeek's layout always means 1e-6, so this model cannot be converted to it"
        )


def _token_ids(source: Path) -> dict[str, int]:
    """Ids that transformers' config.json names: the tokenizer's.

    Raises UserError where there is no tokenizer beside the weights.
    """
    if not (source / "tokenizer.json").is_file():
        raise UserError(
            f"{source / 'tokenizer.json'}: no such file; transformers' config.json names special tokens, so "
            "put the model's tokenizer.json beside its weights"
        )
    return vars(load_tokenizer(source).special)


def _common_dtype(checkpoint: Checkpoint, dtype: str | None) -> str:
    """The dtype that config.json names: of the most bytes."""
    elements: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        name = dtype or tensor.dtype
        elements[name] = elements.get(name, 0) + tensor.nbytes
    return _TORCH_NAMES[max(elements, key=lambda name: elements[name])]
