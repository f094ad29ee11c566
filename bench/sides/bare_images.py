"""Pillow alone: decode encoded pictures and scale the longest side to 384, over all cores; nothing is kept.

python -m bench.sides.bare_images IMAGES.arrow
"""

import io
import multiprocessing
import os
import sys

import pyarrow as pa
from PIL import Image

SIDE = 384


def prepare(job: tuple[str, int]) -> int:
    """Decode and scale one record batch; gives how many pictures it held."""
    path, number = job
    batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(number)
    for encoded in batch.column("image"):
        image = Image.open(io.BytesIO(encoded.as_buffer())).convert("RGB")
        longest = max(image.size)
        image.resize([int(side / longest * SIDE) for side in image.size], Image.Resampling.BICUBIC)
    return batch.num_rows


def main(path: str) -> None:
    """All record batches."""
    batches = pa.ipc.open_file(pa.memory_map(path)).num_record_batches
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        print(sum(pool.imap_unordered(prepare, [(path, i) for i in range(batches)])))


if __name__ == "__main__":
    main(sys.argv[1])
