"""A small byte-level BPE trained on the sample's texts, with Janus-Pro's special tokens after its entries.

The folder has the files of a real one (`tokenizer.yaml`): what a run needs from a checkpoint but its weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from janus.prompts import SYSTEM_TEXT
from janus.tokens import SPECIAL_NAMES

VOCABULARY = 1024
"""Most entries of the sample's BPE; the ids of the special tokens come after."""


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int = VOCABULARY) -> None:
    """Train a BPE of at most `vocabulary` entries on `texts` and write the folder."""
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
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
