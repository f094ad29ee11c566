"""`janus generate`: a model, prompts and perhaps a picture in; answers or picture files out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.common.options import DEVICE, FILE, FOLDER, option
from janus.generate.generate import Generator, Prompt, Sampling
from janus.generate.pictures import picture_path, save_picture, vq_decoder
from janus.images import ImageError, ImagePreparation, decode_image, prepare_understanding
from janus.prompts import PromptRow, before_answer, encode_samples
from janus.tokens import JanusTokenizer


@dataclass(frozen=True)
class Request:
    """What to answer or to draw, and how."""

    prompts: tuple[str, ...] = option(
        (), "Answer this; may be repeated.", flag="--prompt", metavar="TEXT", group="Answer"
    )
    image: Path | None = option(None, "Picture that the prompts ask about.", FILE, group="Answer")
    max_tokens: int = option(256, "Longest answer in tokens.", click.IntRange(min=1), group="Answer")
    draws: tuple[str, ...] = option(
        (), "Draw pictures of this; may be repeated.", flag="--draw", metavar="TEXT", group="Draw"
    )
    out: Path = option(Path("pictures"), "Folder of the pictures.", FOLDER, group="Draw")
    num_images: int = option(1, "Pictures to draw of each TEXT.", click.IntRange(min=1), group="Draw")
    guidance: float = option(
        Sampling.guidance, "Classifier-free guidance; more follows the text more.", metavar="X", group="Draw"
    )
    temperature: float | None = option(
        None, "0 takes the likeliest token.", click.FloatRange(min=0), shown="0 for answers, 1 for pictures"
    )
    seed: int = option(0, "Seed; each picture and each prompt has draws of its own.", click.IntRange(min=0))
    batch: int = option(4, "Answers or pictures at a time.", click.IntRange(min=1))
    device: str = option("auto", "Where to compute.", DEVICE)


def run(name: str, request: Request) -> None:
    """Answer or draw with the model of this name. Raises UserError for whatever does not fit together."""
    if bool(request.prompts) == bool(request.draws):
        raise UserError("give either --prompt, to get an answer, or --draw, to get pictures")
    if request.draws and request.image is not None:
        raise UserError("--image: pictures are drawn from text alone; leave it out, or ask with --prompt")
    if not all(text.strip() for text in (*request.prompts, *request.draws)):
        raise UserError("the prompt is empty; say what to answer or to draw")
    folder = open_model(name)
    if folder.checkpoint is None or folder.path is None:
        raise UserError(
            f"{name}: has no weights, and random ones give only noise; name a folder with weights, for "
            "example a run's checkpoints/step-NNNNNN"
        )
    tokenizer = JanusTokenizer(folder.path)
    device.use(request.device)
    if request.draws:
        _draw(folder, tokenizer, request)
    else:
        _answer(folder, tokenizer, request)


def _answer(folder: ModelFolder, tokenizer: JanusTokenizer, request: Request) -> None:
    new, pixels = request.max_tokens, None if request.image is None else _read_image(folder, request.image)
    encoded = _encode(folder, tokenizer, "text" if pixels is None else "vqa", request.prompts, new)
    prompts = [Prompt(ids, pixels) for ids in encoded]
    sampling = Sampling(request.temperature or 0.0, seed=request.seed)
    generator = Generator(folder.build(), tokenizer.special, min(request.batch, len(prompts)))
    with track("answers", -(-len(prompts) // request.batch) * new, "steps") as advance:
        answers = list(generator.answers(prompts, new, sampling, advance))
    for text, ids in zip(request.prompts, answers, strict=True):
        ended = ids[-1] == tokenizer.special.eos
        if len(prompts) > 1:
            click.echo(f"> {text}")
        click.echo(tokenizer.decode(ids[: len(ids) - ended].tolist()).strip())
        if not ended:
            click.echo(f"(cut after {new} tokens; --max-tokens allows more)", err=True)


def _read_image(folder: ModelFolder, path: Path) -> np.ndarray:
    assert folder.path is not None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--image {path}: {error.strerror or error}; give a picture file") from None
    try:
        return prepare_understanding(decode_image(data), ImagePreparation.from_folder(folder.path))
    except ImageError as error:
        raise UserError(f"--image {path}: {error}") from None


def _draw(folder: ModelFolder, tokenizer: JanusTokenizer, request: Request) -> None:
    tokens = folder.config.num_image_tokens
    prompts = _encode(folder, tokenizer, "t2i", request.draws, tokens)
    temperature = Sampling.temperature if request.temperature is None else request.temperature
    sampling = Sampling(temperature, request.guidance, request.seed)
    try:  # before the work: a folder that cannot be made is refused at once
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {request.out}: {error.strerror or error}; choose another folder") from None
    texts = [text for text in request.draws for _ in range(request.num_images)]
    repeated = [ids for ids in prompts for _ in range(request.num_images)]
    generator = Generator(folder.build(), tokenizer.special, min(request.batch, len(texts)))
    decode = vq_decoder(folder)
    facts = {"seed": request.seed, "model": folder.name, "guidance": request.guidance}
    facts["temperature"] = temperature
    with track("pictures", -(-len(texts) // request.batch) * tokens, "steps") as advance:
        drawn = generator.pictures(repeated, range(len(texts)), sampling, advance)
        for number, (text, codes_T) in enumerate(zip(texts, drawn, strict=True)):
            path = picture_path(request.out, text, request.seed, number)
            save_picture(path, decode(codes_T), {"prompt": text, **facts, "number": number})
            click.echo(path)


def _encode(
    folder: ModelFolder, tokenizer: JanusTokenizer, task: str, texts: Sequence[str], new: int
) -> list[np.ndarray]:
    """The prompts' ids. Raises UserError if the longest leaves no room for `new` tokens."""
    rows = [PromptRow(task, text) for text in texts]
    samples = encode_samples(tokenizer, rows, folder.config.num_image_tokens)
    prompts = [before_answer(sample.input_ids, sample.supervised) for sample in samples]
    longest, positions = max(map(len, prompts)), folder.config.text.max_position_embeddings
    if longest + new > positions:
        raise UserError(
            f"the prompt has {longest} tokens; with {new} to generate that is more than the {positions} the "
            f"model takes; {'' if task == 't2i' else 'lower --max-tokens or '}shorten the prompt"
        )
    return prompts
