"""Sizes of a Janus-Pro network, and presets."""

from dataclasses import dataclass


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


PATCH_SIZE = 16
"""Side in pixels of the patch that an image token stands for, in every Janus-Pro."""


def num_image_tokens(image_size: int, patch_size: int = PATCH_SIZE) -> int:
    """Tokens of one image, for understanding and for generation: 576 at 384 pixels."""
    return (image_size // patch_size) ** 2


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP encoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int = 384
    patch_size: int = PATCH_SIZE
    layer_norm_eps: float = 1e-6

    @property
    def num_image_tokens(self) -> int:
        """Patches of one image."""
        return num_image_tokens(self.image_size, self.patch_size)


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

    @property
    def head_sizes(self) -> tuple[int, int]:
        """Widths of an attention head: the Llama's, SigLIP's."""
        return self.text.head_size, self.vision.hidden_size // self.vision.num_heads


PRESETS = {
    "tiny": JanusConfig(
        TextConfig(hidden_size=128, num_layers=2, num_heads=4, intermediate_size=256),
        VisionConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256),
        # As few blocks as there can be, and just wide enough for the sample's palette.
        VQConfig(96, channel_multiplier=(1,) * 5, num_res_blocks=0, latent_channels=32, num_embeddings=1024),
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
