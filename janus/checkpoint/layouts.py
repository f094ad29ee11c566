"""The two names of every parameter: transformers' layout, which is ours, and DeepSeek's.

`keymap` rules are tried in order; the first that matches renames. In DeepSeek's layout SigLIP's q, k and v
lie in one tensor, and its position embedding has a leading axis of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RULES = [
    (r"model\.vision_model\.embeddings\.position_embedding\.weight", "vision_model.vision_tower.pos_embed"),
    (r"model\.vision_model\.embeddings\.patch_embedding\.", "vision_model.vision_tower.patch_embed.proj."),
    (r"model\.vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"vision_model.vision_tower.blocks.\1.norm"),
    (
        r"model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.",
        r"vision_model.vision_tower.blocks.\1.attn.qkv.",
    ),
    (
        r"model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection_layer\.",
        r"vision_model.vision_tower.blocks.\1.attn.proj.",
    ),
    (r"model\.vision_model\.encoder\.layers\.(\d+)\.", r"vision_model.vision_tower.blocks.\1."),
    (r"model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
    (r"model\.aligner\.fc1\.", "aligner.layers.0."),
    (r"model\.aligner\.hidden_layers\.0\.", "aligner.layers.2."),
    (r"model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"model\.generation_head\.", "gen_head."),
    (r"model\.generation_embeddings\.", "gen_embed."),
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.vqmodel\.(encoder|decoder)\.mid\.block_1\.", r"gen_vision_model.\1.mid.0."),
    (r"model\.vqmodel\.(encoder|decoder)\.mid\.attn_1\.", r"gen_vision_model.\1.mid.1."),
    (r"model\.vqmodel\.(encoder|decoder)\.mid\.block_2\.", r"gen_vision_model.\1.mid.2."),
    (
        r"model\.vqmodel\.(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.",
        r"gen_vision_model.\1.conv_blocks.\2.res.",
    ),
    (r"model\.vqmodel\.(encoder|decoder)\.(?:down|up)\.(\d+)\.", r"gen_vision_model.\1.conv_blocks.\2."),
    (r"model\.vqmodel\.", "gen_vision_model."),
]
_QKV = re.compile(r"vision_model.*self_attn\.([qkv])_proj\.")


@dataclass(frozen=True)
class DeepseekName:
    """Where a parameter lies in DeepSeek's layout."""

    name: str
    third: int | None = None  # which third of a fused qkv tensor, along its first axis
    leading_axis: bool = False  # stored with a leading axis of one


def deepseek_name(name: str) -> DeepseekName:
    """DeepSeek's place for a parameter of the transformers layout.

    Raises ValueError for a name that is not Janus-Pro's.
    """
    for pattern, replacement in _RULES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            qkv = _QKV.search(name)
            third = "qkv".index(qkv.group(1)) if qkv else None
            return DeepseekName(renamed, third, leading_axis=renamed.endswith(".pos_embed"))
    raise ValueError(f"{name} is not a parameter of Janus-Pro")
