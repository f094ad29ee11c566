"""Tensors in files: mapped while they are read, written one at a time; and the safetensors format.

A load or a conversion holds one tensor in memory besides what it builds, whatever the size of the file.
safetensors (8 bytes of length, a JSON header, raw little-endian data) is read and written here: the library's
NumPy side, on which mindone's reader builds, has no bfloat16 (Janus-Pro's dtype), gives no views of a file,
and keeps all tensors in memory when it saves.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from janus.common.errors import UserError

_CODES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2"}
_CODES |= {"I8": "i1", "U8": "u1", "BOOL": "u1"}
DTYPES = {name: np.dtype(f"<{code}") for name, code in _CODES.items()}
"""By safetensors' names; of BF16 its bits: numpy has no bfloat16."""
_WINDOW = 1 << 20  # elements that are mapped at a time: a whole tensor can be half a GiB
_HEADER_LIMIT = 100_000_000  # bytes; that of the safetensors library


@dataclass(frozen=True)
class _FileTensor:
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class StoredTensor(_FileTensor):
    """A tensor in a file: contiguous, little-endian."""

    path: Path
    offset: int  # bytes into the file

    @property
    def data(self) -> np.ndarray:
        """The elements, flat, as a map of its own: its pages are freed with the array."""
        return self._map(0, prod(self.shape))

    def _map(self, start: int, stop: int) -> np.ndarray:
        if stop == start:
            return np.zeros(0, DTYPES[self.dtype])
        offset = self.offset + start * DTYPES[self.dtype].itemsize
        return np.memmap(self.path, DTYPES[self.dtype], mode="r", offset=offset, shape=(stop - start,))

    def float32(self) -> np.ndarray:
        """A float32 copy of its shape. bfloat16 is the upper half of a float32."""
        count = prod(self.shape)
        array = np.empty(count, np.float32)
        for start in range(0, count, _WINDOW):
            part, stored = array[start : start + _WINDOW], self._map(start, min(start + _WINDOW, count))
            if self.dtype == "BF16":
                bits = part.view(np.uint32)
                bits[:] = stored
                bits <<= 16
            else:
                part[:] = stored
        return array.reshape(self.shape)

    def finite_float32(self, name: str) -> np.ndarray:
        """`float32`, or UserError where a value is NaN or infinite."""
        array = self.float32()
        # The extremes show it without an array of flags as long as the tensor.
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise UserError(
                f"{self.path}: {name} holds NaN or infinity; use an earlier or undamaged checkpoint"
            )
        return array


@dataclass(frozen=True)
class TensorToSave(_FileTensor):
    """A tensor whose elements are made when it is written."""

    chunks: Callable[[], Iterable[np.ndarray]]  # the elements in the file's dtype, one part after another

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> dict[str, Self]:
        """MindSpore's Tensors or Parameters, read from the device when they are written.

        By the names of a checkpoint, where those of joined parameters are parted.
        """
        from janus.model.weights import pieces

        found: dict[str, Self] = {}
        for name, tensor in tensors.items():
            dtype = {"Float32": "F32", "Int64": "I64", "Int32": "I32"}[str(tensor.dtype)]
            shape = (tensor.shape[0] // len(pieces(name)), *tensor.shape[1:])
            found |= {own: cls(dtype, shape, partial(_piece, name, own, tensor)) for own in pieces(name)}
        return found

    @classmethod
    def joined(cls, parts: Mapping[str, StoredTensor], dtype: str | None = None) -> Self:
        """Stored tensors by name, joined along their first axis; in `dtype` (F32, BF16) or their own (None).

        Raises UserError when it is written, where it casts NaN or infinity.
        """
        first, *others = parts.values()
        shape = first.shape if not others else (sum(p.shape[0] for p in parts.values()), *first.shape[1:])
        return cls(dtype or first.dtype, shape, lambda: [_cast(n, part, dtype) for n, part in parts.items()])


def _piece(name: str, own: str, tensor: Any) -> list[np.ndarray]:
    from janus.model.weights import parted

    return [parted({name: tensor.asnumpy()})[own]]


def _cast(name: str, tensor: StoredTensor, dtype: str | None) -> np.ndarray:
    """The elements as stored, or as F32 or BF16 (bits; rounded to nearest even)."""
    if dtype in (None, tensor.dtype):
        return tensor.data
    array = tensor.finite_float32(name).reshape(-1)
    if dtype == "F32":
        return array
    bits = array.view(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    bits >>= 16
    return bits.astype(np.uint16)


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; nothing but the header is read.

    Raises UserError for a truncated file, or one that is not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _HEADER_LIMIT):
            raise UserError(f"{path}: not a whole safetensors file; fetch or copy it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UserError(f"{path}: its header is not JSON; fetch or copy it again") from error
    header.pop("__metadata__", None)
    tensors, base = {}, 8 + length
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: {name} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
        start, end = entry["data_offsets"]
        tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), path, base + start)
        if base + end > size or end - start != tensors[name].nbytes:
            raise UserError(f"{path}: {name} is cut off or misdescribed; fetch or copy the file again")
    return tensors


def save_safetensors(path: Path, tensors: Mapping[str, TensorToSave]) -> None:
    """Write tensors, one at a time, sorted by name."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # what transformers asks for
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(tensors.items()):
            for chunk in tensor.chunks():
                file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
