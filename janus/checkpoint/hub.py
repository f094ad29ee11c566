"""A model on the Hugging Face hub, downloaded (once) to its cache."""

from __future__ import annotations

import re
from pathlib import Path

from janus.common.errors import UserError
from janus.tokens import TOKENIZER_FILES

PATTERNS = (
    "config.json",
    *TOKENIZER_FILES,
    "model*.safetensors",
    "pytorch_model*.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""What of a repository is needed."""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `organisation/model`."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name) is not None


def download(hub_id: str) -> Path:
    """The folder in the hub's cache, completed from the hub if it can be reached.

    Raises UserError where neither the hub nor the cache has the model.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(PATTERNS)))
    except (OSError, ValueError) as error:  # huggingface_hub's errors, of the network too, are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {hub_id!r}: no such folder here, and the hub did not give it ({reason}); where there "
            f"is a network, run `hf download {hub_id} --local-dir DIR`, then name DIR"
        ) from error
