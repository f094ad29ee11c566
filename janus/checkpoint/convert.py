"""A checkpoint in the other layout or another dtype. Tensors are read, cast and written one at a time.

Every tensor that both layouts have keeps its bits, unless a dtype is given. Both layouts are written as
safetensors, without the `UNUSED` tensors that DeepSeek's own files hold.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from janus.checkpoint.folder import ModelFolder, copy_tokenizer, write_json
from janus.checkpoint.layouts import to_deepseek, to_transformers
from janus.checkpoint.names import to_deepseek_names
from janus.checkpoint.open import Checkpoint
from janus.checkpoint.tensors import TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.common.files import write_folder
from janus.tokens import JanusTokenizer

DTYPES = {"bfloat16": "BF16", "float32": "F32", "as-is": None}
"""Dtypes by the command's names, and their names in files."""
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def convert(source: ModelFolder, target: Path, layout: str, dtype: str | None) -> None:
    """Write `source` as a checkpoint of `layout` (transformers, deepseek) into the new folder `target`.

    dtype: F32 or BF16; None keeps each tensor's own. The same layout keeps its config.json. The folder
    appears when it is complete.
    Raises UserError for a source without weights, or a target that exists.
    """
    if source.checkpoint is None or source.path is None:
        raise UserError(f"{source.name}: has no weights to convert; name a checkpoint")
    if target.exists():
        raise UserError(f"{target}: exists already; name a new folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    path, checkpoint = source.path, source.checkpoint
    content = checkpoint.content if layout == checkpoint.layout else _config(checkpoint, path, layout)
    if layout == "deepseek":
        tensors, field = to_deepseek_names(checkpoint.tensors, dtype), "torch_dtype"
    else:
        stored, field = checkpoint.tensors.items(), "dtype"
        tensors = {name: TensorToSave.joined({name: tensor}, dtype) for name, tensor in stored}
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    commonest = _TORCH_NAMES[sizes.most_common(1)[0][0]]  # by bytes

    def fill(folder: Path) -> None:
        write_json(folder / "config.json", content | {field: commonest})
        save_safetensors(folder / "model.safetensors", tensors)
        copy_tokenizer(path, folder)

    write_folder(target, fill)


def _config(checkpoint: Checkpoint, source: Path, layout: str) -> dict[str, Any]:
    """config.json of the other layout."""
    if layout == "deepseek":
        return to_deepseek(checkpoint.config, source / "config.json")
    if not (source / "tokenizer.json").is_file():
        raise UserError(
            f"{source / 'tokenizer.json'}: no such file; transformers' config.json names special tokens, so "
            "put the model's tokenizer.json into its folder"
        )
    return to_transformers(checkpoint.config, vars(JanusTokenizer(source).special))
