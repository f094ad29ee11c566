"""SigLIP: pictures in, one feature for each patch out.

Shapes: I images, T patches of an image, M = I·T, D width, H heads, K head width.
"""

from mindspore import Tensor, nn, ops

from janus.model.config import VisionConfig
from janus.model.kernels import body
from janus.model.layers import LayerNorm, Linear, Mlp
from janus.model.weights import Weights


class VisionAttention(nn.Cell):
    """(M, D): what each patch takes from all patches of its image."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        super().__init__(auto_prefix=False)
        width, heads = config.hidden_size, config.num_heads
        self.q_proj = Linear(weights / "q_proj", width, width)
        self.k_proj = Linear(weights / "k_proj", width, width)
        self.v_proj = Linear(weights / "v_proj", width, width)
        self.projection_layer = Linear(weights / "projection_layer", width, width)
        self.attention = body().PictureAttention(heads, width // heads)

    def construct(self, x_MD: Tensor, images: int) -> Tensor:
        q_MD, k_MD, v_MD = self.q_proj(x_MD), self.k_proj(x_MD), self.v_proj(x_MD)
        return self.projection_layer(self.attention(q_MD, k_MD, v_MD, images))


class VisionLayer(nn.Cell):
    """Attention and MLP, each normalised before and added after, (M, D)."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        super().__init__(auto_prefix=False)
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.layer_norm1 = LayerNorm(weights / "layer_norm1", width, eps)
        self.self_attn = VisionAttention(weights / "self_attn", config)
        self.layer_norm2 = LayerNorm(weights / "layer_norm2", width, eps)
        self.mlp = Mlp(weights / "mlp" / "fc1", weights / "mlp" / "fc2", width, inner, width)

    def construct(self, x_MD: Tensor, images: int) -> Tensor:
        x_MD = x_MD + self.self_attn(self.layer_norm1(x_MD), images)
        return x_MD + self.mlp(self.layer_norm2(x_MD))


class Siglip(nn.Cell):
    """Features (M, D) of uint8 pictures, with the final norm, without pooling."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        super().__init__(auto_prefix=False)
        width, patch = config.hidden_size, config.patch_size
        embeddings = weights / "embeddings"
        self.patch_weight = (embeddings / "patch_embedding").take("weight", (width, 3, patch, patch))
        self.patch_bias = (embeddings / "patch_embedding").take("bias", (width,), "zeros")
        positions = (config.num_image_tokens, width)
        self.position_TD = (embeddings / "position_embedding").take("weight", positions)
        layers = [VisionLayer(weights / "encoder" / "layers" / i, config) for i in range(config.num_layers)]
        self.layers = nn.CellList(layers, auto_prefix=False)
        self.post_layernorm = LayerNorm(weights / "post_layernorm", width, config.layer_norm_eps)
        self.patch, self.add_bias = patch, body().AddBias()

    def construct(self, pixels_IHWC: Tensor) -> Tensor:
        images, side, _, channels = pixels_IHWC.shape
        n, p = side // self.patch, self.patch
        # A convolution whose stride is its size is one matrix product over cut-out patches.
        cut = normalise_pixels(pixels_IHWC).reshape(images, n, p, n, p, channels).transpose(0, 1, 3, 5, 2, 4)
        kernel = self.patch_weight.reshape(self.patch_weight.shape[0], -1)
        x_MD = ops.matmul(cut.reshape(images * n * n, channels * p * p), kernel.transpose(1, 0))
        x_MD = self.add_bias(x_MD, self.patch_bias) + ops.tile(self.position_TD, (images, 1))
        x_MD = x_MD.astype(self.post_layernorm.weight.dtype)
        for layer in self.layers:
            x_MD = layer(x_MD, images)
        return self.post_layernorm(x_MD)


def normalise_pixels(pixels: Tensor) -> Tensor:
    """uint8 to [−1, 1]: (x / 255 − 0.5) / 0.5."""
    return pixels.astype("float32") * (2.0 / 255.0) - 1.0
