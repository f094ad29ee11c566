"""`janus info`: sizes, parameters and the bytes of a stage, without a single weight allocated; operations."""

import json
from collections import Counter
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from commands import invoke, python
from paths import GOLDEN, needs_shared

from bench.measures.step import text_step_flops
from janus.cli import main
from janus.inspect.costs import Load, Work, activations, operations, stage_bytes
from janus.model.config import PRESETS, JanusConfig, TextConfig, VisionConfig, VQConfig
from janus.model.janus import PARTS, parameter_shapes, part_of
from janus.model.stages import trained_parts
from janus.prompts import SIGNATURES

TOY = JanusConfig(
    TextConfig(hidden_size=8, num_layers=3, num_heads=2, intermediate_size=5, vocab_size=11),
    VisionConfig(hidden_size=6, num_layers=2, num_heads=3, intermediate_size=7, image_size=32),
    VQConfig(num_embeddings=13, embed_dim=4),
)
LOAD = Load(rows=2, length=10, answer=3, dtype="float32")


def _info(*arguments: object) -> dict:
    return json.loads(invoke(main, "info", *arguments, "--json").output)


def _parts(config: JanusConfig) -> dict[str, int]:
    parts = dict.fromkeys(PARTS, 0)
    for name, shape in parameter_shapes(config).items():
        parts[part_of(name)] += prod(shape)
    return parts


@needs_shared
@pytest.mark.parametrize(("name", "layout"), [("hf-format", "transformers"), ("deepseek-format", "deepseek")])
def test_a_checkpoint_is_described(name: str, layout: str) -> None:
    found = _info(GOLDEN / "tiny" / name)
    assert (found["layout"], found["dtypes"]) == (layout, ["F32"])
    assert found["bytes_on_disk"] == 4 * sum(found["parameters"].values())
    text = invoke(main, "info", GOLDEN / "tiny" / name).output
    assert f"{layout} layout, F32" in text
    assert f"parameters: {sum(found['parameters'].values()):,}" in text


def test_stage_1_never_counts_text_which_has_nothing_to_train() -> None:
    for config, answer, task in ((TOY, 10_000, "vqa"), (PRESETS["1b"], 1, "t2i")):
        assert stage_bytes(config, _parts(config), 1, replace(LOAD, answer=answer), True)["task"] == task


# Not ru_maxrss: that is the parent's where it was higher.
PEAK = "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
WIDE = TextConfig(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=704, vocab_size=512)
BACKWARD = """
from dataclasses import replace
import mindspore as ms, numpy as np
from janus import device
from janus.checkpoint.folder import ModelFolder
from janus.model.config import PRESETS, TextConfig
from janus.model.loss import TaskLoss
from janus.prompts import SIGNATURES

rows, length = 2, {length}
device.use()
loss = TaskLoss(ModelFolder("", replace(PRESETS["tiny"], text={text!r})).build(), SIGNATURES["text"])
backward = device.compiled(ms.value_and_grad(loss, None, ms.ParameterTuple(loss.get_parameters())))
flat = np.arange(rows * length, dtype=np.int32)
grid = flat.reshape(rows, length)
arrays = (np.zeros(rows, np.int32), flat[::length], flat % 99, flat % length, grid, flat, np.ones_like(grid))
backward(*map(ms.Tensor, arrays))[0].asnumpy()
"""


def _peak(script: str) -> int:
    """Bytes of memory that a process of its own took."""
    return 1024 * int(python("-c", f"{script}\n{PEAK}").stdout.splitlines()[-1])


def test_no_weight_is_allocated() -> None:
    peak = _peak("from janus.cli import main\nmain(['info', '7b'], standalone_mode=False)")
    assert peak < 1e9  # 7B in float32 is 29 GB


@pytest.mark.slow
def test_activations_are_near_what_a_process_takes() -> None:
    """What 1,400 more tokens a row take, by the formula and measured."""
    measured, computed = [], []
    config = replace(PRESETS["tiny"], text=WIDE)
    for length in (128, 1536):
        measured.append(_peak(BACKWARD.format(text=WIDE, length=length)))
        work = Load(rows=2, length=length, answer=1, dtype="float32").work(config, "text")
        computed.append(4 * activations(config, work, trained_parts(3, True)))
    assert 0.9 < np.ptp(measured) / np.ptp(computed) < 1.5


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("task", SIGNATURES)
def test_operations_are_those_of_every_weight_and_of_attention(task: str, stage: int) -> None:
    """Each matrix of the built network multiplies the positions of its part; attention is two products."""
    kinds, tokens = SIGNATURES[task], TOY.num_image_tokens
    counts = {"targets": 9 * kinds.text, "understood": 2 * kinds.understood, "drawn": 3 * kinds.drawn}
    work = Work(positions=16, spans=(5, 8), **counts)
    positions = {"llama": work.positions, "lm_head": work.targets}
    positions |= dict.fromkeys(("siglip", "aligner"), work.understood * tokens)
    positions |= dict.fromkeys(("gen_aligner", "gen_head"), work.drawn * tokens)
    tables = ("embed_tokens", "position_embedding", "generation_embeddings", "vqmodel")
    once: Counter[str] = Counter()
    for name, shape in parameter_shapes(TOY).items():
        if len(shape) > 1 and not any(table in name for table in tables):
            once[part_of(name)] += 2 * prod(shape) * positions[part_of(name)]
    once["attention"] = TOY.text.num_layers * 2 * sum(2 * span * span * 8 for span in work.spans)
    once["siglip"] += TOY.vision.num_layers * 2 * work.understood * 2 * tokens**2 * 6
    passes = {1: {"llama": 2, "lm_head": 2, "siglip": 1}, 2: {"siglip": 1}, 3: {}}[stage]
    expected = sum(count * passes.get(part, 3) for part, count in once.items())
    assert operations(TOY, work, trained_parts(stage, True)) == expected
    if (task, stage) == ("text", 3):
        assert text_step_flops(TOY.text, work.positions, work.targets, work.spans) == expected
