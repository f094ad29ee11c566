"""A model as a user names it: a preset, or a folder with a tokenizer and perhaps weights; written, converted.

Everything that asks "which network, which weights, which tokenizer?" asks here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus.checkpoint.layouts import to_deepseek, to_transformers
from janus.checkpoint.names import to_deepseek_names
from janus.checkpoint.open import Checkpoint, open_checkpoint
from janus.checkpoint.tensors import TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.common.files import write_folder
from janus.device import check_head_sizes
from janus.images import ImagePreparation
from janus.model.config import PRESETS, JanusConfig
from janus.tokens import TOKENIZER_FILES, JanusTokenizer

if TYPE_CHECKING:
    from mindspore import Tensor

    from janus.model.janus import Janus
    from janus.model.vq import VQ
    from janus.model.weights import Source

INIT_SEED = 0
"""Random weights are always the same: shards hold codes of the same random VQ."""
HUB_FILES = ("config.json", *TOKENIZER_FILES, "model*.safetensors", "pytorch_model*.bin", "*.index.json")
"""What is downloaded from a repository."""
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""What config.json calls the dtypes of files."""


@dataclass(frozen=True)
class ModelFolder:
    """A network and the source of its weights: `checkpoint`, or `INIT_SEED` where that is None."""

    name: str  # as the user gave it
    config: JanusConfig
    checkpoint: Checkpoint | None = None
    path: Path | None = None  # the folder on disk; None for a preset

    @property
    def description(self) -> str:
        """One line that says what will be trained."""
        text = self.config.text
        size = f"Llama {text.num_layers}×{text.hidden_size}, vocabulary {text.vocab_size}"
        loaded, random = f"{size}, weights loaded", f"has no weights; random ones ({size})"
        return f"{self.name}: {loaded if self.checkpoint else random}"

    def source(self) -> Source:
        """The values of the parameters; a checkpoint's raise UserError for NaN and infinity."""
        from janus.model.weights import random_source

        if self.checkpoint is None:
            return random_source(INIT_SEED)
        tensors = self.checkpoint.tensors
        return lambda name, shape, kind: tensors[name].finite_float32(name)

    def build(self, dtype: str = "float32") -> Janus:
        """The network that is trained. dtype: of its `working_weights`; the others are float32.

        Raises UserError if its heads are not for that dtype.
        """
        check_head_sizes(self.config.head_sizes, dtype)
        from janus.model.janus import Janus
        from janus.model.layers import lower
        from janus.model.weights import Weights

        model = Janus(Weights(self.source()), self.config)
        lower(model, dtype)
        return model

    def build_vq(self, images: int = 1) -> VQ:
        """The image tokenizer, float32, for `images` pictures a call."""
        from janus.model.vq import VQ
        from janus.model.weights import Weights

        weights = Weights(self.source()) / "model" / "vqmodel"
        return VQ(weights, self.config.vq, self.config.vision.image_size, images)

    def vq_encoder_sha256(self) -> str:
        """Digest of every weight that decides an image's codes."""
        from janus.model.janus import visit_parameters

        digest, source = hashlib.sha256(), self.source()

        def hashing(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
            if re.match(r"model\.vqmodel\.(?!decoder\.|post_quant_conv\.)", name):
                digest.update(name.encode() + source(name, shape, kind).tobytes())
            return np.zeros(1, np.float32)

        visit_parameters(self.config, hashing)
        return digest.hexdigest()

    def check_codes(self, record: Mapping[str, Any] | None, shards: Path) -> None:
        """Raise UserError unless this model's VQ encoder made the codes of `shards`.

        record: what their manifest says of the encoder; None where they hold no codes.
        """
        if record is None:
            raise UserError(f"{shards}: holds no image tokens; build the shards with --model {self.name}")
        if record["encoder_sha256"] != self.vq_encoder_sha256():
            raise UserError(
                f"{shards}: its image tokens are not those of {self.name}'s VQ encoder; name the model that "
                f"the shards were built with, or build them with --model {self.name}"
            )

    def save(
        self,
        weights: Mapping[str, Tensor],
        folder: Path,
        tokenizer: JanusTokenizer,
        source: Source | None = None,
    ) -> None:
        """Write a model folder of the transformers layout: config.json, tokenizer files and weights.

        source: of what is not in `weights`, such as the VQ tokenizer; this folder's if None. Read when
        written.
        """
        from janus.model.janus import visit_parameters

        tensors: dict[str, TensorToSave] = {}
        values = source or self.source()

        def record(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
            tensors[name] = TensorToSave("F32", shape, lambda: [values(name, shape, kind)])
            return np.zeros(1, np.float32)

        visit_parameters(self.config, record)
        tensors |= TensorToSave.of(weights)
        _write(folder, to_transformers(self.config, vars(tokenizer.special)), tensors, tokenizer.folder)


def convert(source: ModelFolder, target: Path, layout: str, dtype: str) -> None:
    """Atomic write of `source` in a layout (transformers, deepseek) as the new folder `target`.

    Tensors keep their bits, unless dtype is float32 or bfloat16; DeepSeek's `UNUSED` ones are left out.
    Raises UserError for a source without weights, or a target that exists.
    """
    path, checkpoint = source.path, source.checkpoint
    if checkpoint is None or path is None:
        raise UserError(f"{source.name}: has no weights to convert; name a checkpoint")
    if target.exists():
        raise UserError(f"{target}: exists already; name a new folder, or remove it")
    cast = {"float32": "F32", "bfloat16": "BF16"}.get(dtype)
    if layout == checkpoint.layout:
        content = checkpoint.content
    elif layout == "deepseek":
        content = to_deepseek(checkpoint.config, path / "config.json")
    else:
        content = to_transformers(checkpoint.config, vars(JanusTokenizer(path).special))
    if layout == "deepseek":
        tensors = to_deepseek_names(checkpoint.tensors, cast)
    else:
        tensors = {name: TensorToSave.joined({name: t}, cast) for name, t in checkpoint.tensors.items()}
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    field = "torch_dtype" if layout == "deepseek" else "dtype"
    content = content | {field: TORCH_NAMES[sizes.most_common(1)[0][0]]}
    write_folder(target, lambda folder: _write(folder, content, tensors, path))


def _write(folder: Path, config: dict, tensors: Mapping[str, TensorToSave], source: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config)
    copy_tokenizer(source, folder)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy those files of a tokenizer folder that exist and that `target` does not have."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def open_model(name: str, tokenizer: Path | None = None) -> ModelFolder:
    """The model a user named: a preset, a folder of either layout, or a hub id (`organisation/model`).

    A folder without weights gives a network of `tiny` size with that folder's tokenizer. `tiny` takes its
    vocabulary from the tokenizer (`tokenizer`, else the folder's own).
    Raises UserError for any other name, and for a folder whose files do not fit together.
    """
    if name in PRESETS:  # before a folder of that name, which `./name` reaches
        return ModelFolder(name, _tiny(tokenizer) if name == "tiny" else PRESETS[name])
    folder = Path(name) if Path(name).is_dir() else _download(name)
    checkpoint = open_checkpoint(folder)
    if checkpoint is None:
        return ModelFolder(name, _tiny(tokenizer or folder), path=folder)
    _check_companions(checkpoint.config, folder)
    return ModelFolder(name, checkpoint.config, checkpoint, folder)


def _download(name: str) -> Path:
    """The model's folder in the hub's cache, completed from the hub if it can be reached.

    Raises UserError for what is no hub id, and where neither the hub nor the cache has the model.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        known = ", ".join(PRESETS)
        raise UserError(
            f"model {name!r}: neither a folder nor a preset ({known}), nor a hub id (organisation/model)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # all errors of huggingface_hub and of the network are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {name!r}: no such folder here, and no download from the hub ({reason}); on a machine "
            f"with a network run `hf download {name} --local-dir DIR`, then name DIR"
        ) from error


def _check_companions(config: JanusConfig, folder: Path) -> None:
    """Raise UserError where the folder's tokenizer or image preparation is another model's."""
    rows, side = config.text.vocab_size, config.vision.image_size
    path = folder / "tokenizer.json"
    if path.is_file() and (highest := JanusTokenizer(folder).highest_id) >= rows:
        raise UserError(
            f"{path}: has ids up to {highest}, the embedding table has {rows} rows; "
            "use the tokenizer that belongs to these weights"
        )
    path = folder / "preprocessor_config.json"
    if path.is_file() and (size := ImagePreparation.from_folder(folder).image_size) != side:
        raise UserError(
            f"{path}: image size {size}, the weights are for {side}; use the file of these weights"
        )


def _tiny(tokenizer: Path | None) -> JanusConfig:
    """The preset `tiny`; its embedding table holds every id of the tokenizer, to the next multiple of 64."""
    tiny = PRESETS["tiny"]
    if tokenizer is None:
        return tiny
    rows = JanusTokenizer(tokenizer).highest_id + 1
    return replace(tiny, text=replace(tiny.text, vocab_size=-(-rows // 64) * 64))
