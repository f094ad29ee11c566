"""Graphs kept from one start to the next: found again, never the wrong one, never damaged."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from commands import python
from mindspore import Parameter, Tensor, nn
from mindspore.graph.api import ms_compile_cache
from runs import make_work

from janus import device
from janus.common.graph_cache import KEPT_SECONDS, Graphs, graph_folder, sources_digest
from trainer.config import TrainConfig

ONES = Tensor(np.ones(2, np.float32))


class _Line(nn.Cell):
    """weight · x + constant: one number is bound from outside, the other is part of the graph."""

    def __init__(self, weight: float, constant: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight = Parameter(Tensor(np.full(2, weight, np.float32)), name="weight")
        self.constant = Tensor(np.float32(constant))

    def construct(self, x: Tensor) -> Tensor:
        return x * self.weight + self.constant


@pytest.fixture(autouse=True)
def _op_by_op() -> None:
    device.use()


def _run(graphs: Graphs, constant: float, weight: float = 1.0, x: Tensor = ONES) -> list[float]:
    return graphs.compile(_Line(weight, constant), f"line {constant}")(x).asnumpy().tolist()


def _check_loaded(folder: Path, constant: float = 10.0) -> None:
    """The graph is found, and computes with the current weights."""
    graphs = Graphs({}, folder)
    assert _run(graphs, constant, weight=5.0) == [5 + constant] * 2
    assert (graphs.count, graphs.loaded) == (1, 1)


def test_graphs_are_kept_where_there_is_no_entry_script(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from mindspore import Tensor, nn\n"
        "from janus.common.graph_cache import Graphs\n"
        "relu = Graphs({}, Path(os.environ['KEPT'])).compile(nn.ReLU(), 'relu')\n"
        "print(relu(Tensor([-1.0, 2.0])).asnumpy())"
    )
    assert python("-c", script, KEPT=tmp_path).stdout == "[0. 2.]\n"
    assert len(list(tmp_path.glob("*.mindir"))) == 1


def test_graphs_are_found_in_any_order_and_among_others(tmp_path: Path) -> None:
    first = Graphs({}, tmp_path)
    assert [_run(first, c)[0] for c in (10, 20, 30)] == [11, 21, 31]
    assert (first.count, first.loaded) == (3, 0)
    second = Graphs({}, tmp_path)
    assert [_run(second, c)[0] for c in (30, 40, 10)] == [31, 41, 11]
    assert _run(Graphs({}, None), 50) == [51, 51]
    assert _run(second, 20) == [21, 21]
    assert (second.count, second.loaded) == (4, 3)
    _check_loaded(tmp_path, 10)


def test_other_facts_and_other_shapes_are_other_graphs(tmp_path: Path) -> None:
    _run(Graphs({"dtype": "float32"}, tmp_path), 10.0)
    other, same = (Graphs({"dtype": dtype}, tmp_path) for dtype in ("bfloat16", "float32"))
    _run(other, 10.0)
    assert _run(same, 10.0, x=Tensor(np.ones((3, 2), np.float32))) == [[11, 11]] * 3
    assert (other.loaded, same.loaded) == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "byte", "other"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: str) -> None:
    _run(Graphs({}, tmp_path), 10.0)
    _run(Graphs({}, tmp_path / "other"), 99.0)
    (path,), (foreign,) = (folder.glob("*.mindir") for folder in (tmp_path, tmp_path / "other"))
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:middle], "byte": flipped, "other": foreign.read_bytes()}[damage])
    again = Graphs({}, tmp_path)
    assert _run(again, 10.0) == [11, 11]
    assert again.loaded == 0
    _check_loaded(tmp_path)


def test_what_mindspore_calls_a_compilation_is_counted(tmp_path: Path) -> None:
    graphs, before = Graphs({}, tmp_path), len(ms_compile_cache)
    run = graphs.compile(_Line(1.0, 60.0), "line 60")
    for rows in (2, 2, 3, 2, 3):
        run(Tensor(np.ones((rows, 2), np.float32)))
    assert graphs.count == len(ms_compile_cache) - before == 2
    assert graphs.seconds > 0


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert _run(Graphs({}, tmp_path / "file" / "graphs"), 10.0) == [11, 11]
    assert "graphs are not kept for the next start" in capsys.readouterr().err


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a kept graph on a read-only file system."""
    _run(Graphs({}, tmp_path), 10.0)
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        if subprocess.run(["mount", *options, tmp_path, tmp_path], capture_output=True).returncode:
            pytest.skip("mounting needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_graphs_of_a_read_only_folder_are_used(read_only: Path) -> None:
    _check_loaded(read_only)


def test_half_written_files_of_killed_runs_are_removed_in_time(tmp_path: Path) -> None:
    for name, age in (("old", KEPT_SECONDS + 1), ("new", 0)):
        (tmp_path / f".tmp-{name}").touch()
        os.utime(tmp_path / f".tmp-{name}", (time.time() - age,) * 2)
    _run(Graphs({}, tmp_path), 10.0)
    assert [path.name for path in tmp_path.glob(".tmp-*")] == [".tmp-new"]


def test_the_folder_is_in_the_users_cache_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_CACHE", "")
    assert graph_folder() is None
    monkeypatch.setenv("JANUS_CACHE", "/somewhere")
    assert graph_folder() == Path("/somewhere")
    monkeypatch.delenv("JANUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert graph_folder() == Path("/cache/janus-tune/graphs")


def test_options_that_decide_a_graph_are_in_its_key() -> None:
    options = TrainConfig().in_graphs()
    changes = {"stage": 2, "train_gen_embed": False, "dtype": "bfloat16", "gradient_checkpointing": True}
    for name, value in {**changes, "beta1": 0.8, "beta2": 0.9, "device": "CPU", "task": "text"}.items():
        assert TrainConfig(**{name: value}).in_graphs() != options, name
    assert TrainConfig(steps=7, out="elsewhere", learning_rate=1.0, model="x").in_graphs() == options


def test_a_changed_source_in_any_folder_of_a_package_is_another_key(tmp_path: Path) -> None:
    deep = tmp_path / "package" / "room" / "file.py"
    deep.parent.mkdir(parents=True)
    deep.write_text("x = 1")
    before = sources_digest(tmp_path / "package")
    deep.write_text("x = 2")
    assert sources_digest(tmp_path / "package") != before


@pytest.mark.slow
def test_the_second_start_of_a_run_has_the_numbers_of_the_first(tmp_path: Path) -> None:
    """Two processes: validation, steps and updates are compiled in the first and loaded in the second."""
    make_work(tmp_path)
    options = ("--model", "model", "--shards", "shards", "--steps", "3", "--learning-rate", "1e-2")
    for out in ("first", "second"):
        python(
            "-m", "trainer", "train", *options, "--out", out, cwd=tmp_path, JANUS_CACHE=tmp_path / "graphs"
        )
    first, second = (pl.read_ndjson(tmp_path / out / "metrics.jsonl") for out in ("first", "second"))
    first, second = (records.filter(kind="step") for records in (first, second))
    assert first["loaded"][-1] == 0
    assert second["loaded"][-1] == second["compilations"][-1]
    numbers = ("loss", "loss_per_task", "grad_norm")
    assert first.select(numbers).equals(second.select(numbers))
