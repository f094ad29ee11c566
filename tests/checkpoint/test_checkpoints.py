"""Checkpoints of both layouts: opened, converted there and back, refused where they do not fit together."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import invoke, python
from paths import GOLDEN, TOKENIZERS, needs_shared
from torch_files import save_torch
from trainer_shards import CONFIG, make_model

from janus.checkpoint.folder import open_model
from janus.checkpoint.tensors import StoredTensor, TensorToSave, open_safetensors, save_safetensors
from janus.checkpoint.torchfile import open_torch
from janus.cli import main
from janus.common.errors import UserError


def _convert(source: object, out: Path, layout: str, dtype: str = "as-is", code: int = 0) -> str:
    return invoke(main, "convert", source, out, "--layout", layout, "--dtype", dtype, code=code).output


def _refusal(folder: object) -> str:
    """The one line that a command prints about a folder it refuses."""
    (line,) = invoke(main, "info", folder, code=2).output.strip().splitlines()
    return line.removeprefix("Error: ")


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    return open_model(str(folder)).checkpoint.tensors


def _assert_same(one: dict[str, StoredTensor], other: dict[str, StoredTensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape)
        assert tensor.data.tobytes() == other[name].data.tobytes()


def _save(path: Path, tensors: dict[str, StoredTensor], **changed: TensorToSave) -> None:
    """The tensors as safetensors, some of them replaced."""
    save_safetensors(path, {name: TensorToSave.joined({name: t}) for name, t in tensors.items()} | changed)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint with a tokenizer, in both layouts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_model(folder / "transformers")
    _convert(folder / "transformers", folder / "deepseek", "deepseek")
    return {name: folder / name for name in ("transformers", "deepseek")}


@pytest.fixture
def transformers(originals: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(originals["transformers"], tmp_path / "model")


@pytest.fixture
def deepseek(originals: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(originals["deepseek"], tmp_path / "deepseek")


@needs_shared
def test_both_layouts_of_the_reference_are_one_network_and_convert_into_each_other(tmp_path: Path) -> None:
    hf, deepseek = (open_model(str(GOLDEN / "tiny" / name)) for name in ("hf-format", "deepseek-format"))
    assert hf.config == deepseek.config
    assert (hf.checkpoint.layout, deepseek.checkpoint.layout) == ("transformers", "deepseek")
    _assert_same(hf.checkpoint.tensors, deepseek.checkpoint.tensors)
    _convert(GOLDEN / "tiny" / "hf-format", tmp_path / "out", "deepseek")
    ours = open_safetensors(tmp_path / "out" / "model.safetensors")
    theirs = open_torch(GOLDEN / "tiny" / "deepseek-format" / "pytorch_model.bin")
    extra = theirs.keys() - ours.keys()
    assert all("attn_pool" in name or "codebook_used" in name for name in extra)
    _assert_same(ours, {name: tensor for name, tensor in theirs.items() if name not in extra})


@pytest.mark.parametrize(
    ("first", "other", "dtype", "expected"),
    [("transformers", "deepseek", "as-is", "F32"), ("deepseek", "transformers", "bfloat16", "BF16")],
)
def test_a_round_trip_loses_nothing(
    originals: dict[str, Path], tmp_path: Path, first: str, other: str, dtype: str, expected: str
) -> None:
    stored, there, back = (tmp_path / name for name in ("stored", "there", "back"))
    _convert(originals["transformers"], stored, first, dtype)
    _convert(stored, there, other)
    _convert(there, back, first)
    for folder in (there, back):
        assert open_model(str(folder)).config == CONFIG
        _assert_same(_tensors(stored), _tensors(folder))
    assert {tensor.dtype for tensor in _tensors(stored).values()} == {expected}
    written, original = (folder / "tokenizer.json" for folder in (back, originals["transformers"]))
    assert written.read_bytes() == original.read_bytes()
    assert not list(tmp_path.glob(".tmp-*"))


def test_bfloat16_is_the_nearest_ties_to_even(transformers: Path, tmp_path: Path) -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0e38, 2.0**-130, 0, -0.0], np.float32)
    tensors, name = _tensors(transformers), "model.language_model.norm.weight"
    values = np.resize(ties, tensors[name].shape)
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(transformers, source)
    _save(
        source / "model.safetensors", tensors, **{name: TensorToSave("F32", values.shape, lambda: [values])}
    )
    _convert(source, out, "transformers", "bfloat16")
    cast = _tensors(out)
    np.testing.assert_array_equal(cast[name].float32()[:3], [1, 1 + 2**-6, -1])
    for key, tensor in _tensors(source).items():
        exact, near = tensor.float32().astype(np.float64), cast[key].float32().astype(np.float64)
        assert np.all(np.abs(near - exact) <= np.maximum(np.abs(exact) * 2**-8, 2.0**-134))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    _convert(out, tmp_path / "wide", "transformers", "float32")
    for key, tensor in _tensors(tmp_path / "wide").items():
        np.testing.assert_array_equal(tensor.float32(), cast[key].float32())


def test_convert_leaves_nothing_half_done(transformers: Path, tmp_path: Path) -> None:
    assert "exists already" in _convert(transformers, tmp_path, "deepseek", code=2)
    assert "has no weights" in _convert("tiny", tmp_path / "out", "deepseek", code=2)
    _poison(transformers / "model.safetensors", np.nan)
    assert "holds NaN" in _convert(transformers, tmp_path / "out", "deepseek", "bfloat16", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _poison(path: Path, value: float) -> None:
    tensor = open_safetensors(path)["lm_head.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset + tensor.nbytes - 4)
        file.write(np.float32(value).tobytes())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_a_checkpoint_stops_the_load(transformers: Path, value: float) -> None:
    _poison(transformers / "model.safetensors", value)
    with pytest.raises(UserError, match=r"model\.safetensors: lm_head\.weight holds NaN or infinity"):
        open_model(str(transformers)).build()


def _in_parts(folder: Path, save: Callable, stem: str, suffix: str) -> None:
    """The weights of a folder as two files with an index."""
    tensors = open_safetensors(folder / "model.safetensors")
    places = {name: f"{stem}-0000{1 + i % 2}-of-00002{suffix}" for i, name in enumerate(sorted(tensors))}
    for part in set(places.values()):
        save(folder / part, {name: tensors[name] for name in places if places[name] == part})
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / f"{stem}{suffix}.index.json").write_text(index)
    (folder / "model.safetensors").unlink()


def test_parts_with_an_index_are_one_checkpoint(
    originals: dict[str, Path], transformers: Path, deepseek: Path
) -> None:
    _in_parts(transformers, _save, "model", ".safetensors")
    _in_parts(deepseek, save_torch, "pytorch_model", ".bin")
    for folder in (transformers, deepseek):
        _assert_same(_tensors(folder), _tensors(originals["transformers"]))
        for pattern, message in (("*-00002-of-*", ": no such file, "), ("*.index.json", ": no such file; ")):
            (path,) = folder.glob(pattern)
            path.unlink()
            assert _refusal(folder).startswith(f"{path}{message}")


def test_truncated_weights_are_refused(transformers: Path) -> None:
    weights = transformers / "model.safetensors"
    whole = weights.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 8, 3):
        weights.write_bytes(whole[:length])
        assert _refusal(transformers).startswith(f"{weights}: ")
    assert "fetch or copy it again" in _refusal(transformers)


def test_keys_that_do_not_fit_are_listed(originals: dict[str, Path], transformers: Path) -> None:
    path = transformers / "model.safetensors"
    start, end = (
        f"{path}: not the weights of its config.json: ",
        "use the config.json and weights of one model",
    )
    kept = _tensors(originals["transformers"])
    _save(path, kept, **{"lm_head.weight": TensorToSave("F32", (1,), lambda: [np.zeros(1, np.float32)])})
    assert _refusal(transformers) == f"{start}lm_head.weight is (1,), expected (128, 32); {end}"
    foreign = [name for name in kept if ".decoder." in name]
    _save(path, {("other." if name in foreign else "") + name: tensor for name, tensor in kept.items()})
    shown, _, more = _refusal(transformers).removeprefix(start).partition(" … ")
    assert more == f"and {2 * len(foreign) - 10} more; {end}"
    assert len(set(shown.split("; ")) & {f"missing {name}" for name in foreign}) == 10


@pytest.mark.parametrize(
    ("part", "field"), [("language_config", "num_hidden_layers"), ("vision_config", "image_size")]
)
def test_a_deepseek_config_that_contradicts_its_weights_is_refused(
    deepseek: Path, part: str, field: str
) -> None:
    config = deepseek / "config.json"
    section = json.loads(config.read_text())[part]
    (section if part == "language_config" else section["params"])[field] = 7
    _edit(config, **{part: section})
    assert f"{config}: {part} says {field} 7, {deepseek / 'model.safetensors'} has" in _refusal(deepseek)


def test_deepseek_keys_are_named_as_the_file_has_them(deepseek: Path, originals: dict[str, Path]) -> None:
    tensors = open_safetensors(originals["deepseek"] / "model.safetensors")
    for name, stray in [
        ("gen_head.vision_head.bias", "gen_head.vision_head.bias2"),
        ("vision_model.vision_tower.blocks.0.attn.qkv.bias", "vision_model.vision_tower.attn_pool.q.bias"),
    ]:
        tensors[stray] = tensors.pop(name)
    _save(deepseek / "model.safetensors", tensors)
    assert (
        "json: missing vision_model.vision_tower.blocks.0.attn.qkv.bias; missing gen_head.vision_head.bias; "
        "unexpected gen_head.vision_head.bias2; use"  # attn_pool is known and left out
    ) in _refusal(deepseek)


def test_a_tokenizer_that_does_not_fit_is_refused(transformers: Path) -> None:
    path = transformers / "tokenizer.json"
    original = json.loads(path.read_text())
    original["model"]["vocab"]["far"] = CONFIG.text.vocab_size
    path.write_text(json.dumps(original))
    assert _refusal(transformers).startswith(f"{path}: has ids up to 128, the embedding table has 128 rows")
    original["added_tokens"] = [token for token in original["added_tokens"] if token["content"] != "<|User|>"]
    path.write_text(json.dumps(original))
    assert _refusal(transformers) == f"{path}: special tokens absent: <|User|>; not a Janus-Pro tokenizer"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config", None, "no such file; a checkpoint needs it"),
        ("config", "{", "not JSON"),
        ("config", "[]", "holds no JSON object"),
        ("config", '{"model_type": "llama"}', "model_type is 'llama'; expected janus or multi_modality"),
        ("config", '{"model_type": "janus"}', "field 'text_config' is missing"),
        ("preprocessor_config", '{"image_size": 384}', "image size 384, the weights are for 64; "),
    ],
)
def test_a_config_that_is_not_this_models_is_refused(
    transformers: Path, name: str, content: str | None, message: str
) -> None:
    path = transformers / f"{name}.json"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    assert _refusal(transformers).startswith(f"{path}: {message}")


@needs_shared
def test_a_folder_without_weights_is_a_random_network_with_its_tokenizer() -> None:
    folder = open_model(str(TOKENIZERS / "janus-pro-1b"))
    assert folder.checkpoint is None
    assert folder.config.text.vocab_size >= 100_590


def test_a_hub_id_is_taken_from_the_cache_or_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(originals["deepseek"], cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    script = "from janus.cli import main\nmain(['info', 'someone/model', '--json'], standalone_mode=False)\n"
    script += "main(['info', 'someone/else'])"
    done = python("-c", script, HF_HOME=tmp_path, HF_HUB_OFFLINE=1, code=2)
    assert json.loads(done.stdout)["layout"] == "deepseek"
    (line,) = done.stderr.strip().splitlines()
    assert "hf download someone/else --local-dir DIR" in line
    assert "neither a folder nor a preset" in _refusal("no-such-thing")


@pytest.mark.slow
def test_a_load_holds_one_tensor_beside_the_network(tmp_path: Path) -> None:
    """A sparse bfloat16 checkpoint of 0.9 GB in float32, in a process of its own."""
    wide = replace(CONFIG.text, hidden_size=1024, num_layers=2, intermediate_size=2048, vocab_size=65_536)
    script = f"""
import resource
from math import prod
from pathlib import Path
from janus.model.config import *
from janus.checkpoint.folder import open_model, write_json
from janus.checkpoint.layouts import to_transformers
from janus.model.janus import parameter_shapes
from janus.checkpoint.tensors import TensorToSave, save_safetensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path({str(tmp_path)!r})
config = {replace(CONFIG, text=wide)!r}
shapes = parameter_shapes(config)
ids = dict.fromkeys(("bos", "eos", "pad", "image_placeholder"), 0)
write_json(folder / "config.json", to_transformers(config, ids))
path = folder / "model.safetensors"
save_safetensors(path, {{name: TensorToSave("BF16", shape, tuple) for name, shape in shapes.items()}})
with path.open("r+b") as file:
    file.truncate(path.stat().st_size + 2 * sum(map(prod, shapes.values())))
before = peak()
model = open_model(str(folder)).build()
print(4 * sum(prod(p.shape) for p in model.get_parameters()), peak() - before)
"""
    size, grown = map(int, python("-c", script).stdout.split())
    assert size > 0.5e9
    assert grown < 1.3 * size
