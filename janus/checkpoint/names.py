"""The two names of every parameter: transformers' layout, which is ours, and DeepSeek's.

In DeepSeek's layout SigLIP's q, k and v are one tensor, and its position embedding has a leading axis of one.
It also has SigLIP's pooling head and a record of the codes met in training, on which no output depends.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from janus.checkpoint.tensors import StoredTensor, TensorToSave
from janus.common.errors import UserError

UNUSED = re.compile(r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$")
"""Tensors of DeepSeek's layout on which no output depends."""
_TABLE = """
model.vision_model.embeddings.position_embedding.weight         vision_model.vision_tower.pos_embed
model.vision_model.embeddings.patch_embedding.                  vision_model.vision_tower.patch_embed.proj.
model.vision_model.encoder.layers.N.layer_norm                  vision_model.vision_tower.blocks.N.norm
model.vision_model.encoder.layers.N.self_attn.q_proj.           vision_model.vision_tower.blocks.N.attn.qkv. 0
model.vision_model.encoder.layers.N.self_attn.k_proj.           vision_model.vision_tower.blocks.N.attn.qkv. 1
model.vision_model.encoder.layers.N.self_attn.v_proj.           vision_model.vision_tower.blocks.N.attn.qkv. 2
model.vision_model.encoder.layers.N.self_attn.projection_layer. vision_model.vision_tower.blocks.N.attn.proj.
model.vision_model.encoder.layers.N.                            vision_model.vision_tower.blocks.N.
model.vision_model.post_layernorm.                              vision_model.vision_tower.norm.
model.aligner.fc1.                                              aligner.layers.0.
model.aligner.hidden_layers.0.                                  aligner.layers.2.
model.generation_aligner.fc1.                                   gen_aligner.layers.0.
model.generation_aligner.hidden_layers.0.                       gen_aligner.layers.2.
model.generation_head.proj_out.                                 gen_head.output_mlp_projector.
model.generation_head.                                          gen_head.
model.generation_embeddings.                                    gen_embed.
model.language_model.                                           language_model.model.
lm_head.                                                        language_model.lm_head.
model.vqmodel.S.mid.block_1.                                    gen_vision_model.S.mid.0.
model.vqmodel.S.mid.attn_1.                                     gen_vision_model.S.mid.1.
model.vqmodel.S.mid.block_2.                                    gen_vision_model.S.mid.2.
model.vqmodel.S.V.N.block.                                      gen_vision_model.S.conv_blocks.N.res.
model.vqmodel.S.V.N.                                            gen_vision_model.S.conv_blocks.N.
model.vqmodel.                                                  gen_vision_model.
"""
"""How a name of ours starts, and DeepSeek's name; the first line that fits counts. N: a number. S: encoder or
decoder, V: down or up. A number after the names: which third of the fused tensor it is."""


def _rule(ours: str, theirs: str, third: str = "") -> tuple[re.Pattern[str], str, int | None]:
    pattern = re.escape(ours).replace("V", "(?:down|up)").replace("S", "(?P<S>encoder|decoder)")
    replacement = theirs.replace("N", r"\g<N>").replace("S", r"\g<S>")
    return re.compile(pattern.replace("N", r"(?P<N>\d+)")), replacement, int(third) if third else None


_RULES = [_rule(*line.split()) for line in _TABLE.strip().splitlines()]


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
    for pattern, replacement, third in _RULES:
        if found := pattern.match(name):
            renamed = found.expand(replacement) + name[found.end() :]
            return DeepseekName(renamed, third, leading_axis=renamed.endswith(".pos_embed"))
    raise ValueError(f"{name} is not a parameter of Janus-Pro")


def from_deepseek_names(
    tensors: Mapping[str, StoredTensor], parameters: Iterable[str]
) -> dict[str, StoredTensor]:
    """The tensors under our names, as views: qkv in thirds, pos_embed without its leading axis.

    parameters: our name of every parameter of the network. Other tensors keep their names; `UNUSED` ones are
    left out.
    """
    named, used = {}, set()
    for name in parameters:
        place = deepseek_name(name)
        if (tensor := tensors.get(place.name)) is None:
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
    groups: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    places = {name: deepseek_name(name) for name in tensors}
    for name in sorted(tensors, key=lambda name: places[name].third or 0):
        groups[places[name].name][name] = tensors[name]
    saved = {}
    for target, parts in groups.items():
        first = next(iter(parts))
        if dtype is None and len({part.dtype for part in parts.values()}) > 1:
            raise UserError(f"{tensors[first].path}: {', '.join(parts)} differ in dtype; give --dtype")
        joined = TensorToSave.joined(parts, dtype)
        leading = (1,) if places[first].leading_axis else ()
        saved[target] = replace(joined, shape=leading + joined.shape)
    return saved
