"""`janus verify`: its bounds for bfloat16, its cases, and mindone's Janus beside ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from commands import invoke, refusal
from mindspore import nn
from mint_on_cpu import use_cpu_forms
from paths import GOLDEN, needs_shared

from janus import device
from janus.checkpoint.folder import open_model
from janus.cli import main
from janus.inspect.bounds import Bounds, Check
from janus.inspect.verify import TASKS, Cases, _part_checks, _task_checks, open_cases

WEIGHTS = GOLDEN / "tiny" / "hf-format"
WRITES = ("Linear", "RMSNorm", "LayerNorm", "Gelu", "SwiGLU", "Rotary", "Attention", "Layer", "VisionLayer")
"""Cells whose results an Ascend writes in bfloat16."""


def _rows(output: str, columns: int) -> list[list[str]]:
    """The cells of a printed table's lines with so many columns, without head and rule."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()]
    return [cells for cells in lines if len(cells) == columns][2:]


def _rounded(tensor: Any) -> Any:
    """To 8 significant bits and back; so is the gradient on its way back."""
    return tensor.astype(ms.bfloat16).astype(ms.float32)


def _emulated(model: nn.Cell) -> None:
    """Round what an Ascend would: weights but for tables, and what each Cell writes."""

    def rounded(cell: nn.Cell, inputs: Any, output: Any) -> Any:
        return tuple(map(_rounded, output)) if isinstance(output, tuple) else _rounded(output)

    for p in model.get_parameters():
        if "embed" not in p.name:
            p.set_data(_rounded(p.value()))
    for _, cell in model.cells_and_names():
        if type(cell).__name__ in WRITES:
            cell.register_forward_hook(rounded)


def _checks(model: nn.Cell, bounds: Bounds, cases: Cases) -> Iterator[Check]:
    compile_ = device.compiler("pynative")
    yield from _part_checks(model, bounds, cases.arrays, compile_)
    for task in TASKS:
        yield from _task_checks(model, task, cases, bounds, compile_)


@needs_shared
def test_bfloat16s_bounds_hold_an_emulation_and_not_much_more() -> None:
    device.use("CPU")
    folder, cases = open_model(str(WEIGHTS)), open_cases(GOLDEN / "tiny")
    model, bounds = folder.build(), Bounds(folder.config, "bfloat16")
    _emulated(model)
    shares = {check.name: check.difference / check.tolerance for check in _checks(model, bounds, cases)}
    assert max(shares.values()) < 0.6
    for task in TASKS:  # what is rounded on every way shows: the bounds are not far off
        assert shares[f"{task}.logits (relative)"] > 0.1
    # A twentieth more in one norm is beyond them.
    model.language_model.norm.weight.set_data(model.language_model.norm.weight * 1.05)
    compile_ = device.compiler("pynative")
    checks = list(_task_checks(model, "text", cases, bounds, compile_))
    assert {"text.logits (relative)", "text.loss"} <= {check.name for check in checks if not check.passed}


def test_bounds_grow_with_the_roots_of_depth_and_know_nan() -> None:
    tiny, large = (open_model(name).config for name in ("tiny", "1b"))
    one, many = (Bounds(config, "bfloat16").logits("text") for config in (tiny, large))
    assert (one, many) == (1 + 16 * 2 + 1 + 2, 1 + 16 * 24 + 1 + 2)
    values = np.ones(4)
    check = Bounds(large, "bfloat16").values("x", values, values, many)
    assert check.tolerance == pytest.approx(2**-8 * many**0.5)
    assert check.passed
    assert not Bounds(large, "bfloat16").values("x", values * np.nan, values, many).passed
    assert not Bounds(tiny, "float32").norms("text", {"a": 1.0}, {"b": 1.0}).passed


@pytest.mark.slow
@needs_shared
def test_mindones_janus_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code on the same weights and batches; of its operations only those without a CPU kernel are
    other forms of the same."""
    for name in ("cases.safetensors", "cases.json", "hf-format"):
        (tmp_path / name).symlink_to(GOLDEN / "tiny" / name)
    use_cpu_forms(monkeypatch)
    output = invoke(main, "verify", tmp_path, "--mode", "pynative", "--peer", "mindone").output
    losses = open_cases(tmp_path).facts["losses"]
    rows = {row[1]: row for row in _rows(output, 9)}
    assert rows.keys() == losses.keys()
    for task, (dtype, _, ours, theirs, apart, *seconds, _, _) in rows.items():
        assert dtype == "float32"
        assert float(ours) == pytest.approx(losses[task], abs=1e-5)
        assert float(theirs) == pytest.approx(losses[task], abs=1e-5)
        assert float(apart) < 1e-3
        assert min(map(float, seconds)) > 0


@pytest.mark.slow
def test_own_cases_pass_but_for_what_is_off(sample_data: Path, tmp_path: Path) -> None:
    invoke(main, "cases", sample_data / "tiny", tmp_path / "cases")
    facts = tmp_path / "cases" / "cases.json"
    facts.write_text(facts.read_text().replace('"text": ', '"text": 1', 1))  # 11.2 becomes 111.2
    verdicts = {
        row[2]: row[-1] for row in _rows(invoke(main, "verify", tmp_path / "cases", code=1).output, 6)
    }
    assert {name for name, verdict in verdicts.items() if verdict != "ok"} == {"text.loss"}
    assert verdicts.keys() >= {"vqa.loss", "t2i.loss", "t2i.vq_latent", "vqa.logits", "text.logits"}


def test_cases_need_weights(tmp_path: Path) -> None:
    assert "has no weights" in refusal(main, "cases", "tiny", tmp_path / "cases")
    assert not (tmp_path / "cases").exists()


def test_a_peer_that_cannot_read_the_weights_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path} has no hf-format" in refusal(main, "verify", tmp_path, "--peer", "mindone")
