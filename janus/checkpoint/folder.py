"""A model as a user names it: a preset, or a folder with a tokenizer and perhaps weights.

Everything that asks "which network, which weights, which tokenizer?" asks here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus.checkpoint.layouts import to_transformers
from janus.checkpoint.open import Checkpoint, open_checkpoint
from janus.checkpoint.tensors import TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.images import ImagePreparation
from janus.model.config import PRESETS, JanusConfig
from janus.tokens import TOKENIZER_FILES, JanusTokenizer

if TYPE_CHECKING:
    from mindspore import Parameter, nn

    from janus.model.janus import Janus
    from janus.model.vq import VQ
    from janus.model.weights import Source

INIT_SEED = 0
"""Random weights are always the same: shards hold codes of the same random VQ."""
HUB_FILES = (
    "config.json",
    *TOKENIZER_FILES,
    "model*.safetensors",
    "pytorch_model*.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""What is downloaded from a repository."""


@dataclass(frozen=True)
class ModelFolder:
    """A network and the source of its weights: `checkpoint`, or `INIT_SEED` where that is None."""

    name: str  # as the user gave it
    config: JanusConfig
    checkpoint: Checkpoint | None = None
    path: Path | None = None  # the folder on disk; None for a preset

    @property
    def has_weights(self) -> bool:
        """Whether its weights come from a checkpoint."""
        return self.checkpoint is not None

    @property
    def description(self) -> str:
        """One line that says what will be trained."""
        text = self.config.text
        size = f"Llama {text.num_layers}×{text.hidden_size}, vocabulary {text.vocab_size}"
        if self.has_weights:
            return f"{self.name}: {size}, weights loaded"
        return f"{self.name}: has no weights; random ones ({size})"

    def source(self) -> Source:
        """The values of the parameters; a checkpoint's raise UserError for NaN and infinity."""
        from janus.model.weights import random_source

        if self.checkpoint is None:
            return random_source(INIT_SEED)
        tensors = self.checkpoint.tensors
        return lambda name, shape, kind: tensors[name].finite_float32(name)

    def build(self) -> Janus:
        """The network that is trained, float32."""
        from janus.model.janus import Janus
        from janus.model.weights import Weights

        return Janus(Weights(self.source()), self.config)

    def build_vq(self, images: int = 1, source: Source | None = None) -> VQ:
        """The image tokenizer, float32, for `images` pictures a call. source: values in place of its own."""
        from janus.model.vq import VQ
        from janus.model.weights import Weights

        weights = Weights(source or self.source()) / "model" / "vqmodel"
        return VQ(weights, self.config.vq, self.config.vision.image_size, images)

    def vq_encoder_sha256(self) -> str:
        """Digest of every weight that decides an image's codes."""
        digest = hashlib.sha256()
        source = self.source()

        def hashing(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
            if ".decoder." not in name and ".post_quant_conv." not in name:
                digest.update(name.encode() + source(name, shape, kind).tobytes())
            return np.zeros(1, np.float32)

        self.build_vq(source=hashing)
        return digest.hexdigest()

    @property
    def vq_record(self) -> dict[str, str]:
        """The VQ encoder, as a manifest of its codes records it."""
        weights = "checkpoint" if self.has_weights else "random"
        return {"encoder_sha256": self.vq_encoder_sha256(), "weights": weights}

    def check_codes(self, record: Mapping[str, Any] | None, shards: Path) -> None:
        """Raise UserError unless this model's VQ encoder made the codes of `shards`.

        record: their manifest's `vq_record`; None where they hold no codes.
        """
        if record is None:
            raise UserError(f"{shards}: holds no image tokens; build the shards with --model {self.name}")
        if record["encoder_sha256"] != self.vq_encoder_sha256():
            raise UserError(
                f"{shards}: its image tokens are not those of {self.name}'s VQ encoder; name the model that "
                f"the shards were built with, or build them with --model {self.name}"
            )

    def save(self, model: nn.Cell, folder: Path, tokenizer: JanusTokenizer) -> None:
        """Write `model` as a model folder; the VQ tokenizer, which is no part of it, is copied."""
        save_model(folder, self.config, self.source(), tokenizer, model.get_parameters())


def save_model(
    folder: Path,
    config: JanusConfig,
    source: Source,
    tokenizer: JanusTokenizer,
    parameters: Iterable[Parameter] = (),
) -> None:
    """Write weights, config.json and tokenizer files of the transformers layout into `folder`.

    source: of every parameter that is not among `parameters`; asked when it is written.
    """
    from janus.model.janus import visit_parameters

    tensors: dict[str, TensorToSave] = {}

    def record(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        tensors[name] = TensorToSave("F32", shape, lambda: [source(name, shape, kind)])
        return np.zeros(1, np.float32)

    visit_parameters(config, record)
    tensors |= {parameter.name: TensorToSave.of(parameter) for parameter in parameters}
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", to_transformers(config, vars(tokenizer.special)))
    copy_tokenizer(tokenizer.folder, folder)


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
    folder = Path(name)
    if not folder.is_dir():
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
            raise UserError(
                f"model {name!r}: neither a folder nor a preset ({', '.join(PRESETS)}), nor a hub id "
                "(organisation/model)"
            )
        folder = _download(name)
    checkpoint = open_checkpoint(folder)
    if checkpoint is None:
        return ModelFolder(name, _tiny(tokenizer or folder), path=folder)
    _check_companions(checkpoint.config, folder)
    return ModelFolder(name, checkpoint.config, checkpoint, folder)


def _download(hub_id: str) -> Path:
    """The model's folder in the hub's cache, completed from the hub if it can be reached.

    Raises UserError where neither the hub nor the cache has the model.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # all errors of huggingface_hub and of the network are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {hub_id!r}: no such folder here, and no download from the hub ({reason}); on a machine "
            f"with a network run `hf download {hub_id} --local-dir DIR`, then name DIR"
        ) from error


def _check_companions(config: JanusConfig, folder: Path) -> None:
    """Raise UserError where the folder's tokenizer or image preparation is another model's."""
    if (folder / "tokenizer.json").is_file():
        highest = JanusTokenizer(folder).highest_id
        if highest >= config.text.vocab_size:
            raise UserError(
                f"{folder / 'tokenizer.json'}: has ids up to {highest}, the embedding table has "
                f"{config.text.vocab_size} rows; use the tokenizer that belongs to these weights"
            )
    path = folder / "preprocessor_config.json"
    if path.is_file():
        size = ImagePreparation.from_folder(folder).image_size
        if size != config.vision.image_size:
            raise UserError(
                f"{path}: image size {size}, the weights are for {config.vision.image_size}; "
                "use the preprocessor_config.json that belongs to these weights"
            )


def _tiny(tokenizer: Path | None) -> JanusConfig:
    """The preset `tiny`; its embedding table holds every id of the tokenizer, to the next multiple of 64."""
    if tokenizer is None:
        return PRESETS["tiny"]
    rows = JanusTokenizer(tokenizer).highest_id + 1
    return PRESETS["tiny"].with_vocabulary(-(-rows // 64) * 64)
