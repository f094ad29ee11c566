"""transformers' Janus in PyTorch, trained as a user would write it.

float32; each task's samples in one batch padded to 1024, loss from the model itself for text and vqa (logits
of every position), image tokens through the generation head for t2i; clipping; AdamW.

python -m bench.sides.pytorch CONFIG.json THREADS. Nothing of ours is imported but the link.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measures.link import Job, serve

# torchvision's wheels do not load beside torch's CPU build. transformers does without where there is none.
sys.modules["torchvision"] = None  # type: ignore[assignment]

from transformers import JanusConfig, JanusForConditionalGeneration  # noqa: E402

LENGTH, RATE = 1024, 1e-4
IGNORE = -100


class Torch:
    """A model, its optimizer, and the steps' samples as tensors."""

    def __init__(self, config: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.pad, self.placeholder = config["text_config"]["pad_token_id"], config["image_token_id"]
        self.model = JanusForConditionalGeneration(JanusConfig.from_dict(config)).float().train()
        self.model.model.vqmodel.requires_grad_(False)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def mixed(self, path: str) -> float:
        """Seconds of one optimizer step on the samples in the file."""
        batches = _batches(np.load(path), self.pad)
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        supervised = sum(batch["supervised"] for batch in batches.values())
        for task, batch in batches.items():
            (self._loss(task, batch) * (batch["supervised"] / supervised)).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return time.perf_counter() - began

    def _loss(self, task: str, batch: dict[str, Any]) -> torch.Tensor:
        known = {"attention_mask": batch["attention_mask"], "use_cache": False}
        if task == "t2i":
            return self._image_loss(batch, known)
        pixels = {"pixel_values": batch["pixel_values"]} if task == "vqa" else {}
        return self.model(input_ids=batch["input_ids"], labels=batch["labels"], **pixels, **known).loss

    def _image_loss(self, batch: dict[str, Any], known: dict[str, Any]) -> torch.Tensor:
        """Codes in at the placeholders, codes out one position before."""
        model, codes = self.model.model, batch["image_tokens"]
        embeds = model.get_input_embeddings()(batch["input_ids"])
        images = model.generation_aligner(model.generation_embeddings(codes))
        slots = batch["input_ids"] == self.placeholder
        embeds = embeds.masked_scatter(slots[..., None], images.reshape(-1, embeds.shape[-1]))
        hidden = model.language_model(inputs_embeds=embeds, **known).last_hidden_state
        before = torch.roll(slots, -1, 1)
        logits = model.generation_head(hidden[before])
        return torch.nn.functional.cross_entropy(logits, codes.reshape(-1))


def _batches(samples: Any, pad: int) -> dict[str, dict[str, Any]]:
    """One padded batch for each task."""
    by_task: dict[str, list[dict[str, np.ndarray]]] = {}
    names = sorted(samples.files, key=lambda name: int(name.split(".")[0]))
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        number, task, field = name.split(".")
        grouped.setdefault(f"{number}.{task}", {})[field] = samples[name]
    for key, fields in grouped.items():
        by_task.setdefault(key.split(".")[1], []).append(fields)
    return {task: _padded(rows, pad) for task, rows in by_task.items()}


def _padded(rows: list[dict[str, np.ndarray]], pad: int) -> dict[str, Any]:
    ids = np.full((len(rows), LENGTH), pad, np.int64)
    labels, mask = np.full_like(ids, IGNORE), np.zeros_like(ids)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length], mask[i, :length] = row["input_ids"], 1
        for first, last in row["supervised"]:
            labels[i, first:last] = row["input_ids"][first:last]
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.items()}
    if "image" in rows[0]:
        pixels = np.stack([row["image"] for row in rows]).transpose(0, 3, 1, 2)
        tensors["pixel_values"] = torch.from_numpy(pixels.astype(np.float32) * (2 / 255) - 1)
    if "image_tokens" in rows[0]:
        tensors["image_tokens"] = torch.from_numpy(
            np.stack([r["image_tokens"] for r in rows]).astype(np.int64)
        )
    tensors["supervised"] = int((labels != IGNORE).sum())
    return tensors


def matmul(size: int = 2048) -> float:
    """Operations per second of a float32 product of size³."""
    left, right = torch.randn(2, size, size)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def start(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Job]]:
    """The model and its jobs."""
    config, threads = arguments
    torch.set_num_threads(int(threads))
    peer = Torch(json.loads(Path(config).read_text(encoding="utf-8")))
    return {"torch": torch.__version__}, {"mixed": peer.mixed, "matmul": matmul}


if __name__ == "__main__":
    serve(start)
