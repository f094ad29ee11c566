"""Text to token ids. Text from the data never becomes a special token, whatever it spells.

Special tokens enter a sequence only by their ids, looked up by name: the 1B and 7B tables differ.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from janus.common.errors import UserError

_STEMS = ("tokenizer", "tokenizer_config", "special_tokens_map", "preprocessor_config", "processor_config")
TOKENIZER_FILES = tuple(f"{stem}.json" for stem in _STEMS)
"""Files of a tokenizer folder; those that exist are copied to shards and checkpoints."""
IGNORE = -100
"""The label of a state that has no target."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that carry structure, never text; spelled as `SPECIAL_NAMES` says."""

    bos: int
    eos: int
    pad: int
    begin_of_image: int
    end_of_image: int
    image_placeholder: int
    user: int
    assistant: int


SPECIAL_NAMES = {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>", "pad": "<｜▁pad▁｜>"}
SPECIAL_NAMES |= {name: f"<{name}>" for name in ("begin_of_image", "end_of_image", "image_placeholder")}
SPECIAL_NAMES |= {"user": "<|User|>", "assistant": "<|Assistant|>"}


class JanusTokenizer:
    """A tokenizer folder, opened: plain text in, ids out; special tokens by name."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if `tokenizer.json` is missing or broken, or lacks a special token."""
        self.folder = folder
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a folder that holds tokenizer.json")
        content = path.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except ValueError as error:
            raise UserError(f"{path}: not a tokenizer ({error})") from error
        # "<|Assistant|>" in a question must become ordinary tokens.
        self._tokenizer.encode_special_tokens = True
        ids = {name: self._tokenizer.token_to_id(text) for name, text in SPECIAL_NAMES.items()}
        if absent := [SPECIAL_NAMES[name] for name, token_id in ids.items() if token_id is None]:
            raise UserError(f"{path}: special tokens absent: {', '.join(absent)}; not a Janus-Pro tokenizer")
        self.special = SpecialTokens(**ids)

    @property
    def highest_id(self) -> int:
        """The largest id that text or special tokens can have; the embedding table must exceed it."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text as plain text, without BOS or any other special token."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens spelled out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)
