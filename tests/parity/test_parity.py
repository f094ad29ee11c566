"""Our files and numbers against PyTorch's own: what we save, transformers loads and computes the same.

Needs the extra `parity`; run by `make test-parity`.

Shapes: B rows, S positions; H×W pixels, P latent positions, E code width, V codes.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install '.[parity]'")

from commands import invoke  # noqa: E402
from paths import GOLDEN, needs_shared  # noqa: E402
from rounding import logits_bound, rounding_bound  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from safetensors.torch import load_file as load_torch  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402
from trainer_shards import CONFIG, write_tokenizer  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

from janus import device  # noqa: E402
from janus.checkpoint.folder import ModelFolder, open_model  # noqa: E402
from janus.checkpoint.names import UNUSED  # noqa: E402
from janus.checkpoint.torchfile import open_torch  # noqa: E402
from janus.cli import main  # noqa: E402
from janus.common.errors import UserError  # noqa: E402
from janus.model.config import PRESETS  # noqa: E402
from janus.model.loss import TaskLoss  # noqa: E402
from janus.model.vq import VQ  # noqa: E402
from janus.model.weights import Weights, random_source  # noqa: E402
from janus.prompts import SIGNATURES  # noqa: E402
from janus.tokens import JanusTokenizer  # noqa: E402

ROWS, LENGTH, BEFORE = 2, 40, 9
PUBLISHED = GOLDEN / "tiny" / "deepseek-format" / "pytorch_model.bin"


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
    source.save({p.name: p for p in model.get_parameters()}, folder / "saved", tokenizer)
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
    logits = TaskLoss(model, SIGNATURES[task]).logits(*map(Tensor, arrays)).asnumpy()
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
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=logits_bound(source.config, task, theirs))


def test_we_read_what_torch_writes(tmp_path: Path) -> None:
    fused = torch.arange(24).reshape(6, 4) / 7
    tensors = {
        "float": fused,
        "bfloat": fused.bfloat16(),
        "half": fused.half(),
        "long": torch.arange(5),
        "view": fused[2:4],  # shares the storage
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
    }
    torch.save(tensors, tmp_path / "w.bin")
    read = open_torch(tmp_path / "w.bin")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(read[name].float32(), tensor.detach().float().numpy())
    linear = torch.nn.Linear(3, 2)
    torch.save(linear.state_dict(), tmp_path / "state.bin")  # an OrderedDict with metadata
    weight = open_torch(tmp_path / "state.bin")["weight"].float32()
    np.testing.assert_array_equal(weight, linear.weight.detach().numpy())


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"w": torch.ones(2, 3).T}, {}, "strides"),
        ({"w": torch.ones(2)}, {"_use_new_zipfile_serialization": False}, r"from before 1\.6"),
        (torch.nn.Linear(3, 2), {}, r"its pickle asks for torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_what_torch_writes_otherwise_is_refused(
    tmp_path: Path, content: object, options: dict, message: str
) -> None:
    torch.save(content, tmp_path / "w.bin", **options)
    with pytest.raises(UserError, match=message):
        open_torch(tmp_path / "w.bin")


@needs_shared
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_layout_we_write_is_deepseeks(tmp_path: Path, dtype: str) -> None:
    """Names and values are those of the file that DeepSeek's own code made; only the unused are absent."""
    folders = (GOLDEN / "tiny" / "hf-format", tmp_path / "out")
    invoke(main, "convert", *folders, "--layout", "deepseek", "--dtype", dtype)
    written, published = load_torch(tmp_path / "out" / "model.safetensors"), torch.load(PUBLISHED)
    assert {name for name in published if not UNUSED.match(name)} == written.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, published[name].to(getattr(torch, dtype))), name
        assert tensor.dtype == getattr(torch, dtype) or not tensor.is_floating_point()
    assert str(PretrainedConfig.from_pretrained(tmp_path / "out").dtype) == f"torch.{dtype}"


@needs_shared
def test_we_read_the_references_bin_as_torch_does() -> None:
    theirs, ours = torch.load(PUBLISHED, weights_only=True), open_torch(PUBLISHED)
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name].float32())


SIDE, VQ_CONFIG = 384, PRESETS["1b"].vq
# One behind the other: conv_in, two convolutions in each of 12 residual blocks, 4 that halve, 3 products in
# each of 3 attentions, conv_out, quant_conv. The widest sums nine taps of 512 channels.
OPERATIONS, TERMS = 1 + 24 + 4 + 9 + 2, 9 * 512


@pytest.fixture(scope="module")
def encoders() -> tuple[Callable, torch.nn.Module]:
    """Our encoder, compiled, and transformers' network in float64 with the same weights."""
    from mindspore import Tensor
    from transformers import JanusVQVAE, JanusVQVAEConfig

    device.use()
    ours = VQ(Weights(random_source(0)), VQ_CONFIG, SIDE, images=1)
    theirs = JanusVQVAE(JanusVQVAEConfig(**asdict(VQ_CONFIG), num_patches=SIDE // 16, double_latent=False))
    theirs.load_state_dict({p.name: torch.from_numpy(p.asnumpy()) for p in ours.get_parameters()})
    encode = device.compiled(ours.encode)

    def run(pixels_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes_IT, latent_PE = encode(Tensor(pixels_HWC[None]))
        return codes_IT.asnumpy()[0], latent_PE.asnumpy()

    return run, theirs.double().eval()


@needs_shared
@pytest.mark.parametrize("name", [*range(6), "white", "black"])
def test_latents_and_codes_at_full_size(encoders: tuple, name: int | str) -> None:
    """A code may differ only where its similarity is within rounding of the best."""
    run, theirs = encoders
    pixels_HWC = np.full((SIDE, SIDE, 3), 255 * (name == "white"), np.uint8)
    if name in range(6):
        pixels_HWC = load_file(GOLDEN / "preprocessing" / "images.safetensors")[f"{name}.generation"]
    with torch.no_grad():
        pixels = torch.from_numpy(pixels_HWC).double().permute(2, 0, 1)[None] / 127.5 - 1
        latent = theirs.quant_conv(theirs.encoder(pixels))[0].flatten(1).T
        unit, units = (normalize(x, dim=-1) for x in (latent, theirs.quantize.embedding.weight))
    exact_PE, similarity_PV = latent.numpy(), (unit @ units.T).numpy()
    codes_P, latent_PE = run(pixels_HWC)
    bound = rounding_bound(exact_PE, TERMS, OPERATIONS)
    np.testing.assert_allclose(latent_PE, exact_PE, rtol=0, atol=bound)
    # Both similarities turn with the latent: by its error over its length.
    turn_P = 2 * bound * VQ_CONFIG.embed_dim**0.5 / np.linalg.norm(exact_PE, axis=-1)
    worse_P = similarity_PV.max(-1) - similarity_PV[np.arange(len(codes_P)), codes_P]
    assert (worse_P <= turn_P).all()
    assert (worse_P == 0).mean() > 0.99, "nearly all codes are float64's"
