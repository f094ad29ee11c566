"""`pytorch_model.bin` without PyTorch, and without running what its pickle may contain.

Such a file is a zip of stored (uncompressed) members: `data.pkl`, which names tensors and how they lie in
storages, and `data/<key>`, the storages. The pickle may name only what rebuilds tensors; each name is given
an inert stand-in of ours, anything else is refused by name before it is looked up.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from janus.checkpoint.tensors import DTYPES, StoredTensor
from janus.common.errors import UserError

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""torch's names of storages, and ours of their elements."""

_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name


class _Storage(NamedTuple):
    """A stretch of elements in the file. A tuple, as `_View`: a pickle can change nothing in it."""

    dtype: str
    elements: int
    offset: int


class _View(NamedTuple):
    """A tensor as the pickle describes it."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def open_torch(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; only the pickle is read.

    Raises UserError for what is not a whole torch zip of plain tensors, and for a pickle that asks for
    anything beyond them.
    """
    with path.open("rb") as file:
        if file.read(len(_LEGACY_START)) == _LEGACY_START:
            raise UserError(
                f"{path}: in torch's format from before 1.6, which is no zip; save it again with "
                "torch.save(torch.load(FILE), FILE)"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                return _Archive(path, archive, file).tensors()
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a whole torch file ({error}); fetch or copy it again") from error


class _Archive:
    """The open zip."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, file: io.BufferedReader) -> None:
        self.path, self.file = path, file
        self.members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip without torch's data.pkl; expected what torch.save writes")
        self.prefix = pickles[0].removesuffix("data.pkl")
        order = f"{self.prefix}byteorder"
        if order in self.members and archive.read(order) != b"little":
            raise UserError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
        self.pickle = archive.read(pickles[0])

    def tensors(self) -> dict[str, StoredTensor]:
        """The state dict."""
        try:
            content = _TensorUnpickler(self).load()
        except UserError:
            raise
        except Exception as error:  # a broken pickle fails in any of pickle's ways
            raise UserError(f"{self.path}: its pickle is broken ({error}); fetch or copy it again") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.path}: holds a {type(content).__name__}; expected tensors by name")
        tensors = {}
        for name, value in dict.items(content):  # not content.items: a pickle can hide that
            if not isinstance(value, _View):
                raise UserError(f"{self.path}: {name} is no tensor; save the model's state_dict alone")
            tensors[str(name)] = StoredTensor(value.dtype, value.shape, self.path, value.offset)
        return tensors

    def storage(self, dtype: str, key: str, count: int) -> _Storage:
        """Where a storage lies. Raises UserError where it is absent, compressed or too short."""
        member = self.members.get(f"{self.prefix}data/{key}")
        if member is None:
            raise UserError(f"{self.path}: storage {key} is missing; fetch or copy the file again")
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self.path}: {member.filename} is compressed; save it again with torch.save")
        if member.file_size < count * DTYPES[dtype].itemsize:
            raise UserError(f"{self.path}: storage {key} is too short; fetch or copy the file again")
        # The member's own header says how long its name and padding are; the central directory's differ.
        self.file.seek(member.header_offset)
        header = self.file.read(_LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return _Storage(dtype, count, member.header_offset + _LOCAL_HEADER + names)

    def tensor(
        self, storage: _Storage, start: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> _View:
        """A view of a storage. Raises UserError where it is not contiguous or reaches beyond it."""
        strides_of_rows = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        if any(n > 1 and a != b for n, a, b in zip(shape, strides, strides_of_rows, strict=True)):
            raise UserError(
                f"{self.path}: a tensor of shape {shape} has strides {strides}; "
                "save it again with .contiguous()"
            )
        if min((start, *shape)) < 0 or start + prod(shape) > storage.elements:
            raise UserError(
                f"{self.path}: a tensor of shape {shape} reaches beyond its storage; fetch it again"
            )
        offset = storage.offset + start * DTYPES[storage.dtype].itemsize
        return _View(storage.dtype, shape, offset)


class _TensorUnpickler(pickle.Unpickler):
    """Knows a handful of names, none of which does anything but describe a tensor."""

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle))
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name. Made anew each time: a pickle can set attributes on what it is given."""
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        raise UserError(
            f"{self.archive.path}: its pickle asks for {module}.{name}, which no tensor needs; refused, "
            "nothing was run; use a file that holds tensors alone, from a source you trust"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor names."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in DTYPES:
            raise UserError(
                f"{self.archive.path}: its pickle names a {kind} of {dtype}; expected tensors alone"
            )
        return self.archive.storage(dtype, str(key), int(count))

    def _rebuild_tensor(self) -> Callable[..., _View]:
        archive = self.archive

        def rebuild(storage, start, shape, strides, *rest):  # type: ignore[no-untyped-def]
            if not isinstance(storage, _Storage):
                raise UserError(
                    f"{archive.path}: a tensor without a storage; expected what torch.save writes"
                )
            return archive.tensor(storage, int(start), tuple(map(int, shape)), tuple(map(int, strides)))

        return rebuild
