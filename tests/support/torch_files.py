"""torch's .bin files without torch: a zip of a pickle and storages, put together by hand."""

import pickle
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from janus.checkpoint.tensors import StoredTensor
from janus.checkpoint.torchfile import STORAGES


def plain(value: Any) -> bytes:
    """The opcodes that push a plain value: its pickle without start and stop."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor_opcodes(
    key: str, dtype: str, count: int, start: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage of `count` elements, start, shape, strides, …), as pickled."""
    (storage,) = (name for name, kind in STORAGES.items() if kind == dtype)
    kind = f"ctorch\n{storage}\n".encode()
    place = b"(" + plain("storage") + kind + plain(key) + plain("cpu") + plain(count) + b"tQ"
    arguments = place + b"".join(map(plain, (start, shape, strides, False)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"ccollections\nOrderedDict\n)RtR"


def state_dict(tensors: Mapping[str, bytes]) -> bytes:
    """The pickle of {name: tensor}, from each tensor's opcodes."""
    entries = (plain(name) + opcodes + b"s" for name, opcodes in tensors.items())
    return b"\x80\x02}" + b"".join(entries) + b"."


def write_archive(path: Path, pickled: bytes, storages: Mapping[str, bytes], **members: Any) -> Path:
    """The zip that torch.save would write. members: another `compression` or `byteorder`."""
    with zipfile.ZipFile(path, "w", members.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", members.get("byteorder", "little"))
        for key, content in storages.items():
            archive.writestr(f"x/data/{key}", content)
    return path


def save_torch(path: Path, tensors: Mapping[str, StoredTensor]) -> Path:
    """The tensors as a state dict, each in a storage of its own."""
    pickled, storages = {}, {}
    for key, (name, tensor) in enumerate(tensors.items()):
        strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
        count = prod(tensor.shape)
        pickled[name] = tensor_opcodes(str(key), tensor.dtype, count, 0, tensor.shape, strides)
        storages[str(key)] = tensor.data.tobytes()
    return write_archive(path, state_dict(pickled), storages)
