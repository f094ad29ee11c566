"""Compare this device's numbers with a folder of reference cases, quantity by quantity.

A folder of cases holds `cases.safetensors` (inputs and expected values in float32, rows right-padded),
`cases.json` (token ids, losses, gradient norms by DeepSeek's names) and the weights, in `hf-format`,
`deepseek-format` or both. Shapes: B rows, S positions, P = B·S, N supervised positions.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from janus import device
from janus.checkpoint.folder import open_model
from janus.checkpoint.names import deepseek_name
from janus.checkpoint.tensors import open_safetensors
from janus.common.errors import UserError
from janus.common.files import read_json
from janus.prompts import SIGNATURES, image_index
from janus.tokens import IGNORE

ABSOLUTE, LOSS, RELATIVE = 1e-4, 1e-5, 1e-3
"""Tolerances: features, logits and latents; losses; gradients (of the norm)."""
LAYOUTS = ("hf-format", "deepseek-format")


@dataclass(frozen=True)
class Check:
    """One quantity: its largest difference from the reference, and the tolerance."""

    name: str
    difference: float  # NaN where there is nothing to compare
    tolerance: float


@dataclass(frozen=True)
class Cases:
    """The reference: arrays by name, and the content of cases.json."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def batch(self, task: str) -> list[np.ndarray]:
        """The arrays of a task's batch in the order `TaskLoss` takes them."""
        input_ids_BS = self.arrays[f"{task}.input_ids"].astype(np.int32)
        segment_ids_BS = self.arrays[f"{task}.attention_mask"].astype(np.int32)
        positions_BS = (np.cumsum(segment_ids_BS, 1) - 1) * segment_ids_BS
        index_P = image_index(input_ids_BS.reshape(-1) == self.facts["image_token_id"])
        if task == "t2i":
            states_N, labels_N = np.flatnonzero(index_P) - 1, self.arrays["t2i.image_tokens"].reshape(-1)
        else:
            next_BS = np.full_like(input_ids_BS, IGNORE)
            next_BS[:, :-1] = self.arrays[f"{task}.labels"][:, 1:]
            states_N = np.flatnonzero(next_BS != IGNORE)
            labels_N = next_BS.reshape(-1)[states_N]
        token_of_P = np.arange(input_ids_BS.size)
        batch = [labels_N, states_N, input_ids_BS.reshape(-1), positions_BS.reshape(-1)]
        batch += [token_of_P.reshape(input_ids_BS.shape), token_of_P, segment_ids_BS]
        batch = [array.astype(np.int32) for array in batch]
        shown = self.arrays["image_uint8" if task == "vqa" else "t2i.image_tokens"]
        return batch if task == "text" else [*batch, index_P, shown]


def open_cases(folder: Path) -> Cases:
    """Read a folder of cases. Raises UserError if it is not one."""
    path = folder / "cases.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a folder of reference cases")
    arrays = {name: tensor.data.reshape(tensor.shape) for name, tensor in open_safetensors(path).items()}
    return Cases(arrays, read_json(folder / "cases.json", "expected a folder of reference cases"))


def verify(folder: Path, mode: str, on: str) -> Iterator[tuple[str, Check]]:
    """(layout, check) for every quantity of every layout in the folder. on: a value of `--device`."""
    device.use(on)
    compile_ = device.compiled if mode == "graph" else lambda function: function
    cases = open_cases(folder)
    for layout in LAYOUTS:
        if (folder / layout).is_dir():
            opened = open_model(str(folder / layout))
            model, vq = opened.build(), opened.build_vq(len(cases.arrays["image_uint8"]))
            checks = [_part_checks(model, vq, cases.arrays, compile_)]
            checks += [_task_checks(model, task, cases, compile_) for task in ("text", "vqa", "t2i")]
            yield from ((layout, check) for part in checks for check in part)


def _part_checks(model: Any, vq: Any, arrays: dict[str, np.ndarray], compile_: Any) -> Iterator[Check]:
    from mindspore import Tensor

    pixels, codes = Tensor(arrays["image_uint8"]), Tensor(arrays["t2i.image_tokens"])
    features = compile_(model.vision_model.construct)(pixels)
    yield _absolute("vqa.siglip_features", features, arrays)
    yield _absolute("vqa.aligned_features", compile_(model.aligner.construct)(features), arrays)
    yield _absolute("t2i.gen_embeds", compile_(model.embed_codes.construct)(codes), arrays)
    encoded, latent = compile_(vq.encode)(pixels)
    yield _absolute("t2i.vq_latent", latent, arrays)
    wrong = (encoded.asnumpy() != arrays["t2i.image_tokens"]).sum()
    yield Check("t2i.image_tokens that differ", float(wrong), 0.0)
    yield _absolute("t2i.vq_decoded", compile_(vq.decode)(codes), arrays)


def _task_checks(model: Any, task: str, cases: Cases, compile_: Any) -> Iterator[Check]:
    import mindspore as ms

    from janus.model.loss import TaskLoss

    loss, name = TaskLoss(model, SIGNATURES[task]), f"{task}.logits"
    labels, states, *inputs = (ms.Tensor(array) for array in cases.batch(task))
    expected, shown = cases.arrays[name].reshape(-1, cases.arrays[name].shape[-1]), states
    if task != "t2i":  # for text and vqa the reference keeps the logits of every position
        shown_N = np.flatnonzero(cases.arrays[f"{task}.attention_mask"])
        expected, shown = expected[shown_N], ms.Tensor(shown_N.astype(np.int32))
    yield _absolute(name, compile_(loss.logits)(shown, *inputs), {name: expected})
    parameters = list(loss.get_parameters())
    backward = compile_(ms.value_and_grad(loss, None, ms.ParameterTuple(parameters)))
    loss_sum, gradients = backward(labels, states, *inputs)
    mean = float(loss_sum.asnumpy()) / len(labels)
    yield Check(f"{task}.loss", abs(mean - cases.facts["losses"][task]), LOSS)
    named = {p.name: g.asnumpy() / len(labels) for p, g in zip(parameters, gradients, strict=True)}
    yield from _gradient_checks(task, named, cases)


def _gradient_checks(task: str, named: dict[str, np.ndarray], cases: Cases) -> Iterator[Check]:
    """By DeepSeek's names, where q, k and v are one tensor: all norms together, some gradients in full."""
    squares: dict[str, float] = defaultdict(float)
    for name, gradient in named.items():
        squares[deepseek_name(name).name] += float(np.square(gradient.astype(np.float64)).sum())
    expected = cases.facts["grad_norms"][task]
    worst = float("nan")  # other parameters
    if squares.keys() == expected.keys():
        worst = max(abs(squares[name] ** 0.5 - norm) / norm for name, norm in expected.items())
    yield Check(f"{task}.grad_norms (relative)", worst, RELATIVE)
    by_old_name = {deepseek_name(name).name: gradient for name, gradient in named.items()}
    prefix = f"{task}.grad."
    for key in sorted(key for key in cases.arrays if key.startswith(prefix)):
        exact = cases.arrays[key]
        difference = np.linalg.norm(by_old_name[key.removeprefix(prefix)] - exact)
        yield Check(f"{key} (relative)", float(difference / np.linalg.norm(exact)), RELATIVE)


def _absolute(name: str, actual: Any, arrays: dict[str, np.ndarray]) -> Check:
    expected = arrays[name].transpose(0, 2, 3, 1) if ".vq_" in name else arrays[name]  # torch's are NCHW
    difference = np.abs(actual.asnumpy().reshape(expected.shape) - expected).max()
    return Check(name, float(difference), ABSOLUTE)
