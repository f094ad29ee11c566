"""Graphs kept from one start to the next: found again, never the wrong one, never damaged."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore.graph.api import ms_compile_cache
from paths import ROOT
from trainer_shards import make_model, make_trainable

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


def test_a_kept_graph_computes_with_the_current_weights(tmp_path: Path) -> None:
    first = Graphs({}, tmp_path)
    assert _run(first, 10.0) == [11, 11]
    assert (first.count, first.loaded) == (1, 0)
    second = Graphs({}, tmp_path)
    assert _run(second, 10.0, weight=5.0) == [15, 15]
    assert (second.count, second.loaded) == (1, 1)


def test_graphs_are_kept_where_there_is_no_entry_script(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from mindspore import Tensor, nn\n"
        "from janus.common.graph_cache import Graphs\n"
        "relu = Graphs({}, Path(os.environ['KEPT'])).compile(nn.ReLU(), 'relu')\n"
        "print(relu(Tensor([-1.0, 2.0])).asnumpy())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KEPT": str(tmp_path)}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == "[0. 2.]\n", run.stderr
    assert len(list(tmp_path.glob("*.mindir"))) == 1


def test_graphs_are_found_in_any_order_and_among_others(tmp_path: Path) -> None:
    first = Graphs({}, tmp_path)
    assert [_run(first, c)[0] for c in (10, 20, 30)] == [11, 21, 31]
    second = Graphs({}, tmp_path)
    assert [_run(second, c)[0] for c in (30, 40, 10)] == [31, 41, 11]
    assert _run(Graphs({}, None), 50) == [51, 51]
    assert _run(second, 20) == [21, 21]
    assert (second.count, second.loaded) == (4, 3)


def test_other_facts_and_other_shapes_are_other_graphs(tmp_path: Path) -> None:
    _run(Graphs({"dtype": "float32"}, tmp_path), 10.0)
    other = Graphs({"dtype": "bfloat16"}, tmp_path)
    _run(other, 10.0)
    same = Graphs({"dtype": "float32"}, tmp_path)
    assert _run(same, 10.0, x=Tensor(np.ones((3, 2), np.float32))) == [[11, 11]] * 3
    assert (other.loaded, same.loaded) == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "byte", "other"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: str) -> None:
    _run(Graphs({}, tmp_path), 10.0)
    (path,) = tmp_path.glob("*.mindir")
    content = path.read_bytes()
    if damage == "other":
        other = tmp_path / "other"
        _run(Graphs({}, other), 99.0)
        (foreign,) = other.glob("*.mindir")
        path.write_bytes(foreign.read_bytes())
    else:
        middle = len(content) // 2
        rest = bytes([content[middle] ^ 1]) + content[middle + 1 :] if damage == "byte" else b""
        path.write_bytes(content[:middle] + rest)
    again = Graphs({}, tmp_path)
    assert _run(again, 10.0) == [11, 11]
    assert again.loaded == 0
    after = Graphs({}, tmp_path)
    assert _run(after, 10.0, weight=2.0) == [12, 12]
    assert after.loaded == 1


def test_what_mindspore_calls_a_compilation_is_counted(tmp_path: Path) -> None:
    graphs, before = Graphs({}, tmp_path), len(ms_compile_cache)
    run = graphs.compile(_Line(1.0, 60.0), "line 60")
    for rows in (2, 2, 3, 2, 3):
        run(Tensor(np.ones((rows, 2), np.float32)))
    assert graphs.count == len(ms_compile_cache) - before == 2
    assert graphs.seconds > 0


def test_a_folder_that_cannot_be_written_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    graphs = Graphs({}, read_only)
    assert _run(graphs, 10.0) == [11, 11]
    assert graphs.loaded == 1


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
    make_model(tmp_path / "model")
    make_trainable(tmp_path / "shards", {"vqa": 7, "text": 4, "t2i": 6})
    first, second = _train(tmp_path, "first"), _train(tmp_path, "second")
    assert [record["loaded"] for record in (first[-1], second[-1])] == [0, second[-1]["compilations"]]
    for name in ("loss", "loss_per_task", "grad_norm"):
        assert [record[name] for record in first] == [record[name] for record in second]


def _train(work: Path, out: str) -> list[dict]:
    """The steps' records of a run in a process of its own, validation before it included."""
    command = [sys.executable, "-m", "trainer", "train", "--model", "model", "--shards", "shards"]
    command += ["--steps", "3", "--learning-rate", "1e-2", "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JANUS_CACHE": str(work / "graphs")}
    run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    records = map(json.loads, (work / out / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "step"]
