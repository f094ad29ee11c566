"""VQ-16, the image tokenizer: pictures to 24×24 codes and back. Always float32, never trained.

Activations are rows of channels, one for each pixel.

Shapes: I images, H×W pixels, P = I·H·W rows, C channels, T = h·w latent positions, E code width, V codes.
"""

from itertools import pairwise
from typing import NamedTuple

from mindspore import Tensor, nn, ops

from janus.model.config import VQConfig
from janus.model.kernels import body
from janus.model.kernels.plain import likeliest
from janus.model.layers import Affine, matmul_transposed
from janus.model.siglip import normalise_pixels
from janus.model.weights import Weights

GROUPS, EPS = 32, 1e-6


class Grid(NamedTuple):
    """How the rows of an activation lie in pictures."""

    images: int
    side: int


class Linear(Affine):
    """A 1×1 convolution, (P, C′) of (P, C): one matrix product over rows."""

    def __init__(self, weights: Weights, inputs: int, outputs: int) -> None:
        super().__init__(weights, (outputs, inputs, 1, 1), "fan_in", _convolve_1x1)


def _convolve_1x1(x_PC: Tensor, weight_OC11: Tensor, bias_O: Tensor) -> Tensor:
    return ops.bias_add(matmul_transposed(x_PC, weight_OC11.reshape(weight_OC11.shape[:2])), bias_O)


class Conv(Affine):
    """A 3×3 convolution, (P′, C′) of (P, C). resize: −1 halves the picture, 1 doubles it before."""

    def __init__(self, weights: Weights, inputs: int, outputs: int, grid: Grid, resize: int = 0) -> None:
        kernel = body().Conv3x3(*grid, stride=2 if resize < 0 else 1, doubled=resize > 0)
        super().__init__(weights, (outputs, inputs, 3, 3), "fan_in", kernel)


class GroupNorm(Affine):
    """GroupNorm(32, 1e-6) of (P, C)."""

    def __init__(self, weights: Weights, channels: int, grid: Grid) -> None:
        super().__init__(weights, (channels,), "ones", body().GroupNorm(*grid, channels, GROUPS, EPS))


class ResBlock(nn.Cell):
    """Two normalised convolutions around a shortcut, (P, C′) of (P, C)."""

    def __init__(self, weights: Weights, inputs: int, outputs: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.norm1 = GroupNorm(weights / "norm1", inputs, grid)
        self.conv1 = Conv(weights / "conv1", inputs, outputs, grid)
        self.norm2 = GroupNorm(weights / "norm2", outputs, grid)
        self.conv2 = Conv(weights / "conv2", outputs, outputs, grid)
        self.shortcut = Linear(weights / "nin_shortcut", inputs, outputs) if inputs != outputs else None

    def construct(self, x_PC: Tensor) -> Tensor:
        inner = self.conv2(ops.silu(self.norm2(self.conv1(ops.silu(self.norm1(x_PC))))))
        return (x_PC if self.shortcut is None else self.shortcut(x_PC)) + inner


class AttnBlock(nn.Cell):
    """One-head self-attention over the positions of a picture, (P, C)."""

    def __init__(self, weights: Weights, channels: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.norm = GroupNorm(weights / "norm", channels, grid)
        self.q = Linear(weights / "q", channels, channels)
        self.k = Linear(weights / "k", channels, channels)
        self.v = Linear(weights / "v", channels, channels)
        self.proj_out = Linear(weights / "proj_out", channels, channels)
        self.shape = (grid.images, grid.side**2, channels)
        self.scale = channels**-0.5

    def construct(self, x_PC: Tensor) -> Tensor:
        normed_PC = self.norm(x_PC)
        q_ITC, k_ITC, v_ITC = [f(normed_PC).reshape(self.shape) for f in (self.q, self.k, self.v)]
        probs_ITT = ops.softmax(ops.bmm(q_ITC, k_ITC.transpose(0, 2, 1)) * self.scale, -1)
        return x_PC + self.proj_out(ops.bmm(probs_ITT, v_ITC).reshape(x_PC.shape))


class Mid(nn.Cell):
    """Residual block, attention, residual block, (P, C)."""

    def __init__(self, weights: Weights, channels: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.block_1 = ResBlock(weights / "block_1", channels, channels, grid)
        self.attn_1 = AttnBlock(weights / "attn_1", channels, grid)
        self.block_2 = ResBlock(weights / "block_2", channels, channels, grid)

    def construct(self, x_PC: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_PC)))


class Level(nn.Cell):
    """Residual blocks of one resolution, attention where asked, then perhaps a change of resolution."""

    def __init__(
        self, weights: Weights, widths: list[int], grid: Grid, attention: bool, resample: Conv | None
    ) -> None:
        super().__init__(auto_prefix=False)
        pairs = list(enumerate(pairwise(widths)))
        blocks = [ResBlock(weights / "block" / i, *pair, grid) for i, pair in pairs]
        attn = [AttnBlock(weights / "attn" / i, width, grid) for i, (_, width) in pairs if attention]
        self.block = nn.CellList(blocks, auto_prefix=False)
        self.attn = nn.CellList(attn, auto_prefix=False)
        self.resample = resample

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P′, C′) of (P, C)."""
        for i in range(len(self.block)):
            x_PC = self.block[i](x_PC)
            if len(self.attn) > 0:
                x_PC = self.attn[i](x_PC)
        return x_PC if self.resample is None else self.resample(x_PC)


class Coder(nn.Cell):
    """The encoder: pictures in [−1, 1], (P, 3), to latents (I·h·w, latent channels). Or the decoder: back.

    A picture is 2^(levels − 1) times as wide and high as its latent. Attention is at the latent's resolution.
    """

    def __init__(self, weights: Weights, config: VQConfig, grid: Grid, decoder: bool) -> None:
        super().__init__(auto_prefix=False)
        widths = [config.base_channels * m for m in config.channel_multiplier]
        first, inputs, outputs = config.base_channels, 3, config.latent_channels
        levels, resample, resize, blocks = weights / "down", "downsample", -1, config.num_res_blocks
        if decoder:
            widths.reverse()
            first, inputs, outputs = widths[0], outputs, inputs
            levels, resample, resize, blocks = weights / "up", "upsample", 1, blocks + 1
        self.conv_in = Conv(weights / "conv_in", inputs, first, grid)
        stages = [Mid(weights / "mid", first, grid)] if decoder else []
        for i, (before, width) in enumerate(pairwise([first, *widths])):
            at, last = levels / i, i == len(widths) - 1
            change = None if last else Conv(at / resample / "conv", width, width, grid, resize)
            attention = i == 0 if decoder else last
            stages.append(Level(at, [before] + [width] * blocks, grid, attention, change))
            if not last:
                grid = Grid(grid.images, grid.side * 2 if decoder else grid.side // 2)
        if not decoder:
            stages.append(Mid(weights / "mid", widths[-1], grid))
        self.stages = nn.CellList(stages, auto_prefix=False)
        self.norm_out = GroupNorm(weights / "norm_out", widths[-1], grid)
        self.conv_out = Conv(weights / "conv_out", widths[-1], outputs, grid)

    def construct(self, x_PC: Tensor) -> Tensor:
        x_PC = self.conv_in(x_PC)
        for stage in self.stages:
            x_PC = stage(x_PC)
        return self.conv_out(ops.silu(self.norm_out(x_PC)))


class VQ(nn.Cell):
    """The whole tokenizer, for `images` pictures of `image_size` pixels a call."""

    def __init__(self, weights: Weights, config: VQConfig, image_size: int, images: int) -> None:
        super().__init__(auto_prefix=False)
        self.grid = Grid(images, image_size)
        latent = Grid(images, image_size // 2 ** (len(config.channel_multiplier) - 1))
        self.encoder = Coder(weights / "encoder", config, self.grid, decoder=False)
        self.decoder = Coder(weights / "decoder", config, latent, decoder=True)
        codebook = weights / "quantize" / "embedding"
        self.codebook_VE = codebook.take("weight", (config.num_embeddings, config.embed_dim))
        self.quant_conv = Linear(weights / "quant_conv", config.latent_channels, config.embed_dim)
        self.post_quant_conv = Linear(weights / "post_quant_conv", config.embed_dim, config.latent_channels)

    def encode(self, pixels_IHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (I, T) of uint8 pictures, and their latent (I·T, E).

        A code is the nearest codebook row, both sides L2-normalised.
        """
        latent_PE = self.quant_conv(self.encoder(normalise_pixels(pixels_IHWC).reshape(-1, 3)))
        # For unit vectors the nearest row is the one with the largest product.
        similarity_PV = ops.matmul(l2_normalise(latent_PE), l2_normalise(self.codebook_VE).transpose(1, 0))
        return likeliest(similarity_PV).reshape(self.grid.images, -1), latent_PE

    def decode(self, image_tokens_IT: Tensor) -> Tensor:
        """Pictures (I, H, W, 3) in [−1, 1] of codes."""
        z_PE = ops.gather(l2_normalise(self.codebook_VE), image_tokens_IT.reshape(-1), 0)
        side = self.grid.side
        return self.decoder(self.post_quant_conv(z_PE)).reshape(self.grid.images, side, side, 3)


def l2_normalise(x: Tensor) -> Tensor:
    """Rows of length 1, as torch's normalize: x / max(‖x‖, 1e-12)."""
    norm = ops.sqrt(ops.matmul(ops.square(x), ops.ones((x.shape[-1], 1), x.dtype)))
    return x / ops.maximum(norm, Tensor(1e-12, x.dtype))
