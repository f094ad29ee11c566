"""The Llama that reads text, understands images and draws them.

Samples follow each other on a flat axis of tokens, so that no product is spent on padding. Segments keep
them apart in attention.

Shapes: P flat tokens, B attention rows of S slots, D width, K head width.
"""

from typing import Any

from mindspore import Tensor, nn

from janus.model.config import TextConfig
from janus.model.kernels import body
from janus.model.kernels.plain import Tensors
from janus.model.layers import Embedding, Linear, Linears, RMSNorm
from janus.model.weights import Weights


class Attention(nn.Cell):
    """Causal self-attention with rotary positions, (P, D): what each token takes from those it sees."""

    def __init__(self, weights: Weights, config: TextConfig) -> None:
        super().__init__(auto_prefix=False)
        width, heads, head_size = config.hidden_size, config.num_heads, config.head_size
        self.qkv_proj = Linears(weights, ("q_proj", "k_proj", "v_proj"), width, width)
        self.o_proj = Linear(weights / "o_proj", width, width, bias=False)
        self.rotary = body().Rotary(heads, head_size, config.rope_theta)
        self.attention = body().SegmentAttention(heads, head_size)

    def construct(self, x_PD: Tensor, angles: Tensors, places: Tensors) -> Tensor:
        return self.o_proj(self.attention(*self.qkv(x_PD, angles), places))

    def qkv(self, x_PD: Tensor, angles: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (turned and scaled), keys (turned) and values, each (P, D)."""
        cos, sin, query_cos, query_sin = angles
        q_PD, k_PD, v_PD = self.qkv_proj(x_PD)
        return self.rotary(q_PD, query_cos, query_sin), self.rotary(k_PD, cos, sin), v_PD


class Mlp(nn.Cell):
    """down(silu(gate) · up), (P, D)."""

    def __init__(self, weights: Weights, config: TextConfig) -> None:
        super().__init__(auto_prefix=False)
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = Linears(weights, ("gate_proj", "up_proj"), width, inner, split=False)
        self.down_proj = Linear(weights / "down_proj", inner, width, bias=False)
        self.swiglu = body().SwiGLU()

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.down_proj(self.swiglu(*self.gate_up_proj(x_PD)))


class Layer(nn.Cell):
    """Attention and MLP, each normalised before and added after, (P, D)."""

    def __init__(self, weights: Weights, config: TextConfig) -> None:
        super().__init__(auto_prefix=False)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(weights / "input_layernorm", width, eps)
        self.self_attn = Attention(weights / "self_attn", config)
        self.post_attention_layernorm = RMSNorm(weights / "post_attention_layernorm", width, eps)
        self.mlp = Mlp(weights / "mlp", config)

    def construct(self, x_PD: Tensor, angles: Tensors, places: Tensors) -> Tensor:
        return self.finish(x_PD, self.self_attn(self.input_layernorm(x_PD), angles, places))

    def finish(self, x_PD: Tensor, attended_PD: Tensor) -> Tensor:
        """(P, D): what attention gave is added, then the MLP's output."""
        x_PD = x_PD + attended_PD
        return x_PD + self.mlp(self.post_attention_layernorm(x_PD))


class Llama(nn.Cell):
    """Embeddings (P, D) in, last hidden states (P, D) out; a token sees its own segment up to itself."""

    def __init__(self, weights: Weights, config: TextConfig) -> None:
        super().__init__(auto_prefix=False)
        self.embed_tokens = Embedding(weights / "embed_tokens", config.vocab_size, config.hidden_size)
        layers = [Layer(weights / "layers" / i, config) for i in range(config.num_layers)]
        self.layers = nn.CellList(layers, auto_prefix=False)
        self.norm = RMSNorm(weights / "norm", config.hidden_size, config.rms_norm_eps)
        self.scale = config.head_size**-0.5

    def construct(self, x_PD: Tensor, position_ids_P: Tensor, *segments: Tensor) -> Tensor:
        """segments: what keeps samples apart, as the kernels' `takes_slots` says; see `Batch`."""
        angles = self.angles(position_ids_P, x_PD.dtype)
        places = self.layers[0].self_attn.attention.places(x_PD.shape[0], *segments)
        for layer in self.layers:
            x_PD = layer(x_PD, angles, places)
        return self.norm(x_PD)

    def embed(self, ids_P: Tensor) -> Tensor:
        """Embeddings (P, D), in the dtype of the layers."""
        return self.embed_tokens(ids_P).astype(self.norm.weight.dtype)

    def angles(self, position_ids_P: Tensor, dtype: Any) -> Tensors:
        """cos and sin of each token's angles; and both times 1/√K, for the query."""
        rotary = self.layers[0].self_attn.rotary
        cos, sin = rotary.angles(position_ids_P, 1.0)
        query_cos, query_sin = rotary.angles(position_ids_P, self.scale)
        return cos.astype(dtype), sin.astype(dtype), query_cos.astype(dtype), query_sin.astype(dtype)
