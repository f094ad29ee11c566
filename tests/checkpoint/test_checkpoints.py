"""Checkpoints of both layouts: opened, converted there and back, refused where they do not fit together."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from paths import GOLDEN, ROOT, TOKENIZERS, needs_shared
from torch_files import save_torch
from trainer_shards import CONFIG, make_model

from janus.checkpoint.folder import open_model
from janus.checkpoint.tensors import StoredTensor, TensorToSave, open_safetensors, save_safetensors
from janus.checkpoint.torchfile import open_torch
from janus.cli import main
from janus.common.errors import UserError


def _run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def _refusal(folder: object) -> str:
    """The one line that a command prints about a folder it refuses."""
    lines = _run("info", folder, code=2).strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    checkpoint = open_model(str(folder)).checkpoint
    assert checkpoint is not None
    return checkpoint.tensors


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
    _run("convert", folder / "transformers", folder / "deepseek", "--layout", "deepseek")
    return {name: folder / name for name in ("transformers", "deepseek")}


@pytest.fixture
def transformers(originals: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(originals["transformers"], tmp_path / "model")


@pytest.fixture
def deepseek(originals: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(originals["deepseek"], tmp_path / "model")


@needs_shared
def test_both_layouts_of_the_reference_are_one_network() -> None:
    hf, deepseek = (open_model(str(GOLDEN / "tiny" / name)) for name in ("hf-format", "deepseek-format"))
    assert hf.config == deepseek.config
    assert hf.checkpoint is not None
    assert deepseek.checkpoint is not None
    assert (hf.checkpoint.layout, deepseek.checkpoint.layout) == ("transformers", "deepseek")
    _assert_same(hf.checkpoint.tensors, deepseek.checkpoint.tensors)


@needs_shared
def test_the_reference_converted_is_the_reference_in_the_other_layout(tmp_path: Path) -> None:
    _run("convert", GOLDEN / "tiny" / "hf-format", tmp_path / "out", "--layout", "deepseek")
    ours = open_safetensors(tmp_path / "out" / "model.safetensors")
    theirs = open_torch(GOLDEN / "tiny" / "deepseek-format" / "pytorch_model.bin")
    extra = theirs.keys() - ours.keys()
    assert all("attn_pool" in name or "codebook_used" in name for name in extra)
    _assert_same(ours, {name: tensor for name, tensor in theirs.items() if name not in extra})


@pytest.mark.parametrize(("first", "dtype"), [("transformers", "as-is"), ("deepseek", "bfloat16")])
def test_a_round_trip_loses_nothing(
    originals: dict[str, Path], tmp_path: Path, first: str, dtype: str
) -> None:
    stored = tmp_path / "stored"
    _run("convert", originals["transformers"], stored, "--layout", first, "--dtype", dtype)
    other = {"deepseek": "transformers", "transformers": "deepseek"}[first]
    _run("convert", stored, tmp_path / "there", "--layout", other)
    _run("convert", tmp_path / "there", tmp_path / "back", "--layout", first)
    for folder in ("there", "back"):
        assert open_model(str(tmp_path / folder)).config == CONFIG
        _assert_same(_tensors(stored), _tensors(tmp_path / folder))
    expected = {"as-is": "F32", "bfloat16": "BF16"}[dtype]
    assert {tensor.dtype for tensor in _tensors(stored).values()} == {expected}
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (
        originals["transformers"] / "tokenizer.json"
    ).read_bytes()
    assert not list(tmp_path.glob(".tmp-*"))


def test_bfloat16_is_the_nearest_ties_to_even(originals: dict[str, Path], tmp_path: Path) -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0e38, 2.0**-130, 0, -0.0], np.float32)
    tensors = _tensors(originals["transformers"])
    name = "model.language_model.norm.weight"
    values = np.resize(ties, tensors[name].shape)
    source = shutil.copytree(originals["transformers"], tmp_path / "source")
    changed = {name: TensorToSave("F32", values.shape, lambda: [values])}
    _save(source / "model.safetensors", tensors, **changed)
    _run("convert", source, tmp_path / "out", "--layout", "transformers", "--dtype", "bfloat16")
    cast = _tensors(tmp_path / "out")
    np.testing.assert_array_equal(cast[name].float32()[:3], [1, 1 + 2**-6, -1])
    for key, tensor in _tensors(source).items():
        exact, near = tensor.float32().astype(np.float64), cast[key].float32().astype(np.float64)
        assert np.all(np.abs(near - exact) <= np.maximum(np.abs(exact) * 2**-8, 2.0**-134))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    _run("convert", tmp_path / "out", tmp_path / "wide", "--layout", "transformers", "--dtype", "float32")
    for key, tensor in _tensors(tmp_path / "wide").items():
        np.testing.assert_array_equal(tensor.float32(), cast[key].float32())


def test_convert_leaves_nothing_half_done(transformers: Path, tmp_path: Path) -> None:
    assert "exists already" in _run("convert", transformers, tmp_path, "--layout", "deepseek", code=2)
    assert "has no weights" in _run("convert", "tiny", tmp_path / "out", "--layout", "deepseek", code=2)
    _poison(transformers / "model.safetensors", np.nan)
    arguments = ("convert", transformers, tmp_path / "out", "--layout", "deepseek", "--dtype", "bfloat16")
    assert "holds NaN" in _run(*arguments, code=2)
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
    whole = folder / "model.safetensors"
    tensors = open_safetensors(whole)
    names = sorted(tensors)
    parts = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    for i, part in enumerate(parts):
        save(folder / part, {name: tensors[name] for name in names[i::2]})
    places = {name: parts[i % 2] for i, name in enumerate(names)}
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / f"{stem}{suffix}.index.json").write_text(index)
    whole.unlink()


def test_parts_with_an_index_are_one_checkpoint(
    originals: dict[str, Path], transformers: Path, tmp_path: Path
) -> None:
    deepseek = shutil.copytree(originals["deepseek"], tmp_path / "deepseek")
    _in_parts(transformers, _save, "model", ".safetensors")
    _in_parts(deepseek, save_torch, "pytorch_model", ".bin")
    for folder in (transformers, deepseek):
        _assert_same(_tensors(folder), _tensors(originals["transformers"]))
        (part,) = folder.glob("*-00002-of-*")
        part.unlink()
        assert _refusal(folder).startswith(f"{part}: no such file, ")
        (index,) = folder.glob("*.index.json")
        index.unlink()
        assert _refusal(folder).startswith(f"{index}: no such file; ")


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
    path, tensors = (
        deepseek / "model.safetensors",
        open_safetensors(originals["deepseek"] / "model.safetensors"),
    )
    for name, stray in [
        ("gen_head.vision_head.bias", "gen_head.vision_head.bias2"),
        ("vision_model.vision_tower.blocks.0.attn.qkv.bias", "vision_model.vision_tower.attn_pool.q.bias"),
    ]:
        tensors[stray] = tensors.pop(name)
    _save(path, tensors)
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


def test_another_image_size_is_refused(transformers: Path) -> None:
    path = transformers / "preprocessor_config.json"
    path.write_text(json.dumps({"image_size": 384}))
    assert _refusal(transformers).startswith(f"{path}: image size 384, the weights are for 64; ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; a checkpoint needs it"),
        ("{", "not JSON"),
        ("[]", "holds no JSON object"),
        ('{"model_type": "llama"}', "model_type is 'llama'; expected janus or multi_modality"),
        ('{"model_type": "janus"}', "field 'text_config' is missing"),
    ],
)
def test_a_config_that_is_not_janus_pros_is_refused(
    transformers: Path, content: str | None, message: str
) -> None:
    path = transformers / "config.json"
    path.unlink()
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
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(originals["deepseek"], cached / "snapshots" / ("0" * 40))
    script = "from janus.cli import main\nmain(['info', 'someone/model', '--json'], standalone_mode=False)\n"
    script += "main(['info', 'someone/else'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["layout"] == "deepseek", done.stderr
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "hf download someone/else --local-dir DIR" in line
    assert "neither a folder nor a preset" in _refusal("no-such-thing")


@pytest.mark.slow
def test_a_load_holds_one_tensor_beside_the_network(tmp_path: Path) -> None:
    """A sparse bfloat16 checkpoint of 0.9 GB in float32, in a process of its own."""
    wide = {
        "hidden_size": 1024,
        "num_layers": 2,
        "num_heads": 8,
        "intermediate_size": 2048,
        "vocab_size": 65_536,
    }
    script = f"""
import resource
from dataclasses import replace
from math import prod
from pathlib import Path
from janus.model.config import PRESETS, TextConfig
from janus.checkpoint.folder import open_model, write_json
from janus.checkpoint.layouts import to_transformers
from janus.model.janus import parameter_shapes
from janus.checkpoint.tensors import TensorToSave, save_safetensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path({str(tmp_path)!r})
config = replace(PRESETS["tiny"], text=TextConfig(**{wide!r}))
shapes = parameter_shapes(config)
ids = dict.fromkeys(("bos", "eos", "pad", "image_placeholder"), 0)
write_json(folder / "config.json", to_transformers(config, ids))
path = folder / "model.safetensors"
save_safetensors(path, {{name: TensorToSave("BF16", shape, tuple) for name, shape in shapes.items()}})
with path.open("r+b") as file:
    file.truncate(path.stat().st_size + 2 * sum(map(prod, shapes.values())))
before = peak()
model = open_model(str(folder)).build()
size = 4 * sum(prod(p.shape) for p in model.get_parameters())
print(size, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    size, grown = map(int, done.stdout.split())
    assert size > 0.5e9
    assert grown < 1.3 * size
