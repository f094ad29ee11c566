"""The tokenizer's own batch call on prompts and answers, all cores; nothing is kept.

python -m bench.sides.bare_tokens tokenizer.json INGESTED
"""

import sys
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from janus.prompts import SYSTEM_TEXT


def main(tokenizer: str, ingested: str) -> None:
    """Read every row, then one call."""
    encoder = Tokenizer.from_file(tokenizer)
    texts = []
    for path in sorted(Path(ingested).glob("*.rows.arrow")):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            pairs = zip(batch.column("prompt").to_pylist(), batch.column("answer").to_pylist(), strict=True)
            texts += [f"{SYSTEM_TEXT}\n\nUser: {prompt}\n\nAssistant: {answer}" for prompt, answer in pairs]
    print(len(encoder.encode_batch_fast(texts, add_special_tokens=False)))


if __name__ == "__main__":
    main(*sys.argv[1:])
