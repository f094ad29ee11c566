"""A very small model folder, and shards for it: words, noise pictures of 16 tokens, drawn codes."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from shard_factory import SOURCES, make_batch, make_row, pictures_of, seal
from tokenizers import Tokenizer, models, pre_tokenizers

from janus.checkpoint.folder import ModelFolder, open_model
from janus.model.config import JanusConfig, TextConfig, VisionConfig, VQConfig
from janus.prompts import SIGNATURES, SYSTEM_TEXT, Message, encode_samples
from janus.tokens import SPECIAL_NAMES, JanusTokenizer
from shards.manifest import SourceCounts
from shards.read import ShardSet
from shards.schema import Sample
from shards.write import write_shards
from trainer.config import resolve
from trainer.stream.feed import Feed
from trainer.stream.shapes import BatchShape, Counts, ImageShape, pack, shape_for

WORDS = [f"w{i}" for i in range(20)]
SIDE, TOKENS, CODES = 64, 16, 48
CONFIG = JanusConfig(
    TextConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48, vocab_size=128),
    VisionConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48, image_size=SIDE),
    VQConfig(base_channels=32, num_res_blocks=1, latent_channels=32, num_embeddings=CODES),
)


def write_tokenizer(folder: Path) -> JanusTokenizer:
    """A tokenizer of whole words that knows Janus-Pro's special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    known = ["?", *WORDS, *SYSTEM_TEXT.replace(".", " . ").replace(",", " , ").split(), "yes", "no", "maybe"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL_NAMES.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    return JanusTokenizer(folder)


@cache
def word_tokenizer() -> JanusTokenizer:
    """The tokenizer of `write_tokenizer`, its folder gone."""
    with TemporaryDirectory() as folder:
        return write_tokenizer(Path(folder))


@cache
def _random_model() -> ModelFolder:
    return ModelFolder("random", CONFIG, None)


@cache
def _encoder_sha256() -> str:
    return _random_model().vq_encoder_sha256()


def make_model(folder: Path) -> Path:
    """A model folder with random weights of CONFIG's size; returns it."""
    tokenizer = write_tokenizer(folder)
    _random_model().save({}, folder, tokenizer)
    return folder


def make_loud_model(base: Path) -> Path:
    """A model folder whose weights are so large that its logits are far apart; returns it."""
    from mindspore import ops

    source = open_model(str(make_model(base / "small")))
    model = source.build()
    for parameter in model.get_parameters():
        if "norm" not in parameter.name:
            ops.assign(parameter, parameter * 8.0)
    source.save({p.name: p for p in model.get_parameters()}, base / "large", JanusTokenizer(base / "small"))
    (base / "large" / "preprocessor_config.json").write_text(json.dumps({"image_size": SIDE}))
    return base / "large"


def trainable_row(task: str, split: str, key: int, shown: int = 1, drawn: int = 1) -> dict[str, Any]:
    """A row whose ids are a real prompt; its texts and lengths are drawn from the key."""
    rng = np.random.default_rng([key, *f"{split}/{task}".encode()])
    prompt, answer = (" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(2))
    texts = {"prompt": prompt, "answer": answer if SIGNATURES[task].text else ""}
    row = make_row(task, split, key, SIDE, shown, drawn, **texts)
    messages = [Message(**message) for message in row["messages"]]
    (sample,) = encode_samples(word_tokenizer(), [messages], TOKENS)
    spans = [dict(zip(("start", "end", "kind"), span, strict=True)) for span in sample.supervised.tolist()]
    ids, codes = sample.input_ids.tolist(), TOKENS * drawn * SIGNATURES[task].drawn
    row |= {"input_ids": ids, "num_tokens": len(ids), "supervised": spans}
    return row | {"image_tokens": rng.integers(0, CODES, codes).tolist()}


@cache
def realistic_lengths(task: str, count: int = 960) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, supervised tokens) of samples as long as Janus-Pro-1B's tokenizer makes those of the task.

    As VQA-RAD and PubMedQA measure: vqa 636 ± 4 tokens (630 to 659), of which 2 to 22 are supervised; text
    115 ± 24 (68 to 245), of which 52 ± 22. t2i has 576 and a caption: about 20 tokens, some of them long.
    """
    rng = np.random.default_rng([count, *task.encode()])
    if task == "t2i":
        return 595 + np.minimum(rng.lognormal(3.0, 0.5, count), 120).round(), np.full(count, 576.0)
    if task == "vqa":
        answers = 2 + np.minimum(rng.exponential(1.6, count), 20).round()
        return 626 + answers + np.minimum(rng.gamma(9, 0.7, count), 12).round(), answers
    answers = np.clip(rng.lognormal(3.87, 0.42, count), 12, 166).round()
    return answers + np.clip(rng.normal(63, 9, count), 40, 90).round(), answers


def make_trainable(
    folder: Path, train: Mapping[str, int], validation: int = 2, vq_sha256: str | None = None, test: int = 0
) -> Path:
    """A finished folder with `train` rows per task, `validation` and `test` rows of each; returns it."""
    write_tokenizer(folder / "tokenizer")
    counts = {
        "train": train,
        "validation": dict.fromkeys(train, validation),
        "test": dict.fromkeys(train, test),
    }
    rows = {
        (split, task): [trainable_row(task, split, key) for key in range(number)]
        for split, numbers in counts.items()
        for task, number in numbers.items()
        if number
    }
    entries = [
        entry
        for (split, task), own in rows.items()
        for entry in write_shards([make_batch(own)], folder, split=split, task=task)
    ]
    written = {SOURCES[task]: train[task] + validation + test for task in train}
    facts = {"counts": {s: SourceCounts(read=n, rejected={}, written=n) for s, n in written.items()}}
    vq = {"encoder_sha256": vq_sha256 or _encoder_sha256(), "weights": "random"}
    return seal(folder, entries, SIDE, vq=vq, pictures=pictures_of(chain(*rows.values()), folder), **facts)


def shape_of(
    samples: Sequence[Sample], image: ImageShape, rows: int | None = None, spare: int = 0
) -> BatchShape:
    """The shape of a micro-batch with room for `spare` more samples, in `rows` or each in its own."""
    sizes = np.zeros((4, 1, len(samples) + spare), np.int64)
    for place, sample in enumerate(samples):
        drawn, supervised = len(sample.image_tokens), int(np.diff(sample.supervised[:, :2]).sum())
        pictures = len(sample.images), drawn // image.tokens
        sizes[:, 0, place] = len(sample.input_ids), supervised - drawn, *pictures
    return shape_for(Counts(*sizes), image, saved={"attention_rows": rows or len(samples) + spare})


def token_slots(lengths: Sequence[int], rows: int, length: int, tokens: int) -> tuple[np.ndarray, ...]:
    """Positions, token of each slot, slot of each token and segments of samples one behind the other."""
    positions_P, slot_of_P = np.zeros(tokens, np.int32), np.full(tokens, rows * length - 1, np.int32)
    token_of_BS, segments_BS = (
        np.full((rows, length), tokens - 1, np.int32),
        np.zeros((rows, length), np.int32),
    )
    places, start = zip(*(place[0] for place in pack(np.array([lengths]), rows)), strict=True), 0
    for number, (count, (row, first)) in enumerate(zip(lengths, places, strict=True), 1):
        at = np.arange(count)
        positions_P[start + at], slot_of_P[start + at] = at, row * length + first + at
        token_of_BS[row, first + at], segments_BS[row, first + at] = start + at, number
        start += count
    return positions_P, token_of_BS, slot_of_P, segments_BS


def make_feed(shards: Path, saved: Mapping[str, Any] | None = None, **given: Any) -> Feed:
    """The feed of a run on the shards of `make_trainable`. saved: sizes of shapes that a run began with."""
    image = ImageShape(SIDE, TOKENS, CODES)
    return Feed(ShardSet.open(shards), resolve(given), word_tokenizer().special, image, saved)
