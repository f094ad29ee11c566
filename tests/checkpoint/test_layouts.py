"""Names and shapes of the full-size networks in both layouts, against the published keymaps, line by line."""

import json
from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import pytest
from paths import SHARED, needs_shared

from janus.checkpoint.layouts import from_deepseek, from_transformers, to_deepseek, to_transformers
from janus.checkpoint.names import UNUSED, deepseek_name
from janus.checkpoint.tensors import StoredTensor
from janus.common.errors import UserError
from janus.model.config import PRESETS, JanusConfig
from janus.model.janus import parameter_shapes


def _deepseek_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    place = deepseek_name(name)
    if place.third is not None:
        return (3 * shape[0], *shape[1:])
    return (1, *shape) if place.leading_axis else shape


def _deepseek_tensors(config: JanusConfig, dtype: str, path: Path) -> dict[str, StoredTensor]:
    return {
        deepseek_name(name).name: StoredTensor(dtype, _deepseek_shape(name, shape), path, 0)
        for name, shape in parameter_shapes(config).items()
    }


@needs_shared
@pytest.mark.parametrize("size", ["1b", "7b"])
def test_every_key_and_shape_of_the_full_size_network_is_the_keymaps(size: str) -> None:
    path = SHARED / "reference" / f"keymap_janus_pro_{size}.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    published = {
        (old, literal_eval(old_shape), new, literal_eval(new_shape))
        for old, old_shape, new, new_shape in rows
        if new
    }
    ours = {
        (deepseek_name(name).name, _deepseek_shape(name, shape), name, shape)
        for name, shape in parameter_shapes(PRESETS[size]).items()
    }
    assert ours == published
    assert {old for old, _, new, _ in rows if not new} == {old for old, *_ in rows if UNUSED.match(old)}


def test_a_foreign_name_has_no_place() -> None:
    with pytest.raises(ValueError, match=r"model\.audio_model\.weight is not a parameter"):
        deepseek_name("model.audio_model.weight")


@needs_shared
@pytest.mark.parametrize("size", ["1b", "7b"])
def test_the_published_config_of_either_layout_gives_the_preset(size: str) -> None:
    path = SHARED / "reference" / f"hf_config_{size}.json"
    assert from_transformers(json.loads(path.read_text()), path) == PRESETS[size]
    path = SHARED / "tokenizers" / f"janus-pro-{size}" / "config.json"
    tensors = _deepseek_tensors(PRESETS[size], "BF16", path)
    assert from_deepseek(json.loads(path.read_text()), tensors, path, path) == PRESETS[size]


@pytest.mark.parametrize("size", ["tiny", "1b", "7b"])
def test_a_written_config_of_either_layout_holds_what_its_reader_needs(size: str) -> None:
    config, path = PRESETS[size], Path("c")
    ids = dict.fromkeys(("bos", "eos", "pad", "image_placeholder"), 0)
    assert from_transformers(json.loads(json.dumps(to_transformers(config, ids))), path) == config
    content, tensors = to_deepseek(config, path), _deepseek_tensors(config, "F32", Path("w"))
    assert from_deepseek(content, tensors, path, Path("w")) == config
    content["gen_head_config"]["params"]["image_token_size"] = 7
    with pytest.raises(UserError, match="gen_head_config says image_token_size 7, w has"):
        from_deepseek(content, tensors, path, Path("w"))


def test_what_deepseeks_config_cannot_say_is_refused() -> None:
    tiny = PRESETS["tiny"]
    config = replace(tiny, vision=replace(tiny.vision, layer_norm_eps=1e-5))
    with pytest.raises(UserError, match=r"vision_config\.layer_norm_eps is 1e-05"):
        to_deepseek(config, "config.json")
