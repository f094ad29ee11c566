"""`janus generate`: a model, prompts and perhaps a picture in; answers or picture files out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.common.options import BEST_DTYPE, DEVICE, DEVICE_ID, DTYPE, FILE, FOLDER, option
from janus.generate.chat import Asked, read_chats
from janus.generate.generate import Generator, Prompt, Sampling
from janus.generate.pictures import picture_path, save_picture, vq_decoder
from janus.images import ImageError, ImagePreparation, decode_image, prepare_understanding
from janus.prompts import Message, before_answer, encode_samples
from janus.tokens import JanusTokenizer


@dataclass(frozen=True)
class Request:
    """What to answer or to draw, and how."""

    prompts: tuple[str, ...] = option(
        (), "Answer this; may be repeated.", flag="--prompt", metavar="TEXT", group="Answer"
    )
    images: tuple[Path, ...] = option(
        (), "Picture to ask about, or to redraw; may be repeated.", FILE, flag="--image", group="Answer"
    )
    chat: Path | None = option(
        None,
        "Answer the conversation on each line, see docs/data.md; pictures where it says so.",
        FILE,
        flag="--chat",
        metavar="FILE.jsonl",
        group="Answer",
    )
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
    device_id: int = option(0, "Which Ascend, where there are several.", DEVICE_ID)
    dtype: str = option("auto", "What products compute in.", DTYPE, shown=BEST_DTYPE)


def run(name: str, request: Request) -> None:
    """Answer or draw with the model of this name. Raises UserError for whatever does not fit together."""
    asked = _asked(request)
    folder = open_model(name)
    if folder.checkpoint is None or folder.path is None:
        raise UserError(
            f"{name}: has no weights, and random ones give only noise; name a folder with weights, for "
            "example a run's checkpoints/step-NNNNNN"
        )
    tokenizer = JanusTokenizer(folder.path)
    used = device.use(request.device, request.dtype, request.device_id, deterministic=True)
    for draw, respond in ((False, _answer), (True, _draw)):
        if own := [one for one in asked if one.draw is draw]:
            respond(folder, tokenizer, replace(request, dtype=used.dtype), own)


def _asked(request: Request) -> list[Asked]:
    """What is asked. Raises UserError if it is nothing, or in two ways."""
    if sum(map(bool, (request.prompts, request.draws, request.chat))) != 1:
        raise UserError("give either --prompt, to get an answer, or --draw, to get pictures, or --chat")
    if request.chat and request.images:
        raise UserError("--image goes with --prompt and --draw; the file of --chat names its own pictures")
    if request.chat:
        return read_chats(request.chat)
    if not all(text.strip() for text in (*request.prompts, *request.draws)):
        raise UserError("the prompt is empty; say what to answer or to draw")
    images = tuple(map(str, request.images))
    texts = (*request.prompts, *request.draws)
    return [Asked(text, (Message("user", text, images),), bool(request.draws)) for text in texts]


def _answer(folder: ModelFolder, tokenizer: JanusTokenizer, request: Request, asked: Sequence[Asked]) -> None:
    new = request.max_tokens
    prompts = _encode(folder, tokenizer, asked, new)
    sampling = Sampling(request.temperature or 0.0, seed=request.seed)
    generator = Generator(folder.build(request.dtype), tokenizer.special, min(request.batch, len(prompts)))
    with track("answers", -(-len(prompts) // request.batch) * new, "steps") as advance:
        answers = list(generator.answers(prompts, new, sampling, advance))
    for one, ids in zip(asked, answers, strict=True):
        ended = ids[-1] == tokenizer.special.eos
        if len(prompts) > 1:
            click.echo(f"> {one.text}")
        click.echo(tokenizer.decode(ids[: len(ids) - ended].tolist()).strip())
        if not ended:
            click.echo(f"(cut after {new} tokens; --max-tokens allows more)", err=True)


def _read_image(folder: ModelFolder, path: str) -> np.ndarray:
    assert folder.path is not None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"picture {path}: {error.strerror or error}; give a picture file") from None
    try:
        return prepare_understanding(decode_image(data), ImagePreparation.from_folder(folder.path))
    except ImageError as error:
        raise UserError(f"picture {path}: {error}") from None


def _draw(folder: ModelFolder, tokenizer: JanusTokenizer, request: Request, asked: Sequence[Asked]) -> None:
    tokens = folder.config.num_image_tokens
    prompts = _encode(folder, tokenizer, asked, tokens)
    temperature = Sampling.temperature if request.temperature is None else request.temperature
    sampling = Sampling(temperature, request.guidance, request.seed)
    try:  # before the work: a folder that cannot be made is refused at once
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {request.out}: {error.strerror or error}; choose another folder") from None
    texts = [one.text for one in asked for _ in range(request.num_images)]
    repeated = [prompt for prompt in prompts for _ in range(request.num_images)]
    generator = Generator(folder.build(request.dtype), tokenizer.special, min(request.batch, len(texts)))
    decode = vq_decoder(folder)
    facts = {"seed": request.seed, "model": folder.name, "guidance": request.guidance}
    facts["temperature"] = temperature
    with track("pictures", -(-len(texts) // request.batch) * tokens, "steps") as advance:
        drawn = generator.pictures(repeated, range(len(texts)), sampling, advance)
        for number, (text, codes_T) in enumerate(zip(texts, drawn, strict=True)):
            path = picture_path(request.out, text, request.seed, number)
            save_picture(path, decode(codes_T), {"prompt": text, **facts, "number": number})
            click.echo(path)


def _encode(folder: ModelFolder, tokenizer: JanusTokenizer, asked: Sequence[Asked], new: int) -> list[Prompt]:
    """Each conversation as a prompt. Raises UserError if the longest leaves no room for `new` tokens."""
    shown = [[path for message in one.messages for path in message.pictures] for one in asked]
    names = dict.fromkeys(path for own in shown for path in own)
    pictures = {path: _read_image(folder, path) for path in names}
    conversations = [
        [*one.messages, Message("assistant", "", ["drawn"] if one.draw else [])] for one in asked
    ]
    samples = encode_samples(tokenizer, conversations, folder.config.num_image_tokens)
    prompts = [
        Prompt(before_answer(s.input_ids, s.supervised, tokenizer.special), [pictures[path] for path in own])
        for s, own in zip(samples, shown, strict=True)
    ]
    longest = max(len(prompt.input_ids) for prompt in prompts)
    if longest + new > (positions := folder.config.text.max_position_embeddings):
        raise UserError(
            f"the prompt has {longest} tokens; with {new} to generate that is more than the {positions} the "
            f"model takes; {'' if asked[0].draw else 'lower --max-tokens or '}shorten the prompt"
        )
    return prompts
