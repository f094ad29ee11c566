"""What we generate against transformers' own `generate`, token for token, on the reference's weights.

Needs the extra `parity`; run by `make test-parity`.

transformers makes its unconditional rows itself (all but BOS and begin_of_image become pad), attends to
all of them, and draws with `torch.multinomial`; for the sampled pictures that one call draws from our seed.

Shapes: V classes, H×W pixels.
"""

from itertools import cycle, islice

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install '.[parity]'")

from paths import GOLDEN, needs_shared  # noqa: E402

from janus.checkpoint.folder import open_model  # noqa: E402
from janus.generate.generate import Generator, Prompt, Sampling, uniforms  # noqa: E402
from janus.inspect.verify import open_cases  # noqa: E402
from janus.tokens import SpecialTokens  # noqa: E402

pytestmark = needs_shared

FOLDER = GOLDEN / "tiny" / "hf-format"
IMAGE = {"image_placeholder": 1021, "begin_of_image": 1022, "end_of_image": 1023}
SPECIAL = SpecialTokens(bos=1, eos=2, user=3, assistant=4, pad=1020, **IMAGE)
NEW = 40


@pytest.fixture(scope="module")
def theirs():
    from transformers import JanusForConditionalGeneration

    network = JanusForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    network.generation_config.pad_token_id = SPECIAL.pad
    network.generation_config.generation_kwargs = {"boi_token_id": SPECIAL.begin_of_image}
    return network


@pytest.fixture(scope="module")
def ours():
    return open_model(str(FOLDER)).build()


def _words() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 1000, length).astype(np.int32) for length in (7, 20, 35)]


def _their_answer(network: object, prompt: Prompt) -> np.ndarray:
    ids = torch.from_numpy(prompt.input_ids)[None].long()
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False}
    if len(prompt.images):
        pixels = torch.from_numpy(np.stack(prompt.images)).permute(0, 3, 1, 2)
        options["pixel_values"] = pixels.float() / 127.5 - 1
    return network.generate(ids, **options)[0, ids.shape[1] :].numpy()


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_greedy_answers_are_equal_token_for_token(theirs, ours, pictures: int) -> None:
    placeholders = [SPECIAL.image_placeholder] * ours.config.num_image_tokens
    shown = [3, SPECIAL.begin_of_image, *placeholders, SPECIAL.end_of_image] * pictures
    upcoming = cycle(open_cases(GOLDEN / "tiny").arrays["image_uint8"])
    prompts = [
        Prompt(np.array([SPECIAL.bos, *shown, *words], np.int32), [*islice(upcoming, pictures)])
        for words in _words()
    ]
    answers = list(Generator(ours, SPECIAL, batch=2).answers(prompts, NEW))
    for prompt, answer in zip(prompts, answers, strict=True):
        np.testing.assert_array_equal(answer, _their_answer(theirs, prompt))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_pictures_are_equal_token_for_token(
    theirs, ours, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [4, 9, SPECIAL.begin_of_image]
    prompts = [Prompt(np.array([SPECIAL.bos, 3, *words, *ends], np.int32)) for words in _words()]
    sampling = Sampling(temperature, guidance=5.0, seed=11)
    drawn = list(Generator(ours, SPECIAL, batch=2).pictures(prompts, range(len(prompts)), sampling))
    assert len({tuple(codes) for codes in drawn}) == len(prompts)
    for number, (prompt, codes) in enumerate(zip(prompts, drawn, strict=True)):
        np.testing.assert_array_equal(codes, _their_picture(theirs, prompt, number, sampling, monkeypatch))


def _their_picture(
    network: object, prompt: Prompt, number: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    steps = iter(range(10_000))

    def draw(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        rising_V = probabilities[0].double().cumsum(0)
        uniform = uniforms(sampling.seed, [number], next(steps))[0]
        return torch.searchsorted(rising_V, uniform * rising_V[-1], right=True).reshape(1, 1)

    monkeypatch.setattr(torch, "multinomial", draw)
    ids = torch.from_numpy(prompt.input_ids)[None].long()
    options = {"do_sample": False, "top_k": 0, "top_p": 1.0, "guidance_scale": sampling.guidance}
    if sampling.temperature:
        options |= {"do_sample": True, "temperature": sampling.temperature}
    made = network.generate(ids, attention_mask=torch.ones_like(ids), generation_mode="image", **options)
    assert next(steps) == (network.config.vision_config.num_image_tokens if sampling.temperature else 0)
    return made[0].numpy()
