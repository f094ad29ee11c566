"""Numbers that may not change unnoticed: the plan's order, the sample's shards, the weights of a short run.

A change that is meant to leave the numbers alone leaves `frozen.json` alone. One that must change them
says so in its commit and writes the file again: `python -m pytest tests/house/test_frozen.py -m '' --freeze`.

Order and shards are the same on every processor. Weights round differently on another one: their bits are
frozen for each processor they were computed on; elsewhere losses and norms are held to a tolerance.
"""

import hashlib
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from raw_data import build_command, run_well
from runs import train_well
from safetensors.numpy import load_file
from trainer_shards import make_model, make_trainable, realistic_lengths

from janus.common.files import hash_file
from trainer.stream.plan import Plan

FROZEN = Path(__file__).with_name("frozen.json")


@pytest.fixture
def frozen(request: pytest.FixtureRequest) -> Any:
    """Compares a value with the frozen one of that name, or freezes it."""

    def check(name: str, value: Any) -> Any:
        content = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
        if request.config.getoption("--freeze"):
            content[name] = value
            FROZEN.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return content.get(name)

    return check


def _processor() -> str:
    """What decides how sums round: the processor's model, its vector units and the number of cores."""
    info = Path("/proc/cpuinfo")
    first = info.read_text().partition("\n\n")[0] if info.is_file() else ""
    facts = dict(re.findall(r"^(.+?)\s*: (.*)$", first, flags=re.M))
    model = " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping"))
    vectors = "AVX-512" if "avx512f" in facts.get("flags", "") else "AVX2"
    return f"{platform.machine()} {model}, {vectors}, {os.cpu_count()} cores"


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_the_plan_deals_the_same_samples_in_the_same_order(frozen: Any) -> None:
    counts, cut = {"vqa": 5, "text": 1, "t2i": 4}, {"vqa": 3, "text": 1, "t2i": 4}
    weights = {}
    for task in counts:
        tokens, supervised = realistic_lengths(task)
        weights[task] = tokens / tokens.mean() + supervised / supervised.mean()
    plan = Plan(7, weights, counts, cut)
    drawn = {task: plan.draw(task, 1, 1000) for task in counts}
    order = _sha256({task: [draw.indices.tolist(), draw.epochs.tolist()] for task, draw in drawn.items()})
    assert order == frozen("plan", order)


@pytest.mark.slow
def test_the_sample_gives_the_same_shards(sample_data: Path, tmp_path: Path, frozen: Any) -> None:
    run_well(
        *build_command(sample_data, tmp_path, sample_data / "tokenizer", "--model", sample_data / "tiny")
    )
    out = tmp_path / "shards"
    shards = {path.relative_to(out).as_posix(): hash_file(path) for path in sorted(out.rglob("*.arrow"))}
    assert shards == frozen("shards", shards)


def test_four_mixed_steps_give_the_same_weights(tmp_path: Path, frozen: Any) -> None:
    make_model(tmp_path / "model")
    make_trainable(tmp_path / "shards", {"vqa": 7, "text": 4, "t2i": 6})
    options = (
        "--model",
        "model",
        "--shards",
        "shards",
        "--steps",
        4,
        "--learning-rate",
        1e-2,
        "--out",
        "run",
    )
    train_well(tmp_path, *options)

    ledger = pl.read_ipc(tmp_path / "run/ledger/*.arrow")
    order = _sha256(ledger.select("step", "task", "sample_id", "epoch", "micro_batch").rows())
    assert order == frozen("ledger", order)

    weights = load_file(tmp_path / "run/checkpoints/step-000004/model.safetensors")
    bits = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()
    assert frozen(f"weights on {_processor()}", bits) in (bits, None)  # None: a processor never frozen on
    # Elsewhere only what does not hang on the sign of a gradient that is all rounding, as a key's bias has.
    metrics = pl.read_ndjson(tmp_path / "run/metrics.jsonl").filter(pl.col("kind") == "step")
    numbers = metrics.select("loss", "grad_norm").to_dict(as_series=False)
    for name, values in frozen("numbers", numbers).items():
        assert numbers[name] == pytest.approx(values, rel=2e-5), name
