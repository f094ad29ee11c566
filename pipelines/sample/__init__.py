"""`pipelines sample`: a small synthetic data set in the four datasets' own raw layouts.

Invented drugs (text), shapes and phantoms with questions (vqa) and with captions (t2i), all from one seed.
Every answer follows from the question's own rule or from the picture. A small tokenizer with Janus-Pro's
special tokens and a model folder `tiny` to train from come with it.
"""

import json
from pathlib import Path

import click
import yaml

from janus.common.errors import UserError
from janus.common.files import write_folder
from janus.prompts import SYSTEM_TEXT
from janus.tokens import SPECIAL_NAMES
from pipelines.datafolder import read_revisions, write_revisions
from pipelines.sample import datasets
from pipelines.sample.palette import write_model
from pipelines.sources import load_sources

VERSION = 3
"""Raised whenever the same seed comes to give other data."""

VOCABULARY = 1024
"""Most entries of the sample's BPE; the ids of the special tokens come after."""


def write_sample(data: Path, seed: int) -> None:
    """Write the data set into `data`, whole or not at all; does nothing if `data` already holds it.

    Raises UserError if `data` holds anything but an earlier sample.
    """
    mark = f"synthetic {VERSION}, seed {seed}"
    found = set(read_revisions(data).values())
    if found == {mark} and (data / "tiny").is_dir():
        click.echo(f"sample: {data} unchanged, skipped")
        return
    if data.exists() and any(data.iterdir()) and not all(m.startswith("synthetic") for m in found or {""}):
        raise UserError(f"{data}: holds other files; give --data a new folder for the sample")

    def fill(folder: Path) -> None:
        texts = []
        for source in load_sources():
            texts += getattr(datasets, f"write_{source.name.replace('-', '_')}")(folder / source.folder, seed)
            write_revisions(folder, {source.name: mark})
        write_tokenizer(folder / "tokenizer", texts)
        write_model(folder / "tiny", folder / "tokenizer")

    write_folder(data, fill)
    click.echo(f"sample: written to {data}, tokenizer in {data / 'tokenizer'}, model in {data / 'tiny'}")


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int = VOCABULARY) -> None:
    """Train a byte-level BPE of at most `vocabulary` entries on `texts`; write a folder like a real one's.

    Janus-Pro's special tokens come after the entries; the other files are those of `tokenizer.yaml`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    files = yaml.safe_load(Path(__file__).with_name("tokenizer.yaml").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    layout = [SYSTEM_TEXT + "\n\n", "User: \n", "\n\n", ":"]
    tokenizer.train_from_iterator([*texts, *layout * 100], trainer)
    special = [*SPECIAL_NAMES.values(), *files["special_tokens_map.json"]["additional_special_tokens"]]
    added = [AddedToken(name, normalized=False, special=True) for name in dict.fromkeys(special)]
    tokenizer.add_special_tokens(added)
    bos = SPECIAL_NAMES["bos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
