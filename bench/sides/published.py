"""Our own network trained in the shape of the published recipe.

Op by op, rows padded to 1024, logits of every position, and codes of t2i pictures encoded in the step.

python -m bench.sides.published FOLDER COUNTS
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.measures.link import Job, serve
from bench.measures.workload import Workload

LENGTH, RATE = 1024, 1e-4


class Published:
    """A trainer of that shape that takes steps when told to."""

    def __init__(self, workload: Workload, counts: dict[str, int]) -> None:
        from janus.checkpoint.folder import open_model
        from janus.tokens import JanusTokenizer
        from pipelines.tables import ImageRows
        from shards.pictures import DRAWN
        from trainer.step import TrainStep

        config = workload.config("mixed", counts, mode="pynative", device="CPU")
        self.feed = workload.feed(config)
        folder = open_model(workload.size, workload.shards / "tokenizer")
        self.special = JanusTokenizer(workload.shards / "tokenizer").special
        self.shapes = {
            task: replace(
                shape,
                attention_rows=shape.samples,
                length=LENGTH,
                tokens=shape.samples * LENGTH,
            )
            for task, shape in self.feed.shapes.items()
        }
        self.network = TrainStep(folder.build(), self.feed.signatures, config)
        self.vq = folder.build_vq(1)
        self.pictures = ImageRows(workload.work / "images", DRAWN, workload.pixels)
        hashes = self.pictures.index["image_sha256"].to_pylist()
        self.picture_of = {sha256: number for number, sha256 in enumerate(hashes)}

    def mixed(self, step: int) -> float:
        """Seconds of one optimizer step, pictures encoded within."""
        from trainer.stream.collate import collate

        work = []
        for task in self.feed.shapes:
            indices = self.feed.plan.draw(task, step).indices  # the samples that our own trainer takes
            most = self.shapes[task].samples
            for group in np.split(indices, range(most, len(indices), most)):
                rows = self.feed.train[task].block(group)
                pictures = self._pictures(group) if task == "t2i" else []
                work += [
                    (task, pictures, batch)
                    for batch in collate(task, rows, [len(rows)], self.shapes[task], self.special)
                ]
        supervised = sum(batch.supervised for _, _, batch in work)
        began = time.perf_counter()
        for task, pictures, batch in work:
            if task == "t2i":
                batch = self._encoded(pictures, batch)
            self.network.accumulate(task, _with_all_logits(batch), 1.0 / supervised)
        self.network.measure()
        self.network.apply(RATE)
        self.network.wait()
        return time.perf_counter() - began

    def _pictures(self, group: np.ndarray) -> list[np.ndarray]:
        """What these t2i samples draw, uint8 (H, W, 3) each."""
        names = [self.feed.train["t2i"].read(int(i)).drawn[0] for i in group]
        size = self.shapes["t2i"].image.size
        return [self.pictures.pixels(self.picture_of[name], size) for name in names]

    def _encoded(self, pictures: list[np.ndarray], batch: Any) -> Any:
        """The batch with codes made from the pictures, as inputs and as labels."""
        from mindspore import Tensor

        codes_IT, labels_N = batch.image_tokens_IT.copy(), batch.image_labels_N.copy()
        for i, pixels_HWC in enumerate(pictures):
            codes, _ = self.vq.encode(Tensor(pixels_HWC[None]))
            codes_IT[i] = codes.asnumpy()
        labels_N[: codes_IT[: len(pictures)].size] = codes_IT[: len(pictures)].reshape(-1)
        return replace(batch, image_tokens_IT=codes_IT, image_labels_N=labels_N)


def _with_all_logits(batch: Any) -> Any:
    """The batch with every position sent to the head; those without a target are ignored by the loss."""
    from janus.tokens import IGNORE

    kind = (
        ("labels_N", "state_rows_N") if batch.image_labels_N is None else ("image_labels_N", "image_rows_N")
    )
    some_N, rows_N = (getattr(batch, name) for name in kind)
    every_P = np.arange(len(batch.input_ids_P), dtype=np.int32)
    labels_P = np.full_like(every_P, IGNORE)
    labels_P[rows_N[some_N != IGNORE]] = some_N[some_N != IGNORE]
    return replace(batch, **dict(zip(kind, (labels_P, every_P), strict=True)))


def start(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Job]]:
    """The trainer, warm, and its job."""
    folder, counts = arguments
    published = Published(Workload(Path(folder)), json.loads(counts))
    published.mixed(1)
    return {}, {"mixed": published.mixed}


if __name__ == "__main__":
    serve(start)
