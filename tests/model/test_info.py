"""`janus info`: sizes, parameters and the bytes of a stage, without a single weight allocated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from math import prod

import pytest
from click.testing import CliRunner
from paths import GOLDEN, ROOT, SHARED, needs_shared

from janus.cli import main
from janus.inspect.memory import Load, activations, stage_bytes
from janus.model.config import PRESETS, JanusConfig, TextConfig, VisionConfig, VQConfig
from janus.model.janus import PARTS, parameter_shapes, part_of
from janus.model.stages import trained_parts

TOY = JanusConfig(
    TextConfig(hidden_size=8, num_layers=3, num_heads=2, intermediate_size=5, vocab_size=11),
    VisionConfig(hidden_size=6, num_layers=2, num_heads=3, intermediate_size=7, image_size=32),
    VQConfig(num_embeddings=13, embed_dim=4),
)
LOAD = Load(rows=2, length=10, answer=3, dtype="float32")


def _info(*arguments: object) -> dict:
    result = CliRunner().invoke(main, ["info", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def _parts(config: JanusConfig) -> dict[str, int]:
    parts = dict.fromkeys(PARTS, 0)
    for name, shape in parameter_shapes(config).items():
        parts[part_of(name)] += prod(shape)
    return parts


@needs_shared
@pytest.mark.parametrize("size", ["1b", "7b"])
def test_parameters_are_those_of_the_published_keymap(size: str) -> None:
    rows = (SHARED / "reference" / f"keymap_janus_pro_{size}.tsv").read_text().splitlines()[1:]
    shapes = [line.split("\t")[3].strip("()").split(",") for line in rows if line.split("\t")[2]]
    expected = sum(prod(int(side) for side in shape if side.strip()) for shape in shapes)
    assert sum(_info(size)["parameters"].values()) == expected


@needs_shared
@pytest.mark.parametrize(("name", "layout"), [("hf-format", "transformers"), ("deepseek-format", "deepseek")])
def test_a_checkpoint_is_described(name: str, layout: str) -> None:
    found = _info(GOLDEN / "tiny" / name)
    assert (found["layout"], found["dtypes"]) == (layout, ["F32"])
    assert found["bytes_on_disk"] == 4 * sum(found["parameters"].values())
    text = CliRunner().invoke(main, ["info", str(GOLDEN / "tiny" / name)]).output
    assert f"{layout} layout, F32" in text
    assert f"parameters: {sum(found['parameters'].values()):,}" in text


def test_weights_gradients_and_moments_follow_from_what_a_stage_trains() -> None:
    parts = _parts(TOY)
    for stage in (1, 2, 3):
        needed = stage_bytes(TOY, parts, stage, LOAD, train_gen_embed=True)
        trained = sum(parts[part] for part in trained_parts(stage, True))
        assert needed.weights == 4 * (sum(parts.values()) - parts["vq"])
        assert (needed.gradients, needed.moments, needed.casts) == (4 * trained, 8 * trained, 0)
        assert needed.total == needed.weights + 12 * trained + needed.activations
    half = stage_bytes(TOY, parts, 3, replace(LOAD, dtype="bfloat16"), train_gen_embed=True)
    assert (half.casts, 2 * half.activations) == (needed.weights // 2, needed.activations)


def test_activations_are_the_formulas() -> None:
    """Counted by hand for 2 rows of 10: 20 positions; one image a row: 8 patches."""
    whole = 20 * (9 * 8 + 4 * 5) + 2 * 2 * 100  # a trained Llama layer
    passed = 20 * (6 * 8 + 3 * 5) + 2 * 2 * 100  # a frozen one
    around = 8 * 20 * 8 + 2 * 2 * 100
    text_head, image_head = 6 * (8 + 3 * 11), 8 * 3 * (8 + 13)
    siglip = 2 * (8 * (9 * 6 + 3 * 7) + 2 * 3 * 16)
    second, third = trained_parts(2, True), trained_parts(3, True)
    assert activations(TOY, "text", LOAD, second) == 4 * whole + around + text_head
    assert activations(TOY, "vqa", LOAD, second) == 4 * whole + around + text_head + 8 * (6 + 16)
    assert activations(TOY, "vqa", LOAD, third) == 4 * whole + around + text_head + 8 * (6 + 16) + siglip
    assert activations(TOY, "t2i", LOAD, third) == 4 * whole + around + image_head + 8 * (4 + 16)
    assert activations(TOY, "t2i", LOAD, trained_parts(1, True)) == 4 * passed + around + image_head + 8 * 20


def test_stage_1_never_counts_text_which_has_nothing_to_train() -> None:
    long_answers = replace(LOAD, answer=10_000)
    assert stage_bytes(TOY, _parts(TOY), 1, long_answers, True).task == "vqa"
    assert stage_bytes(PRESETS["1b"], _parts(PRESETS["1b"]), 1, replace(LOAD, answer=1), True).task == "t2i"


def test_no_weight_is_allocated() -> None:
    script = (
        "from pathlib import Path\nfrom janus.cli import main\n"
        "main(['info', '7b'], standalone_mode=False)\n"
        # Not ru_maxrss: that is the parent's where it was higher.
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 1_000_000  # KiB; 7B in float32 is 29 million


def test_help_answers_without_mindspore() -> None:
    script = "import sys\nfrom janus.cli import main\nmain(['convert', '--help'], standalone_mode=False)\n"
    script += "assert 'mindspore' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
