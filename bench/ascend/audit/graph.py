"""Show MindSpore's Ascend compiler one graph: `python -m bench.ascend.audit.graph "accumulate text"`.

Goes the product's own way: the same classes, batches, decoder and image tokenizer, on device Ascend. Weights
are zeros that nobody touches. Whoever starts it sets the environment: the stand-ins, or CANN, and where
MindSpore writes its dumps. The process may die in native code once the graph is compiled, so what it has to
say, it says before.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import click
import numpy as np

from bench.ascend.audit.samples import SPECIAL, batch_of
from janus.model.config import PRESETS, JanusConfig
from janus.model.kernels import BODIES

TASKS = ("text", "vqa", "t2i", "edit", "interleaved")
DRAWS = {"text": False, "vqa": False, "t2i": True}
LEVELS, DTYPES = ("O0", "O1"), ("bfloat16", "float32")
WIDE, FEW_WORDS = 2048, 16_384
LENGTH, SLOTS = 640, 704  # of a padded prompt, and of a row of the cache
GRAPHS = (
    *(f"{kind} {task}" for kind in ("accumulate", "evaluate") for task in TASKS),
    "update",
    "measure",
    "discard",
    *(f"prefill {what}" for what in DRAWS),
    "step text",
    "step t2i",
    "VQ encode",
    "VQ decode",
)
"""Every graph that the product compiles, each for one signature of samples."""


def network(preset: str, layers: int) -> JanusConfig:
    """The preset's sizes, cut to this many layers; 0 leaves them.

    Where two layers are wide, so that their tables would fill the host, the vocabulary is cut as well: `tiny`
    has all of it.
    """
    config = PRESETS[preset]
    if not layers:
        return config
    vision = replace(config.vision, num_layers=min(layers, config.vision.num_layers))
    vocabulary = config.text.vocab_size if config.text.hidden_size < WIDE else FEW_WORDS
    return replace(config, text=replace(config.text, num_layers=layers, vocab_size=vocabulary), vision=vision)


def zeros(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """A parameter's value; memory that nobody writes to is not taken."""
    return np.zeros(shape, np.float32)


@click.command()
@click.argument("name", type=click.Choice(GRAPHS))
@click.option("--preset", type=click.Choice(list(PRESETS)), default="tiny", show_default=True)
@click.option("--layers", default=0, help="Of Llama and SigLIP, at most; 0: the preset's.", show_default=True)
@click.option("--level", type=click.Choice(LEVELS), default="O1", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], show_default=True)
@click.option("--front-end", is_flag=True, help="On any device, as far as the dump before its passes.")
def main(name: str, preset: str, layers: int, level: str, dtype: str, front_end: bool) -> None:
    """Compile graph NAME of the product; prints lines of JSON on itself, and may die in between."""
    import mindspore as ms

    from janus import device

    if front_end:
        BODIES["CPU"] = BODIES["Ascend"]
        device.current, device.upload = lambda: "Ascend", ms.Tensor
        device.use = lambda *_, **__: device.Used("Ascend", dtype)
    # What the product asks for as its level is overruled, so that both can be looked at.
    jit = ms.jit
    ms.jit = lambda function, **options: jit(function, **{**options, "jit_level": level})
    kind, _, what = name.partition(" ")
    config = network(preset, layers)
    if kind in ("prefill", "step"):
        _generation(config, kind, what, dtype)
    elif kind == "VQ":
        _image_tokenizer(config, what)
    else:
        _training(config, kind, what or "text", dtype)
    _say(done=True, peak=device.peak_memory())


def _training(config: JanusConfig, kind: str, task: str, dtype: str) -> None:
    from janus import device
    from janus.model.janus import Janus
    from janus.model.weights import Weights
    from janus.prompts import SIGNATURES
    from trainer.config import TrainConfig
    from trainer.step import TrainStep

    device.use("Ascend", dtype)
    options = replace(TrainConfig(), device="Ascend", dtype=dtype)
    tasks = {task: SIGNATURES[task]}
    step = TrainStep(Janus(Weights(zeros), config), tasks, options)
    batch = batch_of(task, config)
    _say(ends=batch.segment_ends_N.tolist(), tokens=batch.input_ids_P.size)
    calls: dict[str, Callable[[], object]] = {
        "accumulate": lambda: step.accumulate(task, batch, 1.0),
        "evaluate": lambda: step.evaluate(task, batch),
        "update": lambda: step.optimizer.apply(1.0, 1e-4),
        "measure": step.measure,
        "discard": step.discard,
    }
    calls[kind]()


def _generation(config: JanusConfig, kind: str, what: str, dtype: str) -> None:
    from janus import device
    from janus.common.graph_cache import Graphs
    from janus.generate.decode import Decoder
    from janus.model.janus import Janus
    from janus.model.layers import lower
    from janus.model.weights import Weights

    used, rows, shown = device.use("Ascend", dtype), 2, what == "vqa"
    jit = Graphs({}, None).compile
    model = Janus(Weights(zeros), config)
    lower(model, used.dtype)
    decoder = Decoder(model, SPECIAL, DRAWS[what], rows, LENGTH, SLOTS, rows * shown, jit)
    _say()
    if kind == "step":
        decoder.step(np.zeros(rows, np.int32))
        return
    ids = np.zeros(LENGTH, np.int32)
    ids[: config.num_image_tokens * shown] = SPECIAL.image_placeholder
    side = config.vision.image_size
    decoder.prefill([ids] * rows, [np.zeros((side, side, 3), np.uint8)] * rows * shown)


def _image_tokenizer(config: JanusConfig, what: str) -> None:
    from mindspore import Tensor

    from janus import device
    from janus.model.vq import VQ
    from janus.model.weights import Weights

    device.use("Ascend")
    side = config.vision.image_size
    vq = VQ(Weights(zeros), config.vq, side, images=1)
    inputs = {
        "encode": np.zeros((1, side, side, 3), np.uint8),
        "decode": np.zeros((1, config.num_image_tokens), np.int32),
    }
    _say()
    device.compiled(getattr(vq, what))(Tensor(inputs[what]))


_say = partial(lambda **facts: click.echo(json.dumps(facts)))


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)  # MindSpore's own way out frees what the stand-ins never made
