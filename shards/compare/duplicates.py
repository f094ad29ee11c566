"""Near-duplicates: pictures whose perceptual hashes hardly differ, and samples that leak from another split.

The hash is that of the discrete cosine transform (Zauner 2010, as in the `imagehash` package), of 256 bits:
with the usual 64, different X-rays of one body part come as near to each other as a picture to its own copy.
Measured on 315 radiology pictures: different ones differ in 60 bits and more; a copy that was compressed,
scaled or made brighter in at most 24; one that lost 2 % at each edge in 34 on average, so it is not found.
The bits know neither colours nor where a small lesion lies, so the colours of a coarse grid must agree as
well.

A training sample leaks if validation or test holds the same question or nearly the same picture: the same
file, or a near perceptual hash. The hashes are taken from the pictures as they came and lie beside the shards
in `pictures.parquet`; its sha256 stands in the manifest.
"""

# Shapes: N hashes of B bytes: W words of bits and C levels of colour.

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.fft
from PIL import Image

from janus.common.files import hash_file
from shards.manifest import HASHES
from shards.read import ShardSet

SIDE = 16  # frequencies in each direction; a hash has SIDE² bits
NEAR = 23  # bits in which near-duplicates differ at most
FLAT = (
    4.0  # standard deviation of grey (0 to 255) below which there is no hash: blank pictures would be alike
)
GRID = 8  # cells of the grid of colours in each direction
COLOUR = (
    24  # levels in which near-duplicates differ at most in any cell: chroma, and light, 32 to a deviation
)
FORM_ROWS = 20  # fewer rows with the same question are a repetition, see `telling`
BIT_BYTES = SIDE**2 // 8
HASH_BYTES = BIT_BYTES + 3 * GRID**2
_REDUCED = 4 * SIDE
_CANDIDATES = 1 << 22  # pairs compared at a time

HASH_SCHEMA = pa.schema([("image_sha256", pa.string()), ("picture_hash", pa.binary(HASH_BYTES))])


def picture_hash(image: Image.Image) -> bytes | None:
    """The perceptual hash of an RGB picture, HASH_BYTES long; None where there is nothing to tell it by."""
    reduced = image.resize((_REDUCED, _REDUCED), Image.Resampling.BILINEAR, reducing_gap=2.0)
    grey_HW = np.asarray(reduced.convert("L"), np.float64)
    if grey_HW.std() < FLAT:
        return None
    cells = reduced.resize((GRID, GRID), Image.Resampling.BOX).convert("YCbCr")
    low = scipy.fft.dctn(grey_HW, norm="ortho")[:SIDE, :SIDE].reshape(-1)
    return np.packbits(low > np.median(low[1:])).tobytes() + _colours(np.asarray(cells), grey_HW).tobytes()


def _colours(cells_HW3: np.ndarray, grey_HW: np.ndarray) -> np.ndarray:
    """Light and chroma of each cell, uint8; light in deviations, so that brightness has no say."""
    light_HW = 128 + 32 * (cells_HW3[..., 0] - grey_HW.mean()) / grey_HW.std()
    return np.dstack([light_HW.clip(0, 255), cells_HW3[..., 1:]]).astype(np.uint8)


def near_pairs(hashes: list[bytes]) -> np.ndarray:
    """Indices of distinct hashes that differ in at most NEAR bits and in no colour: int64 (pairs, 2), sorted.

    Hashes cut into NEAR + 1 bands agree in one of them at least, so only those are compared that do.
    hashes: no two the same.
    """
    if not hashes:
        return np.empty((0, 2), np.int64)
    bytes_NB = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), HASH_BYTES)
    words_NW = np.ascontiguousarray(bytes_NB[:, :BIT_BYTES]).view(np.uint64)
    bits_NB = np.unpackbits(bytes_NB[:, :BIT_BYTES], axis=1)
    colours_NC = bytes_NB[:, BIT_BYTES:].astype(np.int16)
    found = [np.empty((0, 2), np.int64)]
    for start in range(NEAR + 1):  # disjoint bits, low and high frequencies in each band
        own = bits_NB[:, start :: NEAR + 1]
        band = own @ (1 << np.arange(own.shape[1], dtype=np.int64))
        order = np.argsort(band, kind="stable")
        same = np.append(np.diff(band[order]) == 0, False)
        # same[p]: places p and p + 1 agree; p and p + step + 1 do if p and p + step did and same[p + step].
        at, step = np.flatnonzero(same), 1
        while len(at):
            for part in np.array_split(at, -(-len(at) // _CANDIDATES)):
                left, right = order[part], order[part + step]
                bits = pl.Series((words_NW[left] ^ words_NW[right]).ravel()).bitwise_count_ones()
                near = bits.to_numpy().reshape(-1, words_NW.shape[1]).sum(axis=1) <= NEAR
                left, right = left[near], right[near]
                alike = (np.abs(colours_NC[left] - colours_NC[right]) <= COLOUR).all(axis=1)
                found.append(np.stack([left[alike], right[alike]], axis=1))
            at = at[same[at + step]]
            step += 1
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def write_hashes(folder: Path, pictures: pa.Table) -> str:
    """Write the hashes of all pictures (HASH_SCHEMA) into a folder of shards; gives the file's sha256."""
    pq.write_table(pictures.cast(HASH_SCHEMA), folder / HASHES)
    return hash_file(folder / HASHES)


def normalised(question: pl.Expr) -> pl.Expr:
    """What makes two questions the same: lower case, composed, white space collapsed."""
    return question.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def hash_keys(hashes: Iterable[bytes]) -> pl.DataFrame:
    """(picture_hash, key): near-duplicates share a key, each pair of hashes one of its own.

    Not one key for a whole chain: of A ~ B ~ C, A and C may be different pictures.
    """
    distinct = sorted(set(hashes))
    pairs = near_pairs(distinct)
    own = [(value, value.hex()) for value in distinct]
    shared = [(distinct[i], f"{left}~{right}") for left, right in pairs.tolist() for i in (left, right)]
    return pl.DataFrame(own + shared, {"picture_hash": pl.Binary, "key": pl.String}, orient="row")


def find_leaks(folder: Path) -> list[str]:
    """One line for each sample of train that has a near-duplicate in validation or test, and why.

    Raises UserError if the shards cannot be read.
    """
    shards = ShardSet.open(folder)
    questions, pictures = _samples(shards)
    told = telling(questions.with_columns(normalised(pl.col("key"))), shards.manifest.validation_fraction)
    return [
        *_shared(told.unique(), "the question"),
        *_shared(pictures, "the picture's file"),
        *_shared(_picture_keys(pictures, folder / HASHES), "nearly the same picture"),
    ]


def telling(questions: pl.DataFrame, fraction: float) -> pl.DataFrame:
    """The questions (source, key, …) without those that are only a form, such as "Describe the picture".

    A form is asked in at least FORM_ROWS rows of a source, and in more than `fraction` of them.
    """
    rows = pl.len().over("source", "key")
    form = (rows >= FORM_ROWS) & (rows > fraction * pl.len().over("source"))
    return questions.filter(~form)


def _samples(shards: ShardSet) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(questions, pictures): sample_id, source, split and key of each user turn, of each picture."""
    columns, frames = ("sample_id", "source", "split", "messages"), []
    for split, task in shards.splits_tasks():
        rows = shards.rows(split, task)
        frames.append(pl.DataFrame({name: pl.from_arrow(rows.column(name)) for name in columns}))
    samples, names = pl.concat(frames), columns[:-1]
    pictures = messages_of(samples, *names).explode("pictures").drop_nulls("pictures")
    return questions_of(samples, *names), pictures.select(*names, key="pictures")


def messages_of(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    """(names…, role, text, pictures) of each message of the rows, in order. names: columns to keep."""
    return rows.select(*names, "messages").explode("messages").unnest("messages")


def questions_of(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    """(names…, key) of each user turn, in order; key: its text. The first name tells rows apart."""
    begins = (pl.col("role") != pl.col("role").shift()).fill_null(True)
    messages = messages_of(rows, *names).with_columns(turn=begins.cum_sum().over(names[0]))
    turns = messages.filter(pl.col("role") == "user").group_by(*names, "turn", maintain_order=True)
    said = turns.agg(key=pl.col("text").filter(pl.col("text") != ""))
    return said.select(*names, pl.col("key").list.join(" "))


def _picture_keys(pictures: pl.DataFrame, path: Path) -> pl.DataFrame:
    if not path.is_file():
        return pictures.clear()
    hashes = pl.DataFrame(pl.from_arrow(pq.read_table(path, schema=HASH_SCHEMA))).drop_nulls().unique()
    hashed = pictures.unique().rename({"key": "image_sha256"}).join(hashes, on="image_sha256")
    found = hashed.join(hash_keys(hashed["picture_hash"]), on="picture_hash")
    # Keys of one file only are left to the comparison of files.
    files = found.group_by("key").agg(pl.col("image_sha256").n_unique() > 1).filter("image_sha256")
    return found.join(files.select("key"), on="key").select("sample_id", "split", "key")


def _shared(keys: pl.DataFrame, what: str) -> list[str]:
    """A line for each train sample whose key another split has too. keys: sample_id, split, key."""
    train = keys.filter(pl.col("split") == "train")
    other = keys.filter(pl.col("split") != "train").sort("split", "sample_id")
    first = other.group_by("key", maintain_order=True).first()
    found = train.join(first, on="key", suffix="_2").unique("sample_id", keep="first", maintain_order=True)
    named = found.select("sample_id", "split_2", "sample_id_2").sort("sample_id").iter_rows()
    return [f"train {sample_id}: {what} is also in {split} {other}" for sample_id, split, other in named]
