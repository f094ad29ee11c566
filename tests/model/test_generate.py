"""`janus generate`: the cached network against the whole one, draws, pictures, and what a user sees.

Shapes: S positions, V classes, T tokens of an image.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import invoke
from PIL import Image
from trainer_shards import SIDE, TOKENS, make_loud_model, word_tokenizer

from janus.checkpoint.folder import open_model
from janus.cli import main
from janus.generate.generate import Generator, Prompt, Sampling, choose, guide, uniforms
from janus.model.loss import TaskLoss
from janus.prompts import SIGNATURES, Message, before_answer, encode_samples, image_index, unconditional

LENGTHS = (3, 1, 6)  # words of the prompts: they share batches
NEW, LONG = 10, 30  # tokens of an answer: both need the same cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_loud_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path):
    return open_model(str(folder)).build()


def _prompts(task: str) -> list[Prompt]:
    """Of each length one; those that show pictures show one or two."""
    rng, kinds, special = np.random.default_rng(0), SIGNATURES[task], word_tokenizer().special
    prompts = []
    for number, words in enumerate(LENGTHS):
        images = list(rng.integers(0, 256, ((1 + number % 2) * kinds.understood, SIDE, SIDE, 3), np.uint8))
        text = " ".join(f"w{i + words}" for i in range(words))
        asked = Message("user", text, ["shown"] * len(images))
        messages = [asked, Message("assistant", "", ["drawn"] * kinds.drawn)]
        (sample,) = encode_samples(word_tokenizer(), [messages], TOKENS)
        prompts.append(Prompt(before_answer(sample.input_ids, sample.supervised, special), images))
    return prompts


def _whole_logits(
    model: object, task: str, prompt: Prompt, answer: np.ndarray, codes_T: np.ndarray | None = None
) -> np.ndarray:
    """Logits (states, V) of the prompt's last state and all after it but the last, as training has them.

    answer: the ids behind the prompt. codes_T: of the picture that they stand for.
    """
    from mindspore import Tensor

    ids = np.concatenate([prompt.input_ids, answer]).astype(np.int32)
    flat_S, first = np.arange(len(ids), dtype=np.int32), len(prompt.input_ids)
    arrays = [flat_S[first - 1 : -1], ids, flat_S, flat_S[None], flat_S, np.ones_like(flat_S)[None]]
    # An answer may spell the placeholder; it is no picture there.
    shown_S = (ids == word_tokenizer().special.image_placeholder) & (flat_S < first)
    if prompt.images or codes_T is not None:
        drawn_S = None if codes_T is None else flat_S >= first
        arrays += [image_index(shown_S, drawn_S, len(prompt.images) * TOKENS)]
    arrays += [np.stack(prompt.images)] if prompt.images else []
    arrays += [] if codes_T is None else [codes_T[None]]
    return TaskLoss(model, SIGNATURES[task]).logits(*map(Tensor, arrays)).asnumpy()


@pytest.fixture(scope="module")
def generator(model: object) -> Generator:
    """Shared: its graphs are compiled once for each task."""
    return Generator(model, word_tokenizer().special, batch=2)


def _check_answers(generator: Generator, model: object, task: str) -> list[list[int]]:
    """Greedy answers, after a check that each token is the likeliest of the whole network."""
    prompts = _prompts(task)
    answers = list(generator.answers(prompts, NEW))
    assert len({tuple(answer) for answer in answers}) > 1  # else they would say nothing about the prompts
    for prompt, answer in zip(prompts, answers, strict=True):
        np.testing.assert_array_equal(answer, _whole_logits(model, task, prompt, answer).argmax(-1))
    return [answer.tolist() for answer in answers]


def test_answers_about_pictures_are_those_of_the_whole_network(generator: Generator, model: object) -> None:
    _check_answers(generator, model, "vqa")


def test_answers_follow_the_weights_when_they_change(generator: Generator, model: object) -> None:
    from mindspore import ops

    before = _check_answers(generator, model, "text")
    ops.assign(model.lm_head.weight, -model.lm_head.weight)
    assert _check_answers(generator, model, "text") != before
    ops.assign(model.lm_head.weight, -model.lm_head.weight)


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_pictures_are_those_of_the_whole_network(generator: Generator, model: object, task: str) -> None:
    """Also drawn after pictures of the prompt, which guidance leaves in the null prompt."""
    special, sampling = word_tokenizer().special, Sampling(temperature=0.7, guidance=3.0, seed=5)
    prompts, placeholders = _prompts(task), np.full(TOKENS, special.image_placeholder)
    drawn = list(generator.pictures(prompts, range(3), sampling))
    for number, (prompt, codes_T) in enumerate(zip(prompts, drawn, strict=True)):
        nulled = Prompt(unconditional(prompt.input_ids, special), prompt.images)
        assert (nulled.input_ids == special.image_placeholder).sum() == len(prompt.images) * TOKENS
        pair = [_whole_logits(model, task, own, placeholders, codes_T) for own in (prompt, nulled)]
        guided_TV = guide(*pair, 3.0)
        for step in range(TOKENS):
            expected = choose(guided_TV[step : step + 1], 0.7, uniforms(5, [number], step))
            assert codes_T[step] == expected[0]


def test_an_answer_ends_with_eos_and_without_what_comes_after(generator: Generator) -> None:
    """The sampled answers of a batch end at different steps."""
    special = word_tokenizer().special
    prompts = _prompts("text") * 8
    answers = list(generator.answers(prompts, LONG, Sampling(2.0, seed=1)))
    ended = [answer for answer in answers if answer[-1] == special.eos]
    assert len({len(answer) for answer in ended}) > 1
    assert all(special.eos not in answer[:-1] for answer in answers)
    assert all(len(answer) == LONG for answer in answers if answer[-1] != special.eos)


def test_draws_follow_the_distribution_and_their_key_alone() -> None:
    count, p_V = 4000, np.array([0.1, 0.6, 0.05, 0.25])
    logits_BV = np.tile(np.log(p_V).astype(np.float32), (count, 1))
    for temperature, expected_V in ((1.0, p_V), (0.5, p_V**2 / (p_V**2).sum())):
        drawn = choose(logits_BV, temperature, uniforms(3, range(count), 7))
        deviation = 0.5 / count**0.5  # of a share, at most
        np.testing.assert_allclose(np.bincount(drawn) / count, expected_V, rtol=0, atol=4 * deviation)
    assert uniforms(3, [5], 7)[0] == uniforms(3, [1, 5], 7)[1]
    keys = [uniforms(seed, [n], step)[0] for seed in (3, 4) for n in (0, 1) for step in (0, 1)]
    assert len(set(keys)) == len(keys)


def test_a_draw_never_lands_on_what_is_impossible() -> None:
    logits_BV = np.array([[-np.inf, 0.0, -np.inf]] * 3, np.float32)
    assert choose(logits_BV, 1.0, np.array([0.0, 0.5, 1 - 2.0**-53])).tolist() == [1, 1, 1]


@pytest.mark.slow
def test_kept_graphs_give_the_same_answers(
    model: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second generator loads what the first has compiled; its caches are its own."""
    monkeypatch.setenv("JANUS_CACHE", str(tmp_path))
    prompts, answers, kept = _prompts("text"), [], []
    for _ in range(2):
        generator = Generator(model, word_tokenizer().special, 2)
        answers.append([answer.tolist() for answer in generator.answers(prompts, NEW)])
        kept.append({path.name for path in tmp_path.iterdir()})
    assert answers[0] == answers[1]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2


_run = partial(invoke, main, "generate")


def test_pictures_are_files_that_say_what_made_them(folder: Path, tmp_path: Path) -> None:
    """The captions are drawn one after the other; a picture depends on its caption and number alone."""
    captions = ["w1 w2 ☃", "w3 w4 w5 w6"]
    draws = [argument for caption in captions for argument in ("--draw", caption)]
    result = _run(folder, *draws, "--num-images", 2, "--batch", 3, "--seed", 9, "--out", tmp_path / "four")
    paths = [Path(line) for line in result.stdout.split()]
    assert sorted(paths) == sorted((tmp_path / "four").iterdir())
    for number, path in enumerate(paths):
        picture = Image.open(path)
        assert picture.size == (SIDE, SIDE)
        facts = {"prompt": captions[number // 2], "seed": "9", "model": str(folder), "number": str(number)}
        assert facts.items() <= picture.text.items()
    assert "pictures: 32 steps in" in result.stderr
    assert len({path.read_bytes() for path in paths}) == 4
    _run(folder, "--draw", captions[0], "--batch", 1, "--seed", 9, "--out", tmp_path / "one")
    (only,) = (tmp_path / "one").iterdir()
    assert (only.name, only.read_bytes()) == (paths[0].name, paths[0].read_bytes())
    Image.new("RGB", (80, 60), (250, 120, 3)).save(tmp_path / "shown.png")
    shown = ("--image", tmp_path / "shown.png") * 2
    _run(folder, "--draw", captions[0], *shown, "--batch", 1, "--seed", 9, "--out", tmp_path / "edited")
    (edited,) = (tmp_path / "edited").iterdir()
    assert edited.name == only.name
    assert np.any(np.asarray(Image.open(edited)) != np.asarray(Image.open(only)))


def test_answers_go_to_the_standard_output(folder: Path, tmp_path: Path) -> None:
    Image.new("L", (50, 20), 200).save(tmp_path / "grey.png")
    prompts = ("--prompt", "w1", "--prompt", "w2")
    grey = ("--image", tmp_path / "grey.png")
    result = _run(folder, *grey, *grey, *prompts, "--max-tokens", 4)
    assert result.stdout.startswith("> w1\n")
    assert "\n> w2\n" in result.stdout
    assert "cut after 4 tokens" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--prompt", "w1"], "neither a folder nor a preset"),
        (["tiny", "--draw", "w1"], "no weights"),
        (["MODEL"], "either --prompt"),
        (["MODEL", "--prompt", "w1", "--draw", "w2"], "either --prompt"),
        (["MODEL", "--draw", "w1", "--image", "x.png"], "x.png: No such file"),
        (["MODEL", "--prompt", "w1", "--image", "absent.png"], "absent.png: No such file"),
        (["MODEL", "--prompt", "w1", "--image", "MODEL/config.json"], "config.json: not a readable picture"),
        (["MODEL", "--prompt", " "], "the prompt is empty"),
        (["MODEL", "--draw", "w1 " * 16_400], "shorten the prompt"),
        (["MODEL", "--prompt", "w1", "--max-tokens", "20000"], "lower --max-tokens or shorten"),
        (["MODEL", "--draw", "w1", "--out", "MODEL/config.json/x"], "choose another folder"),
        (["BARE", "--prompt", "w1"], "tokenizer.json: no such file"),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    places = [argument.replace("MODEL", str(folder)).replace("BARE", str(tmp_path)) for argument in arguments]
    (line,) = _run(*places, code=2).stderr.strip().splitlines()
    assert says in line
