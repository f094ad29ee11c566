"""Hold this device's numbers against a folder of reference cases, quantity by quantity.

A folder of cases holds `cases.safetensors` (inputs and expected values in float32, rows right-padded),
`cases.json` (token ids, losses, gradient norms by DeepSeek's names) and the weights, in `hf-format` and
perhaps in `deepseek-format`.

Shapes: B rows, S positions, I images, T tokens of an image, N supervised positions, V classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder, open_model
from janus.checkpoint.names import deepseek_name
from janus.checkpoint.tensors import open_safetensors
from janus.common.errors import UserError
from janus.prompts import TASKS

ABSOLUTE, LOSS, RELATIVE = 1e-4, 1e-5, 1e-3
"""Tolerances: features, logits and latents; losses; gradients (of the norm)."""
LAYOUTS = ("hf-format", "deepseek-format")


@dataclass(frozen=True)
class Check:
    """One quantity: its largest difference from the reference beside what is tolerated."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return bool(self.difference <= self.tolerance)


@dataclass(frozen=True)
class Cases:
    """The reference: arrays by name, and what stands in cases.json."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def batch(self, task: str) -> list[np.ndarray]:
        """The arrays of a task's batch in the order `TaskLoss` takes them."""
        input_ids_BS = self.arrays[f"{task}.input_ids"].astype(np.int32)
        segment_ids_BS = self.arrays[f"{task}.attention_mask"].astype(np.int32)
        positions_BS = (np.cumsum(segment_ids_BS, 1) - 1) * segment_ids_BS
        image_slots_BS = input_ids_BS == self.facts["image_token_id"]
        if task == "t2i":
            states_N = np.flatnonzero(image_slots_BS) - 1
            labels_N = self.arrays["t2i.image_tokens"].reshape(-1)
        else:
            next_BS = np.full_like(input_ids_BS, -100)
            next_BS[:, :-1] = self.arrays[f"{task}.labels"][:, 1:]
            states_N = np.flatnonzero(next_BS != -100)
            labels_N = next_BS.reshape(-1)[states_N]
        token_of_BS = np.arange(input_ids_BS.size).reshape(input_ids_BS.shape)
        batch = [labels_N, states_N, input_ids_BS.reshape(-1), positions_BS.reshape(-1)]
        batch += [token_of_BS, token_of_BS.reshape(-1), segment_ids_BS]
        if task != "text":
            batch += [np.cumsum(image_slots_BS) * image_slots_BS.reshape(-1)]
        batch = [array.astype(np.int32) for array in batch]
        if task != "text":
            batch += [self.arrays["image_uint8" if task == "vqa" else "t2i.image_tokens"]]
        return batch


def open_cases(folder: Path) -> Cases:
    """Read a folder of cases. Raises UserError if it is not one."""
    for name in ("cases.safetensors", "cases.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; expected a folder of reference cases")
    stored = open_safetensors(folder / "cases.safetensors")
    arrays = {name: tensor.data.reshape(tensor.shape) for name, tensor in stored.items()}
    return Cases(arrays, json.loads((folder / "cases.json").read_text(encoding="utf-8")))


def verify(folder: Path, mode: str = "graph") -> Iterator[tuple[str, Check]]:
    """(layout, check) for every quantity of every layout in the folder. mode: graph or pynative."""
    device.use()
    compile_ = partial(device.compiled, mode=mode)
    cases = open_cases(folder)
    for layout in LAYOUTS:
        if (folder / layout).is_dir():
            model = open_model(str(folder / layout))
            for check in _checks(model, cases, compile_):
                yield layout, check


def _checks(folder: ModelFolder, cases: Cases, compile_: Any) -> Iterator[Check]:
    model = folder.build()
    yield from _vision_checks(model, cases, compile_)
    yield from _vq_checks(folder.build_vq(len(cases.arrays["image_uint8"])), cases, compile_)
    for task in TASKS:
        yield from _task_checks(model, task, cases, compile_)


def _vision_checks(model: Any, cases: Cases, compile_: Any) -> Iterator[Check]:
    from mindspore import Tensor

    arrays = cases.arrays
    features = compile_(model.vision_model.construct)(Tensor(arrays["image_uint8"]))
    yield _absolute("vqa.siglip_features", features, arrays["vqa.siglip_features"])
    yield _absolute(
        "vqa.aligned_features", compile_(model.aligner.construct)(features), arrays["vqa.aligned_features"]
    )
    embeds = compile_(model.embed_codes.construct)(Tensor(arrays["t2i.image_tokens"]))
    yield _absolute("t2i.gen_embeds", embeds, arrays["t2i.gen_embeds"])


def _vq_checks(vq: Any, cases: Cases, compile_: Any) -> Iterator[Check]:
    from mindspore import Tensor

    arrays = cases.arrays
    latent_IEhw = arrays["t2i.vq_latent"]
    pixels, codes = Tensor(arrays["image_uint8"]), arrays["t2i.image_tokens"]
    encoded, latent = compile_(vq.encode)(pixels)
    yield _absolute("t2i.vq_latent", latent, latent_IEhw.transpose(0, 2, 3, 1))
    yield Check("t2i.image_tokens that differ", float((encoded.asnumpy() != codes).sum()), 0.0)
    decoded = arrays["t2i.vq_decoded"].transpose(0, 2, 3, 1)
    yield _absolute("t2i.vq_decoded", compile_(vq.decode)(Tensor(codes)), decoded)


def _task_checks(model: Any, task: str, cases: Cases, compile_: Any) -> Iterator[Check]:
    import mindspore as ms

    from janus.model.loss import TaskLoss

    loss = TaskLoss(model, task)
    batch = [ms.Tensor(array) for array in cases.batch(task)]
    yield _logits_check(loss, task, batch, cases, compile_)
    parameters = list(loss.get_parameters())
    backward = compile_(ms.value_and_grad(loss, None, ms.ParameterTuple(parameters)))
    loss_sum, gradients = backward(*batch)
    supervised = len(batch[0])
    expected = cases.facts["losses"][task]
    yield Check(f"{task}.loss", abs(float(loss_sum.asnumpy()) / supervised - expected), LOSS)
    named = {p.name: g.asnumpy() / supervised for p, g in zip(parameters, gradients, strict=True)}
    yield _norms_check(task, named, cases.facts["grad_norms"][task])
    yield from _gradient_checks(task, named, cases.arrays)


def _logits_check(loss: Any, task: str, batch: list, cases: Cases, compile_: Any) -> Check:
    from mindspore import Tensor

    expected = cases.arrays[f"{task}.logits"].reshape(-1, cases.arrays[f"{task}.logits"].shape[-1])
    rows = cases.batch(task)[1]
    if task != "t2i":  # there, the reference keeps the logits of every position
        rows = np.flatnonzero(cases.arrays[f"{task}.attention_mask"])
        expected = expected[rows]
    logits = compile_(loss.logits)(Tensor(rows.astype(np.int32)), *batch[2:])
    return _absolute(f"{task}.logits", logits, expected)


def _norms_check(task: str, named: dict[str, np.ndarray], expected: dict[str, float]) -> Check:
    """Norms by DeepSeek's names, where q, k and v are one tensor; the largest relative difference."""
    squares: dict[str, float] = {}
    for name, gradient in named.items():
        old = deepseek_name(name).name
        squares[old] = squares.get(old, 0.0) + float(np.square(gradient.astype(np.float64)).sum())
    if squares.keys() != expected.keys():
        return Check(f"{task}.grad_norms (other parameters)", float("nan"), RELATIVE)
    worst = max(abs(squares[name] ** 0.5 - norm) / norm for name, norm in expected.items())
    return Check(f"{task}.grad_norms (relative)", worst, RELATIVE)


def _gradient_checks(
    task: str, named: dict[str, np.ndarray], arrays: dict[str, np.ndarray]
) -> Iterator[Check]:
    by_old_name = {deepseek_name(name).name: gradient for name, gradient in named.items()}
    prefix = f"{task}.grad."
    for key in sorted(arrays):
        if key.startswith(prefix):
            expected = arrays[key]
            difference = np.linalg.norm(by_old_name[key.removeprefix(prefix)] - expected)
            yield Check(f"{key} (relative)", float(difference / np.linalg.norm(expected)), RELATIVE)


def _absolute(name: str, actual: Any, expected: np.ndarray) -> Check:
    difference = np.abs(actual.asnumpy().reshape(expected.shape) - expected).max()
    return Check(name, float(difference), ABSOLUTE)
