"""The VQ tokenizer at full size against transformers' own in float64, DeepSeek's L2 norm added.

Needs the extra `parity`; run by `make test-parity`. Random weights: their latents spread over all codes.

Shapes: H×W pixels, C channels, P latent positions, E code width, V codes.
"""

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install '.[parity]'")

from paths import GOLDEN, needs_shared  # noqa: E402
from rounding import rounding_bound  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from janus import device  # noqa: E402
from janus.model.config import PRESETS  # noqa: E402
from janus.model.vq import VQ  # noqa: E402
from janus.model.weights import Weights, random_source  # noqa: E402

SIDE, CONFIG = 384, PRESETS["1b"].vq
PICTURES = [*range(6), "white", "black"]
# One behind the other: conv_in, two convolutions in each of 12 residual blocks, 4 that halve, 3 products in
# each of 3 attentions, conv_out, quant_conv. The widest sums nine taps of 512 channels.
OPERATIONS, TERMS = 1 + 24 + 4 + 9 + 2, 9 * 512


@pytest.fixture(scope="module")
def encoders() -> tuple[Callable, torch.nn.Module]:
    """Our encoder, compiled, and transformers' network in float64 with the same weights."""
    from mindspore import Tensor
    from transformers import JanusVQVAE, JanusVQVAEConfig

    device.use()
    ours = VQ(Weights(random_source(0)), CONFIG, SIDE, images=1)
    config = JanusVQVAEConfig(
        base_channels=CONFIG.base_channels,
        channel_multiplier=list(CONFIG.channel_multiplier),
        num_res_blocks=CONFIG.num_res_blocks,
        latent_channels=CONFIG.latent_channels,
        embed_dim=CONFIG.embed_dim,
        num_embeddings=CONFIG.num_embeddings,
        num_patches=SIDE // 16,
        double_latent=False,
    )
    theirs = JanusVQVAE(config)
    weights = {p.name: torch.from_numpy(p.asnumpy()) for p in ours.get_parameters()}
    theirs.load_state_dict(weights)
    encode = device.compiled(ours.encode)

    def run(pixels_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes_IT, latent_PE = encode(Tensor(pixels_HWC[None]))
        return codes_IT.asnumpy()[0], latent_PE.asnumpy()

    return run, theirs.double().eval()


def _picture(name: int | str) -> np.ndarray:
    if isinstance(name, str):
        return np.full((SIDE, SIDE, 3), 255 if name == "white" else 0, np.uint8)
    return load_file(GOLDEN / "preprocessing" / "images.safetensors")[f"{name}.generation"]


@needs_shared
@pytest.mark.parametrize("name", PICTURES)
def test_latents_and_codes_at_full_size(encoders: tuple, name: int | str) -> None:
    """A code may differ only where its similarity is within rounding of the best."""
    run, theirs = encoders
    pixels_HWC = _picture(name)
    with torch.no_grad():
        pixels = torch.from_numpy(pixels_HWC).double().permute(2, 0, 1)[None] / 127.5 - 1
        latent = theirs.quant_conv(theirs.encoder(pixels))[0].permute(1, 2, 0).reshape(-1, CONFIG.embed_dim)
        similarity = (
            torch.nn.functional.normalize(latent, dim=-1)
            @ torch.nn.functional.normalize(theirs.quantize.embedding.weight, dim=-1).T
        )
    exact_PE, similarity_PV = latent.numpy(), similarity.numpy()
    codes_P, latent_PE = run(pixels_HWC)
    bound = rounding_bound(exact_PE, TERMS, OPERATIONS)
    np.testing.assert_allclose(latent_PE, exact_PE, rtol=0, atol=bound)
    # Both similarities turn with the latent: by its error over its length.
    turn_P = 2 * bound * CONFIG.embed_dim**0.5 / np.linalg.norm(exact_PE, axis=-1)
    worse_P = similarity_PV.max(-1) - similarity_PV[np.arange(len(codes_P)), codes_P]
    assert (worse_P <= turn_P).all()
    assert (worse_P == 0).mean() > 0.99, "nearly all codes are float64's"
