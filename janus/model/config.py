"""Sizes of a Janus-Pro network, their presets, and the transformers layout of config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace

from janus.common.errors import UserError


@dataclass(frozen=True)
class TextConfig:
    """The Llama."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int = 102_400
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 16_384

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP encoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int = 384
    patch_size: int = 16
    layer_norm_eps: float = 1e-6

    @property
    def num_image_tokens(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class VQConfig:
    """VQ-16: the image tokenizer."""

    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    embed_dim: int = 8
    num_embeddings: int = 16_384


@dataclass(frozen=True)
class JanusConfig:
    """Everything that decides the names and shapes of the parameters."""

    text: TextConfig
    vision: VisionConfig
    vq: VQConfig

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one image, for understanding and for generation alike."""
        return self.vision.num_image_tokens

    def with_vocabulary(self, vocab_size: int) -> JanusConfig:
        """The same network with another number of rows in the embedding table and lm_head."""
        return replace(self, text=replace(self.text, vocab_size=vocab_size))


PRESETS = {
    "tiny": JanusConfig(
        TextConfig(hidden_size=128, num_layers=2, num_heads=4, intermediate_size=256),
        VisionConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256),
        # As few blocks as there can be, and just wide enough for `janus/model/palette.py`.
        VQConfig(
            base_channels=96,
            channel_multiplier=(1, 1, 1, 1, 1),
            num_res_blocks=0,
            latent_channels=32,
            num_embeddings=1024,
        ),
    ),
    # What `make bench` trains: small enough for two cores, the head's share of the work is the 1B's.
    "bench": JanusConfig(
        TextConfig(hidden_size=512, num_layers=8, num_heads=8, intermediate_size=1408, vocab_size=8192),
        VisionConfig(hidden_size=256, num_layers=8, num_heads=8, intermediate_size=1024),
        VQConfig(base_channels=32),
    ),
    "1b": JanusConfig(
        TextConfig(hidden_size=2048, num_layers=24, num_heads=16, intermediate_size=5632),
        VisionConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
        VQConfig(),
    ),
    "7b": JanusConfig(
        TextConfig(hidden_size=4096, num_layers=30, num_heads=32, intermediate_size=11_008),
        VisionConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
        VQConfig(),
    ),
}

VQ_WEIGHTS = {
    "checkpoint": "a checkpoint's weights",
    "palette": "a palette in place of weights: each code is the colour of a block",
    "random": "random weights, so they MEAN NOTHING",
}
"""What codes and decoded pictures can come from, in words."""


def from_transformers(content: dict, path: object) -> JanusConfig:
    """The sizes in a `JanusConfig` of transformers (`model_type: janus`).

    Raises UserError naming the field that is missing or that this network does not have.
    """
    try:
        text, vision, vq = (content[part] for part in ("text_config", "vision_config", "vq_config"))
        if text.get("num_key_value_heads", text["num_attention_heads"]) != text["num_attention_heads"]:
            raise UserError(f"{path}: num_key_value_heads differs from num_attention_heads; not Janus-Pro")
        return JanusConfig(_text(text), _vision(vision), _vq(vq))
    except KeyError as error:
        raise UserError(f"{path}: field {error} is missing; expected transformers' JanusConfig") from error


def _text(text: dict) -> TextConfig:
    return TextConfig(
        hidden_size=text["hidden_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        intermediate_size=text["intermediate_size"],
        vocab_size=text["vocab_size"],
        rms_norm_eps=text["rms_norm_eps"],
        rope_theta=text["rope_theta"],
        max_position_embeddings=text["max_position_embeddings"],
    )


def _vision(vision: dict) -> VisionConfig:
    return VisionConfig(
        hidden_size=vision["hidden_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        intermediate_size=int(vision["hidden_size"] * vision["mlp_ratio"]),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        layer_norm_eps=vision["layer_norm_eps"],
    )


def _vq(vq: dict) -> VQConfig:
    return VQConfig(
        base_channels=vq["base_channels"],
        channel_multiplier=tuple(vq["channel_multiplier"]),
        num_res_blocks=vq["num_res_blocks"],
        latent_channels=vq["latent_channels"],
        embed_dim=vq["embed_dim"],
        num_embeddings=vq["num_embeddings"],
    )


def to_transformers(config: JanusConfig, token_ids: dict[str, int]) -> dict:
    """`config.json` as transformers' JanusForConditionalGeneration reads it.

    token_ids: ids for `bos`, `eos`, `pad` and `image_placeholder`.
    """
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": token_ids["image_placeholder"],
        "model_type": "janus",
        "text_config": _text_content(config.text, token_ids),
        "vision_config": _vision_content(config),
        "vq_config": _vq_content(config),
    }


def _text_content(text: TextConfig, token_ids: dict[str, int]) -> dict:
    return {
        "attention_bias": False,
        "bos_token_id": token_ids["bos"],
        "eos_token_id": token_ids["eos"],
        "head_dim": text.head_size,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_heads,
        "pad_token_id": token_ids["pad"],
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": text.vocab_size,
    }


def _vision_content(config: JanusConfig) -> dict:
    text, vision = config.text, config.vision
    return {
        "attention_bias": True,
        "attention_dropout": 0.0,
        "depth": 2,
        "hidden_act": "gelu",
        "hidden_dropout_rate": 0.0,
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        "model_type": "janus_vision_model",
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers,
        "num_image_tokens": vision.num_image_tokens,
        "patch_size": vision.patch_size,
        "projection_dim": text.hidden_size,
        "projection_dropout": 0.0,
        "use_qk_norm": False,
    }


def _vq_content(config: JanusConfig) -> dict:
    text, vision, vq = config.text, config.vision, config.vq
    return {
        "base_channels": vq.base_channels,
        "channel_multiplier": list(vq.channel_multiplier),
        "double_latent": False,
        "dropout": 0.0,
        "embed_dim": vq.embed_dim,
        "hidden_act": "gelu",
        "image_token_embed_dim": text.hidden_size,
        "in_channels": 3,
        "latent_channels": vq.latent_channels,
        "model_type": "janus_vqgan",
        "num_embeddings": vq.num_embeddings,
        "num_hidden_layers": 2,
        "num_patches": vision.image_size // vision.patch_size,
        "num_res_blocks": vq.num_res_blocks,
        "out_channels": 3,
        "projection_dim": text.hidden_size,
    }
