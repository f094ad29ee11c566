"""VQ-16, the image tokenizer: pictures to 24×24 codes and back. Always float32, never trained.

Activations are rows of channels, one for each pixel.

Shapes: I images, H×W pixels, P = I·H·W rows, C channels, T = h·w latent positions, E code width, V codes.
"""

from itertools import pairwise
from typing import NamedTuple

from mindspore import Tensor, nn, ops

from janus.model.config import VQConfig
from janus.model.kernels import body
from janus.model.siglip import normalise_pixels
from janus.model.weights import Weights

GROUPS, EPS = 32, 1e-6


class Grid(NamedTuple):
    """How the rows of an activation lie in pictures."""

    images: int
    side: int

    @property
    def pixels(self) -> int:
        """Positions of one picture."""
        return self.side * self.side


class Linear(nn.Cell):
    """A 1×1 convolution: one matrix product over rows."""

    def __init__(self, weights: Weights, inputs: int, outputs: int) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (outputs, inputs, 1, 1))
        self.bias = weights.take("bias", (outputs,), "zeros")
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P, C′) of (P, C)."""
        kernel = self.weight.reshape(self.weight.shape[0], self.weight.shape[1])
        return ops.bias_add(self.matmul(x_PC, kernel), self.bias)


class Conv(nn.Cell):
    """A 3×3 convolution. stride 2 halves the picture; `doubled` doubles it before."""

    def __init__(
        self, weights: Weights, inputs: int, outputs: int, grid: Grid, stride: int = 1, doubled: bool = False
    ) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (outputs, inputs, 3, 3))
        self.bias = weights.take("bias", (outputs,), "zeros")
        self.convolve = body().Conv3x3(grid.images, grid.side, stride, doubled)

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P′, C′) of (P, C)."""
        return self.convolve(x_PC, self.weight, self.bias)


class GroupNorm(nn.Cell):
    """GroupNorm(32, 1e-6)."""

    def __init__(self, weights: Weights, channels: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (channels,), "ones")
        self.bias = weights.take("bias", (channels,), "zeros")
        self.norm = body().GroupNorm(grid.images, grid.side, channels, GROUPS, EPS)

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P, C) normalised."""
        return self.norm(x_PC, self.weight, self.bias)


class ResBlock(nn.Cell):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, weights: Weights, inputs: int, outputs: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.norm1 = GroupNorm(weights / "norm1", inputs, grid)
        self.conv1 = Conv(weights / "conv1", inputs, outputs, grid)
        self.norm2 = GroupNorm(weights / "norm2", outputs, grid)
        self.conv2 = Conv(weights / "conv2", outputs, outputs, grid)
        self.shortcut = Linear(weights / "nin_shortcut", inputs, outputs) if inputs != outputs else None

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P, C′) of (P, C)."""
        inner = self.conv1(ops.silu(self.norm1(x_PC)))
        inner = self.conv2(ops.silu(self.norm2(inner)))
        return (x_PC if self.shortcut is None else self.shortcut(x_PC)) + inner


class AttnBlock(nn.Cell):
    """One-head self-attention over the positions of a picture."""

    def __init__(self, weights: Weights, channels: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.norm = GroupNorm(weights / "norm", channels, grid)
        self.q = Linear(weights / "q", channels, channels)
        self.k = Linear(weights / "k", channels, channels)
        self.v = Linear(weights / "v", channels, channels)
        self.proj_out = Linear(weights / "proj_out", channels, channels)
        self.shape = (grid.images, grid.pixels, channels)
        self.scale = channels**-0.5

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P, C) with what each position takes from its picture."""
        normed_PC = self.norm(x_PC)
        q_ITC = self.q(normed_PC).reshape(self.shape)
        k_ITC = self.k(normed_PC).reshape(self.shape)
        v_ITC = self.v(normed_PC).reshape(self.shape)
        probs_ITT = ops.softmax(ops.bmm(q_ITC, k_ITC.transpose(0, 2, 1)) * self.scale, -1)
        return x_PC + self.proj_out(ops.bmm(probs_ITT, v_ITC).reshape(x_PC.shape))


class Mid(nn.Cell):
    """Residual block, attention, residual block."""

    def __init__(self, weights: Weights, channels: int, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        self.block_1 = ResBlock(weights / "block_1", channels, channels, grid)
        self.attn_1 = AttnBlock(weights / "attn_1", channels, grid)
        self.block_2 = ResBlock(weights / "block_2", channels, channels, grid)

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P, C) of (P, C)."""
        return self.block_2(self.attn_1(self.block_1(x_PC)))


class Level(nn.Cell):
    """Residual blocks of one resolution, attention where asked, then perhaps a change of resolution."""

    def __init__(
        self, weights: Weights, widths: list[int], grid: Grid, attention: bool, resample: Conv | None
    ) -> None:
        super().__init__(auto_prefix=False)
        pairs = list(pairwise(widths))
        self.block = nn.CellList(
            [ResBlock(weights / "block" / i, a, b, grid) for i, (a, b) in enumerate(pairs)], auto_prefix=False
        )
        self.attn = nn.CellList(
            [AttnBlock(weights / "attn" / i, b, grid) for i, (_, b) in enumerate(pairs) if attention],
            auto_prefix=False,
        )
        self.resample = resample

    def construct(self, x_PC: Tensor) -> Tensor:
        """(P′, C′) of (P, C)."""
        for i in range(len(self.block)):
            x_PC = self.block[i](x_PC)
            if len(self.attn) > 0:
                x_PC = self.attn[i](x_PC)
        return x_PC if self.resample is None else self.resample(x_PC)


class Encoder(nn.Cell):
    """Pictures in [−1, 1] to latents, a sixteenth as wide and high."""

    def __init__(self, weights: Weights, config: VQConfig, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        widths = [config.base_channels * m for m in (1, *config.channel_multiplier)]
        self.conv_in = Conv(weights / "conv_in", 3, config.base_channels, grid)
        levels = []
        for i, (before, width) in enumerate(pairwise(widths)):
            at = weights / "down" / i
            last = i == len(widths) - 2
            halve = None if last else Conv(at / "downsample" / "conv", width, width, grid, stride=2)
            levels.append(Level(at, [before] + [width] * config.num_res_blocks, grid, last, halve))
            grid = grid if last else Grid(grid.images, grid.side // 2)
        self.down = nn.CellList(levels, auto_prefix=False)
        self.mid = Mid(weights / "mid", widths[-1], grid)
        self.norm_out = GroupNorm(weights / "norm_out", widths[-1], grid)
        self.conv_out = Conv(weights / "conv_out", widths[-1], config.latent_channels, grid)

    def construct(self, x_PC: Tensor) -> Tensor:
        """Latents (I·h·w, latent channels) of pictures (P, 3)."""
        x_PC = self.conv_in(x_PC)
        for level in self.down:
            x_PC = level(x_PC)
        return self.conv_out(ops.silu(self.norm_out(self.mid(x_PC))))


class Decoder(nn.Cell):
    """Latents to pictures in [−1, 1]."""

    def __init__(self, weights: Weights, config: VQConfig, grid: Grid) -> None:
        super().__init__(auto_prefix=False)
        widths = [config.base_channels * m for m in reversed(config.channel_multiplier)]
        self.conv_in = Conv(weights / "conv_in", config.latent_channels, widths[0], grid)
        self.mid = Mid(weights / "mid", widths[0], grid)
        levels = []
        for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
            at = weights / "up" / i
            last = i == len(widths) - 1
            double = None if last else Conv(at / "upsample" / "conv", width, width, grid, doubled=True)
            levels.append(Level(at, [before] + [width] * (config.num_res_blocks + 1), grid, i == 0, double))
            grid = grid if last else Grid(grid.images, grid.side * 2)
        self.up = nn.CellList(levels, auto_prefix=False)
        self.norm_out = GroupNorm(weights / "norm_out", widths[-1], grid)
        self.conv_out = Conv(weights / "conv_out", widths[-1], 3, grid)

    def construct(self, z_PC: Tensor) -> Tensor:
        """Pictures (P, 3) of latents (I·h·w, latent channels)."""
        x_PC = self.mid(self.conv_in(z_PC))
        for level in self.up:
            x_PC = level(x_PC)
        return self.conv_out(ops.silu(self.norm_out(x_PC)))


class VQ(nn.Cell):
    """The whole tokenizer, for `images` pictures of `image_size` pixels a call."""

    def __init__(self, weights: Weights, config: VQConfig, image_size: int, images: int) -> None:
        super().__init__(auto_prefix=False)
        self.grid = Grid(images, image_size)
        latent = Grid(images, image_size // 2 ** (len(config.channel_multiplier) - 1))
        self.encoder = Encoder(weights / "encoder", config, self.grid)
        self.decoder = Decoder(weights / "decoder", config, latent)
        self.codebook_VE = (weights / "quantize" / "embedding").take(
            "weight", (config.num_embeddings, config.embed_dim)
        )
        self.quant_conv = Linear(weights / "quant_conv", config.latent_channels, config.embed_dim)
        self.post_quant_conv = Linear(weights / "post_quant_conv", config.embed_dim, config.latent_channels)

    def latent(self, pixels_IHWC: Tensor) -> Tensor:
        """The latent, rows (I·h·w, E), of uint8 pictures, before it is quantised."""
        return self.quant_conv(self.encoder(normalise_pixels(pixels_IHWC).reshape(-1, 3)))

    def encode(self, pixels_IHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (I, T) of uint8 pictures, and their latent.

        A code is the nearest codebook row, both sides L2-normalised.
        """
        latent_PE = self.latent(pixels_IHWC)
        # For unit vectors the nearest row is the one with the largest product.
        similarity_PV = ops.matmul(l2_normalise(latent_PE), l2_normalise(self.codebook_VE).transpose(1, 0))
        return ops.argmax(similarity_PV, -1).reshape(self.grid.images, -1), latent_PE

    def decode(self, image_tokens_IT: Tensor) -> Tensor:
        """Pictures (I, H, W, 3) in [−1, 1] of codes."""
        z_PE = ops.gather(l2_normalise(self.codebook_VE), image_tokens_IT.reshape(-1), 0)
        x_PC = self.decoder(self.post_quant_conv(z_PE))
        return x_PC.reshape(self.grid.images, self.grid.side, self.grid.side, 3)


def l2_normalise(x: Tensor) -> Tensor:
    """Rows of length 1, as torch's normalize: x / max(‖x‖, 1e-12)."""
    norm = ops.sqrt(ops.matmul(ops.square(x), ops.ones((x.shape[-1], 1), x.dtype)))
    return x / ops.maximum(norm, Tensor(1e-12, x.dtype))
