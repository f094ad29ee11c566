"""DeepSeek's checkpoint layout: its config.json and its tensors, in and out.

Its config names few sizes: the rest are in the weights' shapes, or the defaults of the libraries that
DeepSeek builds on. What the config does say must agree with the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from janus.checkpoint.layouts import deepseek_name
from janus.checkpoint.tensors import StoredTensor, TensorToSave, cast
from janus.common.errors import UserError
from janus.model.config import JanusConfig, TextConfig, VisionConfig, VQConfig

LLAMA_HEADS, LLAMA_EPS, LLAMA_THETA, LLAMA_POSITIONS = 32, 1e-6, 10_000.0, 2048
"""What a language_config that leaves them out means: the defaults of transformers' LlamaConfig."""
SIGLIP_HEADS, NARROWEST_HEAD = 16, 16
UNUSED = re.compile(r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$")
"""Tensors that no output depends on: SigLIP's pooling head, and a record of which codes training met."""


class _Shapes:
    """Shapes of the file's tensors by name, for reading sizes off."""

    def __init__(self, tensors: Mapping[str, StoredTensor], path: Path) -> None:
        self._tensors, self._path = tensors, path

    def size(self, name: str, axis: int, dimensions: int = 2) -> int:
        """One side of a tensor. Raises UserError where it is absent or has other dimensions."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise UserError(f"{self._path}: missing {name}; these are not the weights of Janus-Pro")
        if len(tensor.shape) != dimensions:
            raise UserError(f"{self._path}: {name} is {tensor.shape}, expected {dimensions} dimensions")
        return tensor.shape[axis]

    def count(self, prefix: str) -> int:
        """How many numbered children stand under a prefix."""
        found = {name[len(prefix) :].split(".")[0] for name in self._tensors if name.startswith(prefix)}
        return len(found)


def from_deepseek(
    content: dict, tensors: Mapping[str, StoredTensor], path: Path, weights: Path
) -> JanusConfig:
    """The sizes of a checkpoint.

    content: config.json, read from `path`. tensors: by DeepSeek's names, from `weights`.
    Raises UserError where the config contradicts the weights, or a tensor that shows a size is missing.
    """
    shapes = _Shapes(tensors, weights)
    config = JanusConfig(
        _text(content.get("language_config", {}), shapes),
        _vision(_params(content, "vision_config"), shapes),
        _vq(shapes),
    )
    _check(content, config, path, weights)
    return config


def _text(language: dict, shapes: _Shapes) -> TextConfig:
    model = "language_model.model."
    return TextConfig(
        hidden_size=shapes.size(f"{model}embed_tokens.weight", 1),
        num_layers=shapes.count(f"{model}layers."),
        num_heads=language.get("num_attention_heads", LLAMA_HEADS),
        intermediate_size=shapes.size(f"{model}layers.0.mlp.gate_proj.weight", 0),
        vocab_size=shapes.size(f"{model}embed_tokens.weight", 0),
        rms_norm_eps=language.get("rms_norm_eps", LLAMA_EPS),
        rope_theta=language.get("rope_theta", LLAMA_THETA),
        max_position_embeddings=language.get("max_position_embeddings", LLAMA_POSITIONS),
    )


def _vision(params: dict, shapes: _Shapes) -> VisionConfig:
    tower = "vision_model.vision_tower."
    width = shapes.size(f"{tower}pos_embed", 2, dimensions=3)
    patch = shapes.size(f"{tower}patch_embed.proj.weight", 3, dimensions=4)
    return VisionConfig(
        hidden_size=width,
        num_layers=shapes.count(f"{tower}blocks."),
        num_heads=params.get("num_heads", siglip_heads(width)),
        intermediate_size=shapes.size(f"{tower}blocks.0.mlp.fc1.weight", 0),
        image_size=isqrt(shapes.size(f"{tower}pos_embed", 1, dimensions=3)) * patch,
        patch_size=patch,
    )


def siglip_heads(width: int) -> int:
    """Heads of SigLIP where the config does not say, which it does not: 16, as its name stands for.

    Neither do shapes show them. A tower too narrow for 16 heads of 16 (a toy) has as many as fit.
    """
    return max(1, min(SIGLIP_HEADS, width // NARROWEST_HEAD))


def _vq(shapes: _Shapes) -> VQConfig:
    vq = "gen_vision_model."
    base = shapes.size(f"{vq}encoder.conv_in.weight", 0, dimensions=4)
    # From the decoder: it has a block more a level, so that every level shows in its names.
    blocks = shapes.count(f"{vq}decoder.conv_blocks.0.res.")
    widths = [
        shapes.size(f"{vq}decoder.conv_blocks.{level}.res.{blocks - 1}.conv1.weight", 0, dimensions=4)
        for level in reversed(range(shapes.count(f"{vq}decoder.conv_blocks.")))
    ]
    return VQConfig(
        base_channels=base,
        channel_multiplier=tuple(width // base for width in widths),
        num_res_blocks=blocks - 1,
        latent_channels=shapes.size(f"{vq}encoder.conv_out.weight", 0, dimensions=4),
        embed_dim=shapes.size(f"{vq}quantize.embedding.weight", 1),
        num_embeddings=shapes.size(f"{vq}quantize.embedding.weight", 0),
    )


def _params(content: dict, part: str) -> dict:
    return content.get(part, {}).get("params", {})


def _check(content: dict, config: JanusConfig, path: Path, weights: Path) -> None:
    """Raise UserError for the first size that config.json states otherwise than the weights have it."""
    for part, expected in _stated(config).items():
        section = content.get(part, {})
        said = section if part == "language_config" else section.get("params", {})
        for field, value in expected.items():
            if field in said and said[field] != value:
                raise UserError(
                    f"{path}: {part} says {field} {said[field]!r}, {weights} has {value!r}; "
                    "use the config.json that belongs to these weights"
                )
    if config.text.hidden_size % config.text.num_heads:
        raise UserError(
            f"{path}: {config.text.num_heads} heads do not divide the weights' width "
            f"{config.text.hidden_size}; set language_config.num_attention_heads"
        )


def _stated(config: JanusConfig) -> dict[str, dict[str, Any]]:
    """The sizes that DeepSeek's config.json states, by section."""
    text, vision, vq = config.text, config.vision, config.vq
    projector = {"depth": 2, "n_embed": text.hidden_size, "projector_type": "mlp_gelu"}
    return {
        "language_config": {
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "vocab_size": text.vocab_size,
        },
        "vision_config": {"image_size": vision.image_size, "model_name": "siglip_large_patch16_384"},
        "aligner_config": {**projector, "input_dim": vision.hidden_size},
        "gen_aligner_config": {**projector, "input_dim": vq.embed_dim},
        "gen_vision_config": {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim},
        "gen_head_config": {
            "image_token_embed": text.hidden_size,
            "image_token_size": vq.num_embeddings,
            "n_embed": text.hidden_size,
        },
    }


def to_deepseek(config: JanusConfig) -> dict:
    """config.json of DeepSeek's layout, but for the dtype."""
    stated = _stated(config)
    language = stated.pop("language_config") | {"model_type": "llama"}
    vision = stated["vision_config"] | {"select_feature": "same", "select_layer": -1}
    if config.vision.num_heads != siglip_heads(config.vision.hidden_size):
        vision["num_heads"] = config.vision.num_heads  # ours: the layout has no place for it
    classes = {
        "vision_config": "CLIPVisionTower",
        "aligner_config": "MlpProjector",
        "gen_aligner_config": "MlpProjector",
        "gen_vision_config": "VQ-16",
        "gen_head_config": "vision_head",
    }
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "language_config": language,
        **{
            part: {
                "cls": cls,
                "model_type": part.removesuffix("_config"),
                "params": vision if part == "vision_config" else stated[part],
            }
            for part, cls in classes.items()
        },
    }


def tensors_from_deepseek(
    tensors: Mapping[str, StoredTensor], names: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """The tensors under the transformers names, as views: qkv in thirds, pos_embed without its first axis.

    names: every parameter of the network. What fits none keeps its name, but for the unused tensors.
    """
    found, taken = {}, set()
    for name in names:
        place = deepseek_name(name)
        tensor = tensors.get(place.name)
        if tensor is None:
            continue
        taken.add(place.name)
        if place.third is not None:
            rows = tensor.shape[0] // 3
            offset = tensor.offset + place.third * (tensor.nbytes // 3)
            tensor = replace(tensor, shape=(rows, *tensor.shape[1:]), offset=offset)
        elif place.leading_axis and tensor.shape[:1] == (1,):
            tensor = replace(tensor, shape=tensor.shape[1:])
        found[name] = tensor
    rest = {name: tensor for name, tensor in tensors.items() if name not in taken and not UNUSED.match(name)}
    return found | rest


def tensors_to_deepseek(tensors: Mapping[str, StoredTensor], dtype: str | None) -> dict[str, TensorToSave]:
    """The tensors under DeepSeek's names, in `dtype` (F32, BF16) or as they are (None)."""
    grouped: dict[str, list[str]] = {}
    for name in tensors:
        grouped.setdefault(deepseek_name(name).name, []).append(name)
    saved = {}
    for target, names in grouped.items():
        names.sort(key=lambda name: deepseek_name(name).third or 0)
        saved[target] = _join(names, tensors, dtype)
    return saved


def _join(names: list[str], tensors: Mapping[str, StoredTensor], dtype: str | None) -> TensorToSave:
    """One tensor for several that lie in it one after another."""
    parts = [tensors[name] for name in names]
    if dtype is None and len({part.dtype for part in parts}) > 1:
        raise UserError(f"{parts[0].path}: {', '.join(names)} differ in dtype; give --dtype to join them")
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if deepseek_name(names[0]).leading_axis:
        shape = (1, *shape)

    def chunks() -> list[np.ndarray]:
        return [cast(name, part, dtype) for name, part in zip(names, parts, strict=True)]

    return TensorToSave(dtype or parts[0].dtype, shape, chunks)
