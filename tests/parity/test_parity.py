"""Our files and numbers against PyTorch's own: what we save, transformers loads and computes the same.

Needs the extra `parity`; run by `make test-parity`.

Shapes: B rows, S positions, I images, T tokens of an image.
"""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install '.[parity]'")

from click.testing import CliRunner  # noqa: E402
from paths import GOLDEN, needs_shared  # noqa: E402
from trainer_shards import CONFIG, write_tokenizer  # noqa: E402

from janus.checkpoint.folder import ModelFolder, open_model  # noqa: E402
from janus.checkpoint.names import UNUSED  # noqa: E402
from janus.checkpoint.torchfile import open_torch  # noqa: E402
from janus.cli import main  # noqa: E402
from janus.model.loss import TaskLoss  # noqa: E402
from janus.tokens import JanusTokenizer  # noqa: E402

ROWS, LENGTH, BEFORE = 2, 40, 9
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["random", "hf-format", "deepseek-format"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Our network, and the folder it was saved to: random weights, or the reference's from either layout."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = write_tokenizer(folder / "tokenizer")
    if request.param == "random":
        source = ModelFolder("random", CONFIG)
    elif GOLDEN.is_dir():
        source = open_model(str(GOLDEN / "tiny" / request.param))
    else:
        pytest.skip(f"{GOLDEN} is not there")
    model = source.build()
    source.save(model, folder / "saved", tokenizer)
    return source, model, folder / "saved", tokenizer


def _inputs(source: ModelFolder, tokenizer: JanusTokenizer, images: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens, codes = source.config.num_image_tokens, source.config.vq.num_embeddings
    ids_BS = rng.integers(0, len(vars(tokenizer.special)), (ROWS, LENGTH)).astype(np.int32)
    ids_BS[ids_BS == tokenizer.special.image_placeholder] = tokenizer.special.eos
    index_BS = np.zeros((ROWS, LENGTH), np.int32)
    if images:
        ids_BS[:, BEFORE : BEFORE + tokens] = tokenizer.special.image_placeholder
        index_BS[:, BEFORE : BEFORE + tokens] = 1 + np.arange(ROWS * tokens).reshape(ROWS, tokens)
    side = source.config.vision.image_size
    return {
        "ids": ids_BS,
        "index": index_BS,
        "pixels": rng.integers(0, 256, (ROWS, side, side, 3)).astype(np.uint8),
        "codes": rng.integers(0, codes, (ROWS, tokens)).astype(np.int32),
    }


def _our_logits(model: object, task: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    from mindspore import Tensor

    flat_P = np.arange(ROWS * LENGTH, dtype=np.int32)  # every token a state, every slot of the grid a token
    grid_BS = flat_P.reshape(ROWS, LENGTH)
    arrays = [flat_P, inputs["ids"].reshape(-1), flat_P % LENGTH, grid_BS, flat_P, np.ones_like(grid_BS)]
    if task != "text":
        arrays += [inputs["index"].reshape(-1), inputs["pixels" if task == "vqa" else "codes"]]
    logits = TaskLoss(model, task).logits(*map(Tensor, arrays)).asnumpy()
    return logits.reshape(ROWS, LENGTH, -1)


def _their_logits(folder: Path, task: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    from transformers import JanusForConditionalGeneration

    network, report = JanusForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    network.eval()
    ids_BS = torch.from_numpy(inputs["ids"]).long()
    with torch.no_grad():
        if task == "text":
            return network(input_ids=ids_BS).logits.numpy()
        if task == "vqa":
            pixels = torch.from_numpy(inputs["pixels"]).permute(0, 3, 1, 2).float() / 127.5 - 1
            return network(input_ids=ids_BS, pixel_values=pixels).logits.numpy()
        embeds = network.get_input_embeddings()(ids_BS)
        drawn = network.prepare_embeddings_for_image_generation(torch.from_numpy(inputs["codes"]).long())
        embeds[torch.from_numpy(inputs["index"]) > 0] = drawn.reshape(-1, drawn.shape[-1])
        hidden = network.model.language_model(inputs_embeds=embeds).last_hidden_state
        return network.model.generation_head(hidden).numpy()


@pytest.mark.parametrize("task", ["text", "vqa", "t2i"])
def test_transformers_loads_what_we_save_and_computes_the_same(saved: tuple, task: str) -> None:
    source, model, folder, tokenizer = saved
    inputs = _inputs(source, tokenizer, images=task != "text")
    ours, theirs = _our_logits(model, task, inputs), _their_logits(folder, task, inputs)
    assert ours.shape == theirs.shape
    assert ours.std() > 1e-3  # not all alike, so that a difference would show
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def _torch_tensors() -> dict:
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(6, 4, generator=generator)
    return {
        "float": fused,
        "bfloat": torch.randn(3, 5, generator=generator).bfloat16(),
        "half": torch.randn(7, generator=generator).half(),
        "long": torch.arange(5),
        "view": fused[2:4],  # shares the storage
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
    }


def test_we_read_what_torch_writes(tmp_path: Path) -> None:
    tensors = _torch_tensors()
    torch.save(tensors, tmp_path / "w.bin")
    read = open_torch(tmp_path / "w.bin")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(read[name].float32(), tensor.detach().float().numpy())
    linear = torch.nn.Linear(3, 2)
    torch.save(linear.state_dict(), tmp_path / "state.bin")  # an OrderedDict with metadata
    np.testing.assert_array_equal(
        open_torch(tmp_path / "state.bin")["weight"].float32(), linear.weight.detach().numpy()
    )


def test_what_torch_writes_otherwise_is_refused(tmp_path: Path) -> None:
    from janus.common.errors import UserError

    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(2, 3).T}, path)
    with pytest.raises(UserError, match="strides"):
        open_torch(path)
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"from before 1\.6"):
        open_torch(path)
    torch.save(torch.nn.Linear(3, 2), path)
    with pytest.raises(UserError, match=r"its pickle asks for torch\.nn\.modules\.linear\.Linear"):
        open_torch(path)


class _Holder(torch.nn.Module):
    """A module that may have children of any name."""


def _network_of(tensors: dict[str, torch.Tensor]) -> type:
    """A transformers model that has exactly these parameters, as DeepSeek's has them: for from_pretrained."""
    from transformers import PretrainedConfig, PreTrainedModel

    class Network(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            for name, tensor in tensors.items():
                *path, last = name.split(".")
                module: torch.nn.Module = self
                for child in path:
                    if child not in dict(module.named_children()):
                        module.add_module(child, _Holder())
                    module = module.get_submodule(child)
                empty = torch.full(tensor.shape, torch.nan)  # of the dtype that config.json names
                if tensor.is_floating_point():
                    module.register_parameter(last, torch.nn.Parameter(empty))

        def _init_weights(self, module: torch.nn.Module) -> None:
            """What is missing stays NaN."""

    return Network


@needs_shared
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deepseeks_network_takes_the_layout_we_write(tmp_path: Path, dtype: str) -> None:
    """Names and values are those of the file that DeepSeek's own code made; only the unused are absent."""
    command = ["convert", str(GOLDEN / "tiny" / "hf-format"), str(tmp_path / "out"), "--layout", "deepseek"]
    assert CliRunner().invoke(main, [*command, "--dtype", dtype]).exit_code == 0
    published = torch.load(GOLDEN / "tiny" / "deepseek-format" / "pytorch_model.bin", weights_only=True)
    network, report = _network_of(published).from_pretrained(
        tmp_path / "out", output_loading_info=True, torch_dtype="auto"
    )
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert all(UNUSED.match(name) for name in report["missing_keys"])
    loaded = network.state_dict()
    for name, tensor in published.items():
        if not UNUSED.match(name):
            assert loaded[name].dtype == getattr(torch, dtype)
            assert torch.equal(loaded[name], tensor.to(getattr(torch, dtype))), name


@needs_shared
def test_we_read_the_references_bin_as_torch_does() -> None:
    path = GOLDEN / "tiny" / "deepseek-format" / "pytorch_model.bin"
    theirs, ours = torch.load(path, weights_only=True), open_torch(path)
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name].float32())
