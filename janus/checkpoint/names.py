"""The two names of every parameter: transformers' layout, which is ours, and DeepSeek's.

In DeepSeek's layout SigLIP's q, k and v are one tensor, and its position embedding has a leading axis of one.
It also has SigLIP's pooling head and a record of the codes met in training, on which no output depends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from janus.checkpoint.tensors import StoredTensor, TensorToSave
from janus.common.errors import UserError

UNUSED = re.compile(r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$")
"""Tensors of DeepSeek's layout on which no output depends."""
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
"""Patterns at the start of our names, and DeepSeek's names for them. The first that matches renames."""
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


def from_deepseek_names(
    tensors: Mapping[str, StoredTensor], parameters: Iterable[str]
) -> dict[str, StoredTensor]:
    """The tensors under our names, as views: qkv in thirds, pos_embed without its leading axis.

    parameters: our name of every parameter of the network. A tensor that is none of them keeps its name,
    unless it is one of the unused.
    """
    named, used = {}, set()
    for name in parameters:
        place = deepseek_name(name)
        tensor = tensors.get(place.name)
        if tensor is None:
            continue
        used.add(place.name)
        if place.third is not None:
            rows = tensor.shape[0] // 3
            offset = tensor.offset + place.third * (tensor.nbytes // 3)
            tensor = replace(tensor, shape=(rows, *tensor.shape[1:]), offset=offset)
        elif place.leading_axis and tensor.shape[:1] == (1,):
            tensor = replace(tensor, shape=tensor.shape[1:])
        named[name] = tensor
    rest = {name: tensor for name, tensor in tensors.items() if name not in used and not UNUSED.match(name)}
    return named | rest


def to_deepseek_names(tensors: Mapping[str, StoredTensor], dtype: str | None) -> dict[str, TensorToSave]:
    """The tensors under DeepSeek's names, in `dtype` (F32, BF16) or as they are stored (None).

    Raises UserError where q, k and v of one tensor are stored in different dtypes.
    """
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name in sorted(tensors, key=lambda name: deepseek_name(name).third or 0):
        groups.setdefault(deepseek_name(name).name, {})[name] = tensors[name]
    saved = {}
    for target, parts in groups.items():
        if dtype is None and len({part.dtype for part in parts.values()}) > 1:
            path = next(iter(parts.values())).path
            raise UserError(f"{path}: {', '.join(parts)} differ in dtype; give --dtype to join them")
        joined = TensorToSave.joined(parts, dtype)
        if deepseek_name(next(iter(parts))).leading_axis:
            joined = replace(joined, shape=(1, *joined.shape))
        saved[target] = joined
    return saved
