"""Does a full-size network fit, and how long does it take? Peak memory and seconds, measured.

    python -m bench.studies.full_size --size 1b

Random weights; one sample a call. One forward of each task, then training steps of one stage on t2i.
"""

import resource
import time
from dataclasses import replace

import click
import numpy as np

from janus.checkpoint.folder import ModelFolder
from janus.model.config import PRESETS, JanusConfig
from janus.prompts import SIGNATURES
from trainer.config import TrainConfig
from trainer.stream.shapes import Batch

LENGTH, PROMPT = 640, 32  # tokens of the sample, and of what stands before its image


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def one_sample(task: str, config: JanusConfig) -> Batch:
    """A call of one sample with random content and a real sample's structure."""
    random = np.random.default_rng(0)
    positions = np.arange(LENGTH, dtype=np.int32)
    index = np.zeros(LENGTH + 1, np.int32)
    image, shown, drawn = np.arange(config.num_image_tokens), task == "vqa", task == "t2i"
    index[PROMPT + image] = 1 + image
    states = PROMPT - 1 + image if drawn else np.arange(LENGTH - 33, LENGTH - 1)
    codes = random.integers(0, config.vq.num_embeddings, (1, len(image))).astype(np.int32)
    labels = codes[0] if drawn else random.integers(0, 1000, len(states)).astype(np.int32)
    size, rows = config.vision.image_size, states.astype(np.int32)
    return Batch(
        input_ids_P=random.integers(0, 1000, LENGTH + 1).astype(np.int32),
        position_ids_P=np.append(positions, 0).astype(np.int32),
        image_index_P=index if shown or drawn else None,
        segment_ends_N=np.array([LENGTH, LENGTH + 1]),
        token_of_BS=np.append(positions, LENGTH).astype(np.int32)[None],
        slot_of_P=np.append(positions, LENGTH).astype(np.int32),
        segment_ids_BS=np.append(np.ones(LENGTH), 0).astype(np.int32)[None],
        labels_N=None if drawn else labels,
        state_rows_N=None if drawn else rows,
        image_labels_N=labels if drawn else None,
        image_rows_N=rows if drawn else None,
        pixels_IHWC=random.integers(0, 256, (1, size, size, 3)).astype(np.uint8) if shown else None,
        image_tokens_IT=codes if drawn else None,
        samples=1,
        tokens=LENGTH,
        supervised=len(states),
    )


@click.command()
@click.option("--size", default="1b", show_default=True, type=click.Choice(sorted(PRESETS)))
@click.option("--stage", default=1, show_default=True, type=click.IntRange(1, 3))
@click.option("--steps", default=3, show_default=True, type=click.IntRange(min=1))
def main(size: str, stage: int, steps: int) -> None:
    """Build a network of full size with random weights, run each task forward, then train on t2i."""
    from trainer.step import TrainStep

    config = PRESETS[size]
    began = time.perf_counter()

    def say(what: str) -> None:
        nonlocal began
        click.echo(f"{what:24} {time.perf_counter() - began:7.1f} s   peak {peak_gib():5.2f} GiB")
        began = time.perf_counter()

    model = ModelFolder(size, config).build()
    say(f"build {size}")
    options = replace(TrainConfig(), device="CPU", stage=stage)
    for task in ("text", "vqa", "t2i"):
        step = TrainStep(model, {task: SIGNATURES[task]}, options)
        for run in ("compile and forward", "forward"):
            step.evaluate(task, one_sample(task, config))
            say(f"{task} {run}")
    batch = one_sample("t2i", config)
    for number in range(1, steps + 1):
        step.accumulate("t2i", batch, 1 / batch.supervised)
        loss = step.measure().loss_sum["t2i"] / batch.supervised
        step.apply(1e-3)
        step.wait()
        say(f"stage {stage} step {number}, {loss:.3f}")


if __name__ == "__main__":
    main()
