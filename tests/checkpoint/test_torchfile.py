"""torch's .bin, read without torch: what is let through, and what is refused and not run."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_files import plain, save_torch, state_dict, tensor_opcodes, write_archive

from janus.checkpoint.tensors import DTYPES, StoredTensor
from janus.checkpoint.torchfile import open_torch
from janus.common.errors import UserError

VALUES = np.arange(6, dtype="<f4")


def _pickle(start: int, shape: tuple, strides: tuple, key: str = "0", count: int = 6) -> bytes:
    return state_dict({"w": tensor_opcodes(key, "F32", count, start, shape, strides)})


HONEST = _pickle(0, (2, 3), (3, 1))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of that pickle, storage 0 being VALUES."""
    return partial(write_archive, tmp_path / "w.bin", storages={"0": VALUES.tobytes()})


def test_views_of_a_storage_keep_their_place(write: Callable) -> None:
    read = open_torch(write(_pickle(2, (2, 1, 2), (2, 99, 1))))
    np.testing.assert_array_equal(read["w"].float32(), [[[2, 3]], [[4, 5]]])


@pytest.mark.parametrize(
    ("pickled", "options", "message"),
    [
        (_pickle(0, (2, 3), (1, 2)), {}, r"strides \(1, 2\); save it again with .contiguous"),
        (_pickle(3, (2, 3), (3, 1)), {}, "reaches beyond its storage"),
        (_pickle(0, (-2, 3), (3, 1)), {}, "reaches beyond its storage"),
        (_pickle(0, (2, 3), (3, 1), key="7"), {}, "storage 7 is missing"),
        (_pickle(0, (2, 3), (3, 1), count=7), {}, "storage 0 is too short"),
        (HONEST, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        (HONEST, {"byteorder": "big"}, "big-endian"),
        (HONEST[:-9], {}, "its pickle is broken"),
        (pickle.dumps([1], 2), {}, "holds a list; expected tensors by name"),
        (pickle.dumps({"epoch": 3}, 2), {}, "epoch is no tensor"),
        (b"\x80\x02]q\x00(K\x01K\x02tQ.", {}, "its pickle is broken"),
    ],
)
def test_what_is_no_whole_file_of_plain_tensors_is_refused(
    write: Callable, pickled: bytes, options: dict[str, Any], message: str
) -> None:
    path = write(pickled, **options)
    with pytest.raises(UserError, match=message) as error:
        open_torch(path)
    assert str(path) in error.value.message
    assert "\n" not in error.value.message


class _Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (getattr, "builtins.getattr")],
)
def test_a_foreign_name_is_refused_and_nothing_runs(
    write: Callable, tmp_path: Path, function: Any, name: str, protocol: int
) -> None:
    mark = tmp_path / "ran"
    code = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')"
    evil = pickle.dumps({"w": _Runs(function, code)}, protocol).replace(b"__builtin__", b"builtins")
    with pytest.raises(UserError, match=rf"its pickle asks for {name}, which no tensor needs; refused"):
        open_torch(write(evil))
    assert not mark.exists()


def test_a_pickle_cannot_change_what_it_is_given(write: Callable) -> None:
    """BUILD sets attributes: on the stand-ins (none of them lasts), or on a tensor (refused)."""
    elsewhere = plain({"path": "/etc/passwd", "offset": 0}) + b"b"
    with pytest.raises(UserError, match="its pickle is broken"):
        open_torch(write(HONEST[:-2] + elsewhere + b"s."))
    hidden = b"\x80\x02ccollections\nOrderedDict\n)R" + plain({"items": 1, "keys": 1}) + b"b."
    assert open_torch(write(hidden)) == {}


def test_a_state_dict_with_metadata_is_read(write: Callable) -> None:
    """model.state_dict() is an OrderedDict with an attribute."""
    content = OrderedDict()
    content._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    assert open_torch(write(pickle.dumps(content, 2))) == {}


def test_files_cut_anywhere_or_of_the_old_format_are_refused(write: Callable) -> None:
    path = write(HONEST)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole torch file"):
            open_torch(path)
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(UserError, match=r"in torch's format from before 1\.6"):
        open_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(UserError, match=r"a zip without torch's data\.pkl"):
        open_torch(path)


SHAPES = st.lists(st.integers(0, 5), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), min_size=1, max_size=4))
def test_every_dtype_and_shape_is_read(tmp_path_factory: pytest.TempPathFactory, specs: Any) -> None:
    folder = tmp_path_factory.mktemp("torch")
    stored = {}
    for i, (dtype, shape) in enumerate(specs):
        array = np.random.default_rng(i).integers(0, 99, shape).astype(DTYPES[dtype])
        (folder / str(i)).write_bytes(array.tobytes())
        stored[f"layer.{i}"] = StoredTensor(dtype, tuple(shape), folder / str(i), 0)
    read = open_torch(save_torch(folder / "w.bin", stored))
    assert list(read) == list(stored)
    for name, tensor in stored.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(read[name].data, tensor.data)
