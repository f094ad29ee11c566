"""config.json of both layouts, read into a `JanusConfig` and written from one.

transformers' config.json (`model_type: janus`) states every size, mostly under our names. DeepSeek's
(`multi_modality`) states few: the rest follow from the weights' shapes, or are defaults of the libraries that
DeepSeek builds on. What it states must agree with the weights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

from janus.checkpoint.tensors import StoredTensor
from janus.common.errors import UserError
from janus.model.config import JanusConfig, TextConfig, VisionConfig, VQConfig

Part = TypeVar("Part", TextConfig, VisionConfig, VQConfig)

_THEIR_NAMES = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
"""Fields that have another name in transformers."""
_TEXT = {
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "tie_word_embeddings": False,
}
_VISION = {
    "attention_bias": True,
    "attention_dropout": 0.0,
    "depth": 2,
    "hidden_act": "gelu",
    "hidden_dropout_rate": 0.0,
    "model_type": "janus_vision_model",
    "num_channels": 3,
    "projection_dropout": 0.0,
    "use_qk_norm": False,
}
_VQ = {
    "double_latent": False,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "in_channels": 3,
    "model_type": "janus_vqgan",
    "num_hidden_layers": 2,
    "out_channels": 3,
}
"""What is the same in every Janus-Pro's text_config, vision_config and vq_config."""

LLAMA_DEFAULTS = {
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 2048,
}
"""What a language_config that leaves them out means: the defaults of transformers' LlamaConfig."""
_CLASSES = {
    "vision_config": "CLIPVisionTower",
    "aligner_config": "MlpProjector",
    "gen_aligner_config": "MlpProjector",
    "gen_vision_config": "VQ-16",
    "gen_head_config": "vision_head",
}


def from_transformers(content: Mapping[str, Any], path: object) -> JanusConfig:
    """The sizes in transformers' config.json, read from `path`.

    Raises UserError naming the field that is missing or that this network does not have.
    """
    try:
        text, vision, vq = (dict(content[f"{part}_config"]) for part in ("text", "vision", "vq"))
        if text.get("num_key_value_heads", text["num_attention_heads"]) != text["num_attention_heads"]:
            raise UserError(f"{path}: num_key_value_heads differs from num_attention_heads; not Janus-Pro")
        vision["intermediate_size"] = round(vision["hidden_size"] * vision["mlp_ratio"])
        vq["channel_multiplier"] = tuple(vq["channel_multiplier"])
        return JanusConfig(_part(TextConfig, text), _part(VisionConfig, vision), _part(VQConfig, vq))
    except KeyError as error:
        raise UserError(f"{path}: field {error} is missing; expected transformers' JanusConfig") from error


def _part(part: type[Part], sizes: Mapping[str, Any]) -> Part:
    return part(**{f.name: sizes[_THEIR_NAMES.get(f.name, f.name)] for f in fields(part)})


def _sizes(part: TextConfig | VisionConfig | VQConfig) -> dict[str, Any]:
    """Every size under transformers' name; the inverse of `_part`."""
    return {_THEIR_NAMES.get(name, name): value for name, value in asdict(part).items()}


def to_transformers(config: JanusConfig, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """`config.json` as transformers' JanusForConditionalGeneration reads it.

    token_ids: ids for `bos`, `eos`, `pad` and `image_placeholder`.
    """
    text, vision = config.text, _sizes(config.vision)
    inner = vision.pop("intermediate_size")
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": token_ids["image_placeholder"],
        "model_type": "janus",
        "text_config": {
            **_TEXT,
            **_sizes(text),
            "head_dim": text.head_size,
            "num_key_value_heads": text.num_heads,
            **{f"{name}_token_id": token_ids[name] for name in ("bos", "eos", "pad")},
        },
        "vision_config": {
            **_VISION,
            **vision,
            "mlp_ratio": inner / config.vision.hidden_size,
            "num_image_tokens": config.num_image_tokens,
            "projection_dim": text.hidden_size,
        },
        "vq_config": {
            **_VQ,
            **_sizes(config.vq),
            "image_token_embed_dim": text.hidden_size,
            "num_patches": config.vision.image_size // config.vision.patch_size,
            "projection_dim": text.hidden_size,
        },
    }


@dataclass(frozen=True)
class _Shapes:
    """Shapes of the file's tensors by name, from which sizes are read."""

    tensors: Mapping[str, StoredTensor]
    path: Path

    def size(self, name: str, axis: int, dimensions: int = 2) -> int:
        """One side of a tensor. Raises UserError where it is absent or has other dimensions."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise UserError(f"{self.path}: missing {name}; these are not the weights of Janus-Pro")
        if len(tensor.shape) != dimensions:
            raise UserError(f"{self.path}: {name} is {tensor.shape}, expected {dimensions} dimensions")
        return tensor.shape[axis]

    def count(self, prefix: str) -> int:
        """The number of distinct children below a prefix, such as layers."""
        names = (name for name in self.tensors if name.startswith(prefix))
        return len({name[len(prefix) :].split(".")[0] for name in names})


def from_deepseek(
    content: Mapping[str, Any], tensors: Mapping[str, StoredTensor], path: Path, weights: Path
) -> JanusConfig:
    """The sizes of a checkpoint in DeepSeek's layout.

    content: config.json, read from `path`. tensors: by DeepSeek's names, from `weights`.
    Raises UserError where the config contradicts the weights, or a tensor that shows a size is missing.
    """
    shapes = _Shapes(tensors, weights)
    text = _text(LLAMA_DEFAULTS | content.get("language_config", {}), shapes)
    vision = _vision(content.get("vision_config", {}).get("params", {}), shapes)
    config = JanusConfig(text, vision, _vq(shapes))
    for part, expected in _stated(config).items():
        section = content.get(part, {})
        stated = section if part == "language_config" else section.get("params", {})
        for field, value in expected.items():
            if stated.get(field, value) != value:
                raise UserError(
                    f"{path}: {part} says {field} {stated[field]!r}, {weights} has {value!r}; "
                    "use the config.json that belongs to these weights"
                )
    if text.hidden_size % text.num_heads:
        raise UserError(
            f"{path}: {text.num_heads} heads do not divide the weights' width {text.hidden_size}; "
            "set language_config.num_attention_heads"
        )
    return config


def _text(language: Mapping[str, Any], shapes: _Shapes) -> TextConfig:
    model = "language_model.model."
    sizes = {
        "vocab_size": shapes.size(f"{model}embed_tokens.weight", 0),
        "hidden_size": shapes.size(f"{model}embed_tokens.weight", 1),
        "num_hidden_layers": shapes.count(f"{model}layers."),
        "intermediate_size": shapes.size(f"{model}layers.0.mlp.gate_proj.weight", 0),
    }
    return _part(TextConfig, {**language, **sizes})


def _vision(params: Mapping[str, Any], shapes: _Shapes) -> VisionConfig:
    tower = "vision_model.vision_tower."
    width = shapes.size(f"{tower}pos_embed", 2, dimensions=3)
    patch = shapes.size(f"{tower}patch_embed.proj.weight", 3, dimensions=4)
    return VisionConfig(
        hidden_size=width,
        num_layers=shapes.count(f"{tower}blocks."),
        num_heads=params.get("num_heads", _siglip_heads(width)),
        intermediate_size=shapes.size(f"{tower}blocks.0.mlp.fc1.weight", 0),
        image_size=isqrt(shapes.size(f"{tower}pos_embed", 1, dimensions=3)) * patch,
        patch_size=patch,
    )


def _siglip_heads(width: int) -> int:
    """SigLIP's heads, which neither config nor shapes show: 16 of at least 16, fewer in a narrow toy."""
    return max(1, min(16, width // 16))


def _vq(shapes: _Shapes) -> VQConfig:
    vq = "gen_vision_model."
    base = shapes.size(f"{vq}encoder.conv_in.weight", 0, dimensions=4)
    # From the decoder: it has one more block a level, so every level shows in its names.
    levels = f"{vq}decoder.conv_blocks."
    blocks = shapes.count(f"{levels}0.res.")
    widths = [
        shapes.size(f"{levels}{level}.res.{blocks - 1}.conv1.weight", 0, dimensions=4)
        for level in reversed(range(shapes.count(levels)))
    ]
    return VQConfig(
        base_channels=base,
        channel_multiplier=tuple(width // base for width in widths),
        num_res_blocks=blocks - 1,
        latent_channels=shapes.size(f"{vq}encoder.conv_out.weight", 0, dimensions=4),
        embed_dim=shapes.size(f"{vq}quantize.embedding.weight", 1),
        num_embeddings=shapes.size(f"{vq}quantize.embedding.weight", 0),
    )


def _stated(config: JanusConfig) -> dict[str, dict[str, Any]]:
    """The sizes that DeepSeek's config.json states, by section."""
    text, vision, vq = config.text, config.vision, config.vq
    projector = {"depth": 2, "n_embed": text.hidden_size, "projector_type": "mlp_gelu"}
    return {
        "language_config": _sizes(text) | {"num_key_value_heads": text.num_heads},
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


def to_deepseek(config: JanusConfig, path: object) -> dict[str, Any]:
    """config.json of DeepSeek's layout, but for the dtype.

    path: of the config.json that is converted. Raises UserError for what the layout has no field for.
    """
    if config.vision.layer_norm_eps != 1e-6:
        raise UserError(
            f"{path}: vision_config.layer_norm_eps is {config.vision.layer_norm_eps}; "
            "DeepSeek's layout always means 1e-6, so this model cannot be converted to it"
        )
    params = _stated(config)
    language = params.pop("language_config") | {"model_type": "llama"}
    params["vision_config"] |= {"select_feature": "same", "select_layer": -1}
    if config.vision.num_heads != _siglip_heads(config.vision.hidden_size):
        params["vision_config"]["num_heads"] = config.vision.num_heads  # ours: the layout has no place for it
    sections = {
        part: {"cls": cls, "model_type": part.removesuffix("_config"), "params": params[part]}
        for part, cls in _CLASSES.items()
    }
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "language_config": language,
        **sections,
    }
