"""`pytorch_model.bin` without PyTorch, and without running what its pickle may contain.

Such a file is a zip of uncompressed members: `data.pkl`, which names tensors and how they lie in storages,
and `data/<key>`, the storages. The pickle may name only what rebuilds tensors; each name is given an inert
stand-in of ours, anything else is refused by name before it is looked up.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from janus.checkpoint.tensors import DTYPES, StoredTensor
from janus.common.errors import UserError

_NAMES = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
STORAGES = {f"{name}Storage": dtype for name, dtype in zip(_NAMES, DTYPES, strict=True)}
"""torch's names of storages, in the order of DTYPES, and ours of their elements."""
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name


class _View(NamedTuple):
    """A tensor or a flat storage, as the pickle describes it. A tuple: a pickle can change nothing in it."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def open_torch(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; only the pickle is read.

    Raises UserError for what is not a whole torch zip of plain tensors, and for a pickle that asks for more.
    """
    with path.open("rb") as file:
        if file.read(len(_LEGACY_START)) == _LEGACY_START:
            raise UserError(
                f"{path}: in torch's format from before 1.6, which is no zip; save it again with "
                "torch.save(torch.load(FILE), FILE)"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                return _TensorUnpickler(path, archive, file).tensors()
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a whole torch file ({error}); fetch or copy it again") from error


class _TensorUnpickler(pickle.Unpickler):
    """The open zip. Its pickle finds a handful of names; none does anything but describe a tensor."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, file: io.BufferedReader) -> None:
        self.path, self.file = path, file
        self.members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self.error("a zip without torch's data.pkl; expected what torch.save writes")
        self.prefix = pickles[0].removesuffix("data.pkl")
        order = f"{self.prefix}byteorder"
        if order in self.members and archive.read(order) != b"little":
            raise self.error("written on a big-endian machine; save it again on a little-endian one")
        super().__init__(io.BytesIO(archive.read(pickles[0])))

    def error(self, problem: str) -> UserError:
        """The error that names this file."""
        return UserError(f"{self.path}: {problem}")

    def tensors(self) -> dict[str, StoredTensor]:
        """The state dict."""
        try:
            content = self.load()
        except UserError:
            raise
        except Exception as error:  # a broken pickle fails in any of pickle's ways
            raise self.error(f"its pickle is broken ({error}); fetch or copy it again") from error
        if not isinstance(content, dict):
            raise self.error(f"holds a {type(content).__name__}; expected tensors by name")
        tensors = {}
        for name, value in dict.items(content):  # not content.items: a pickle can hide that
            if not isinstance(value, _View):
                raise self.error(f"{name} is no tensor; save only the model's state_dict")
            tensors[str(name)] = StoredTensor(value.dtype, value.shape, self.path, value.offset)
        return tensors

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name. Made anew each time: a pickle can set attributes on what it is given."""
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        match f"{module}.{name}":
            case "collections.OrderedDict":
                return OrderedDict
            case "torch._utils._rebuild_tensor_v2":
                return lambda *described: self.tensor(*described)
            case "torch._utils._rebuild_parameter":
                return lambda tensor, requires_grad, hooks: tensor
        raise self.error(
            f"its pickle asks for {module}.{name}, which no tensor needs; refused, nothing was run; "
            "use a file that holds only tensors, from a source you trust"
        )

    def persistent_load(self, pid: Any) -> _View:
        """The storage that a tensor names. Raises UserError where it is absent, compressed or too short."""
        _, dtype, key, _, count = pid
        member = self.members.get(f"{self.prefix}data/{key}")
        if member is None:
            raise self.error(f"storage {key} is missing; fetch or copy the file again")
        if member.compress_type != zipfile.ZIP_STORED:
            raise self.error(f"{member.filename} is compressed; save it again with torch.save")
        if member.file_size < int(count) * DTYPES[dtype].itemsize:
            raise self.error(f"storage {key} is too short; fetch or copy the file again")
        # The member's own header says how long its name and padding are; the central directory's differ.
        self.file.seek(member.header_offset)
        header = self.file.read(_LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return _View(dtype, (int(count),), member.header_offset + _LOCAL_HEADER + names)

    def tensor(self, storage: Any, start: Any, shape: Any, strides: Any, *rest: Any) -> _View:
        """A view of a storage. Raises UserError where it is not contiguous or reaches beyond it."""
        if not isinstance(storage, _View):
            raise self.error("a tensor without a storage; expected what torch.save writes")
        start, shape = int(start), tuple(map(int, shape))
        expected = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        if any(n > 1 and a != b for n, a, b in zip(shape, map(int, strides), expected, strict=True)):
            raise self.error(
                f"a tensor of shape {shape} has strides {strides}; save it again with .contiguous()"
            )
        if min((start, *shape)) < 0 or start + prod(shape) > prod(storage.shape):
            raise self.error(f"a tensor of shape {shape} reaches beyond its storage; fetch it again")
        return _View(storage.dtype, shape, storage.offset + start * DTYPES[storage.dtype].itemsize)
