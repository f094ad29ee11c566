"""`pytorch_model.bin` as torch.save writes it, without PyTorch, one tensor at a time.

The pickle is a handful of opcodes a tensor, put down by hand: no object is pickled, names of torch are text.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from struct import pack

from janus.checkpoint.tensors import TensorToSave, as_bytes
from janus.checkpoint.torchfile import STORAGES

_PREFIX = "pytorch_model/"
_ALIGNMENT = 64  # bytes; as torch, so that storages can be mapped
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


def save_torch(path: Path, tensors: Mapping[str, TensorToSave]) -> None:
    """Write the tensors as a state dict that `torch.load(path, weights_only=True)` reads."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", [_state_dict(tensors)])
        _add(archive, "byteorder", [b"little"])
        for key, tensor in enumerate(tensors.values()):
            _add(archive, f"data/{key}", map(as_bytes, tensor.chunks()), tensor.nbytes)
        _add(archive, "version", [b"3\n"])


def _add(archive: zipfile.ZipFile, name: str, chunks, size: int = 0) -> None:  # type: ignore[no-untyped-def]
    """One stored member whose data is aligned by padding in its header, as torch does it."""
    member = zipfile.ZipInfo(_PREFIX + name)
    member.file_size = size  # decides whether zip64 is needed
    start = archive.start_dir + 30 + len(member.filename) + 4
    padding = -start % _ALIGNMENT
    member.extra = pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB": torch's mark for padding
    with archive.open(member, "w") as target:
        for chunk in chunks:
            target.write(chunk)


def _state_dict(tensors: Mapping[str, TensorToSave]) -> bytes:
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT]
    for key, (name, tensor) in enumerate(tensors.items()):
        parts += [_plain(name), *_tensor(str(key), tensor), pickle.SETITEM]
    return b"".join([*parts, pickle.STOP])


def _tensor(key: str, tensor: TensorToSave) -> list[bytes]:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad=False, hooks={})."""
    strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    storage = [
        *(pickle.MARK, _plain("storage"), _global("torch", _STORAGE_OF[tensor.dtype])),
        *(_plain(key), _plain("cpu"), _plain(prod(tensor.shape)), pickle.TUPLE, pickle.BINPERSID),
    ]
    hooks = [_global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
    arguments = [*storage, _plain(0), _plain(tensor.shape), _plain(strides), pickle.NEWFALSE, *hooks]
    return [
        *(_global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK, *arguments),
        *(pickle.TUPLE, pickle.REDUCE),
    ]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value: str | int | tuple[int, ...]) -> bytes:
    """The opcodes that push a plain value: a pickle of it without head and stop."""
    return pickle.dumps(value, protocol=2)[2:-1]
