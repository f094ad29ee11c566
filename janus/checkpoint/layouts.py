"""config.json of both layouts, read into a `JanusConfig` and written from one.

transformers' config.json (`model_type: janus`) states every size, mostly under our names. DeepSeek's
(`multi_modality`) states few: the rest follow from the weights' shapes, or are defaults of the libraries that
DeepSeek builds on. What it states must agree with the weights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any

from janus.checkpoint.tensors import StoredTensor
from janus.common.errors import UserError
from janus.model.config import JanusConfig, TextConfig, VisionConfig, VQConfig

_THEIR_NAMES = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
"""Fields that have another name in transformers."""
_TEXT = {"attention_bias": False, "hidden_act": "silu", "mlp_bias": False}
_TEXT |= {"model_type": "llama", "tie_word_embeddings": False}
_VISION = {"attention_bias": True, "attention_dropout": 0.0, "depth": 2, "hidden_act": "gelu"}
_VISION |= {"hidden_dropout_rate": 0.0, "model_type": "janus_vision_model", "num_channels": 3}
_VISION |= {"projection_dropout": 0.0, "use_qk_norm": False}
_VQ = {"double_latent": False, "dropout": 0.0, "hidden_act": "gelu", "in_channels": 3, "out_channels": 3}
_VQ |= {"model_type": "janus_vqgan", "num_hidden_layers": 2}
"""What is the same in every Janus-Pro's text_config, vision_config and vq_config."""
_LLAMA = {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048}
"""What a language_config that leaves them out means: the defaults of transformers' LlamaConfig."""
_CLASSES = {"vision_config": "CLIPVisionTower", "gen_vision_config": "VQ-16"}
_CLASSES |= {"aligner_config": "MlpProjector", "gen_aligner_config": "MlpProjector"}
_CLASSES |= {"gen_head_config": "vision_head"}


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


def _part(part: type, sizes: Mapping[str, Any]) -> Any:
    return part(**{f.name: sizes[_THEIR_NAMES.get(f.name, f.name)] for f in fields(part)})


def _sizes(part: TextConfig | VisionConfig | VQConfig) -> dict[str, Any]:
    """Every size under transformers' name; the inverse of `_part`."""
    return {_THEIR_NAMES.get(name, name): value for name, value in asdict(part).items()}


def to_transformers(config: JanusConfig, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """`config.json` as transformers' JanusForConditionalGeneration reads it.

    token_ids: ids for `bos`, `eos`, `pad` and `image_placeholder`.
    """
    text, vision = _sizes(config.text), _sizes(config.vision)
    text |= {f"{name}_token_id": token_ids[name] for name in ("bos", "eos", "pad")}
    text |= {"head_dim": config.text.head_size, "num_key_value_heads": config.text.num_heads}
    vision["mlp_ratio"] = vision.pop("intermediate_size") / config.vision.hidden_size
    vision["num_image_tokens"] = config.num_image_tokens
    vq = _sizes(config.vq) | {"num_patches": config.vision.image_size // config.vision.patch_size}
    width = {"projection_dim": config.text.hidden_size}
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": token_ids["image_placeholder"],
        "model_type": "janus",
        "text_config": _TEXT | text,
        "vision_config": _VISION | vision | width,
        "vq_config": _VQ | vq | width | {"image_token_embed_dim": config.text.hidden_size},
    }


@dataclass(frozen=True)
class _Shapes:
    """Shapes of the file's tensors by name, from which sizes are read."""

    tensors: Mapping[str, StoredTensor]
    path: Path

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        """A tensor's shape. Raises UserError where it is absent or has other dimensions."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise UserError(f"{self.path}: missing {name}; these are not the weights of Janus-Pro")
        if len(tensor.shape) != dimensions:
            raise UserError(f"{self.path}: {name} is {tensor.shape}, expected {dimensions} dimensions")
        return tensor.shape

    def count(self, prefix: str) -> int:
        """The number of distinct children below a prefix, such as layers."""
        return len({name[len(prefix) :].split(".")[0] for name in self.tensors if name.startswith(prefix)})


def from_deepseek(
    content: Mapping[str, Any], tensors: Mapping[str, StoredTensor], path: Path, weights: Path
) -> JanusConfig:
    """The sizes of a checkpoint in DeepSeek's layout.

    content: config.json, read from `path`. tensors: by DeepSeek's names, from `weights`.
    Raises UserError where the config contradicts the weights, or a tensor that shows a size is missing.
    """
    shapes = _Shapes(tensors, weights)
    text = _text(_LLAMA | content.get("language_config", {}), shapes)
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
    vocabulary, width = shapes.of(f"{model}embed_tokens.weight", 2)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": shapes.count(f"{model}layers."),
    }
    sizes["intermediate_size"] = shapes.of(f"{model}layers.0.mlp.gate_proj.weight", 2)[0]
    return _part(TextConfig, {**language, **sizes})


def _vision(params: Mapping[str, Any], shapes: _Shapes) -> VisionConfig:
    tower = "vision_model.vision_tower."
    _, tokens, width = shapes.of(f"{tower}pos_embed", 3)
    patch = shapes.of(f"{tower}patch_embed.proj.weight", 4)[3]
    inner = shapes.of(f"{tower}blocks.0.mlp.fc1.weight", 2)[0]
    heads = params.get("num_heads", _siglip_heads(width))
    return VisionConfig(width, shapes.count(f"{tower}blocks."), heads, inner, isqrt(tokens) * patch, patch)


def _siglip_heads(width: int) -> int:
    """SigLIP's heads, which neither config nor shapes show: 16 of at least 16, fewer in a narrow toy."""
    return max(1, min(16, width // 16))


def _vq(shapes: _Shapes) -> VQConfig:
    vq = "gen_vision_model."
    base = shapes.of(f"{vq}encoder.conv_in.weight", 4)[0]
    # From the decoder: it has one more block a level, so every level shows in its names.
    levels = f"{vq}decoder.conv_blocks."
    blocks = shapes.count(f"{levels}0.res.") - 1
    outputs = (f"{levels}{level}.res.{blocks}.conv1.weight" for level in range(shapes.count(levels)))
    codes, width = shapes.of(f"{vq}quantize.embedding.weight", 2)
    return VQConfig(
        base_channels=base,
        channel_multiplier=tuple(shapes.of(name, 4)[0] // base for name in outputs)[::-1],
        num_res_blocks=blocks,
        latent_channels=shapes.of(f"{vq}encoder.conv_out.weight", 4)[0],
        embed_dim=width,
        num_embeddings=codes,
    )


def _stated(config: JanusConfig) -> dict[str, dict[str, Any]]:
    """The sizes that DeepSeek's config.json states, by section."""
    text, vision, vq = config.text, config.vision, config.vq
    projector = {"depth": 2, "n_embed": text.hidden_size, "projector_type": "mlp_gelu"}
    codes = {"image_token_size": vq.num_embeddings}
    return {
        "language_config": _sizes(text) | {"num_key_value_heads": text.num_heads},
        "vision_config": {"image_size": vision.image_size, "model_name": "siglip_large_patch16_384"},
        "aligner_config": {**projector, "input_dim": vision.hidden_size},
        "gen_aligner_config": {**projector, "input_dim": vq.embed_dim},
        "gen_vision_config": {**codes, "n_embed": vq.embed_dim},
        "gen_head_config": {**codes, "image_token_embed": text.hidden_size, "n_embed": text.hidden_size},
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
    content = {"architectures": ["MultiModalityCausalLM"], "model_type": "multi_modality"}
    return {**content, "language_config": language} | {
        part: {"cls": cls, "model_type": part.removesuffix("_config"), "params": params[part]}
        for part, cls in _CLASSES.items()
    }
