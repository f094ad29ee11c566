"""Other data loaders on the same rows: written once in the library's own format, read as batches of 8.

python -m bench.sides.readers LIBRARY ROWS.arrow FOLDER LENGTH, LIBRARY one of webdataset, litdata, mosaicml,
datasets.
A batch is ready when ids and labels are padded arrays, pictures one array. Samples come in the written
order and in this process, the fastest these libraries were seen; none of them checks a row's content.
"""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from bench.measures.link import Job, serve

BATCH, IGNORE, ROWS = 8, -100, 800
ROW_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "supervised": pa.list_(pa.list_(pa.int32())),  # start and end of each span
        "image": pa.binary(),  # raw pixels of a square
        "coded": pa.binary(),  # the same as a picture's file
        "image_tokens": pa.list_(pa.uint16()),
    }
)
"""Rows as they are handed to the peers."""
Row = dict[str, Any]
"""Arrays by name, and under `coded` bytes; absent ones are left out."""
_TORCHVISION: dict[str, dict[str, Any]] = {
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
}


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file of ROW_SCHEMA."""
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for i in range(batch.num_rows):
                yield _row({name: batch.column(name)[i] for name in ROW_SCHEMA.names})


def enough(path: Path) -> Iterator[Row]:
    """The rows, again and again until there are ROWS: a pass over a few would measure how passes begin."""
    written = 0
    while written < ROWS:
        for row in rows_of(path):
            yield row
            written += 1


def _row(values: dict[str, Any]) -> Row:
    spans = np.array(values["supervised"].as_py(), np.int32)
    row: Row = {"input_ids": values["input_ids"].values.to_numpy(), "supervised": spans}
    if values["image"].is_valid:
        pixels = np.frombuffer(values["image"].as_buffer(), np.uint8)
        size = round((len(pixels) / 3) ** 0.5)
        row["image"] = pixels.reshape(size, size, 3)
    if values["coded"].is_valid:
        row["coded"] = values["coded"].as_py()
    if values["image_tokens"].is_valid:
        row["image_tokens"] = values["image_tokens"].values.to_numpy()
    return row


def write_webdataset(rows: Iterable[Row], folder: Path) -> None:
    """Tar files with one npy member for each array, and one for a coded picture."""
    import webdataset as wds

    with wds.ShardWriter(str(folder / "rows-%05d.tar"), maxsize=512 << 20, verbose=0) as writer:
        for number, row in enumerate(rows):
            members = {name if name == "coded" else f"{name}.npy": value for name, value in row.items()}
            writer.write({"__key__": f"{number:08d}", **members})


def read_webdataset(folder: Path) -> Iterable[Row]:
    """Samples in the order of the files."""
    import webdataset as wds

    files = sorted(map(str, folder.glob("*.tar")))
    for sample in wds.WebDataset(files, shardshuffle=False).decode():
        yield {name.removesuffix(".npy"): value for name, value in sample.items() if name[0] != "_"}


def write_mosaicml(rows: Iterable[Row], folder: Path) -> None:
    """MDS shards with ndarray columns."""
    first, rest = _peek(rows)
    columns = {name: "bytes" if name == "coded" else f"ndarray:{v.dtype}" for name, v in first.items()}
    with _streaming().MDSWriter(out=str(folder), columns=columns, progress_bar=False) as writer:
        for row in rest:
            writer.write(row)


def read_mosaicml(folder: Path) -> Iterable[Row]:
    """Samples in the order of the files."""
    return _streaming().StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)


def _streaming() -> Any:
    """mosaicml-streaming, which imports names of torchvision that nothing here uses.

    torchvision's wheel does not load beside torch's CPU build: transformers is told that it is not there, and
    streaming gets the names alone.
    """
    if "streaming" not in sys.modules:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        import transformers  # noqa: F401

        for name, content in _TORCHVISION.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(content)
    import streaming

    return streaming


def write_litdata(rows: Iterable[Row], folder: Path) -> None:
    """LitData's binary chunks."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
    for number, row in enumerate(rows):
        writer.add_item(number, row)
    writer.done()
    writer.merge(1)


def read_litdata(folder: Path) -> Iterable[Row]:
    """Samples in the order of the files."""
    from litdata import StreamingDataset

    return StreamingDataset(str(folder), shuffle=False)


def write_datasets(rows: Iterable[Row], folder: Path) -> None:
    """An Arrow file of Hugging Face's datasets."""
    from datasets.arrow_writer import ArrowWriter

    first, rest = _peek(rows)
    features = _features(first)
    with ArrowWriter(path=str(folder / "rows.arrow"), features=features, writer_batch_size=BATCH) as writer:
        for row in rest:
            writer.write(row)
        writer.finalize()


def _features(row: Row) -> Any:
    from datasets import Array2D, Array3D, Features, Sequence, Value

    numbers = {name: array for name, array in row.items() if name != "coded"}
    kinds: dict[str, Any] = {name: Sequence(Value(str(array.dtype))) for name, array in numbers.items()}
    kinds["supervised"] = Array2D(shape=(None, 2), dtype="int32")
    if "image" in row:
        kinds["image"] = Array3D(shape=row["image"].shape, dtype="uint8")
    if "coded" in row:
        kinds["coded"] = Value("binary")
    return Features(kinds)


def read_datasets(folder: Path) -> Iterable[Row]:
    """Samples in the order of the file, taken eight at a time, which is faster than one at a time."""
    from datasets import Dataset

    rows_on_disk = Dataset.from_file(str(folder / "rows.arrow"))
    # As numpy's strings, coded pictures would lose the zeros at their end.
    arrays = [name for name in rows_on_disk.column_names if name != "coded"]
    for rows in rows_on_disk.with_format("numpy", arrays, output_all_columns=True).iter(BATCH):
        for values in zip(*rows.values(), strict=True):
            yield dict(zip(rows, values, strict=True))


WRITE = {
    "webdataset": write_webdataset,
    "litdata": write_litdata,
    "mosaicml": write_mosaicml,
    "datasets": write_datasets,
}
READ = {
    "webdataset": read_webdataset,
    "litdata": read_litdata,
    "mosaicml": read_mosaicml,
    "datasets": read_datasets,
}


def batches(samples: Iterable[Row], length: int) -> Iterator[dict[str, np.ndarray]]:
    """Padded batches, the last one left out if it is not full."""
    upcoming, pool = iter(samples), ThreadPoolExecutor(os.cpu_count())
    while len(group := list(islice(upcoming, BATCH))) == BATCH:
        ids = np.zeros((BATCH, length), np.int32)
        labels = np.full((BATCH, length), IGNORE, np.int32)
        for i, row in enumerate(group):
            ids[i, : len(row["input_ids"])] = row["input_ids"]
            for first, last in row["supervised"]:
                labels[i, first:last] = row["input_ids"][first:last]
        batch = {"input_ids": ids, "labels": labels}
        for name in ("image", "image_tokens"):
            if name in group[0]:
                batch[name] = np.stack([row[name] for row in group])
        if "coded" in group[0]:
            batch["image"] = np.stack(list(pool.map(_decode, [row["coded"] for row in group])))
        yield batch


def _decode(coded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(coded)) as image:
        return np.asarray(image.convert("RGB"))


def _peek(rows: Iterable[Row]) -> tuple[Row, Iterator[Row]]:
    upcoming = iter(rows)
    first = next(upcoming)
    return first, (row for part in ([first], upcoming) for row in part)


def start(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Job]]:
    """The rows written into a new folder, and the job that reads them."""
    library, rows, folder, length = arguments
    target = Path(folder)
    target.mkdir(parents=True)
    WRITE[library](enough(Path(rows)), target)

    def read(samples: int) -> float:
        """Samples per second over at least so many, pass after pass."""
        seen, began = 0, time.perf_counter()
        while seen < samples:
            before = seen
            for batch in batches(READ[library](target), int(length)):
                seen += len(batch["input_ids"])
                if seen >= samples:
                    break
            if seen == before:
                raise ValueError(f"{library} gave no batch")
        return seen / (time.perf_counter() - began)

    read(BATCH)
    return {}, {"read": read}


if __name__ == "__main__":
    serve(start)
