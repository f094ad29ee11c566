"""Compare this device's numbers with a folder of reference cases, quantity by quantity.

A folder of cases holds `cases.safetensors` (inputs and expected values in float32, rows right-padded),
`cases.json` (token ids, losses, gradient norms by DeepSeek's names) and the weights, in `hf-format`,
`deepseek-format` or both. Shapes: B rows, S positions, P = B·S, N supervised positions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
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
from janus.inspect.bounds import MLP, Bounds, Check
from janus.model.kernels import takes_slots
from janus.prompts import SIGNATURES, image_index
from janus.tokens import IGNORE

LAYOUTS = ("hf-format", "deepseek-format")
TASKS = ("text", "vqa", "t2i")
Arrays = dict[str, np.ndarray]


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
        batch = [labels_N, states_N, input_ids_BS.reshape(-1), positions_BS.reshape(-1)]
        batch = [array.astype(np.int32) for array in batch] + _segments(segment_ids_BS)
        shown = self.arrays["image_uint8" if task == "vqa" else "t2i.image_tokens"]
        return batch if task == "text" else [*batch, index_P, shown]


def _segments(mask_BS: np.ndarray) -> list[np.ndarray]:
    """What keeps rows and their padding apart, as the kernels take it."""
    token_of_P = np.arange(mask_BS.size, dtype=np.int32)
    if takes_slots():
        return [token_of_P.reshape(mask_BS.shape), token_of_P, mask_BS]
    part_P = (mask_BS + 2 * np.arange(len(mask_BS))[:, None]).reshape(-1)
    return [np.flatnonzero(np.diff(part_P, append=-1)) + 1]


def open_cases(folder: Path) -> Cases:
    """Read a folder of cases. Raises UserError if it is not one."""
    path = folder / "cases.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a folder of reference cases")
    arrays = {name: tensor.data.reshape(tensor.shape) for name, tensor in open_safetensors(path).items()}
    return Cases(arrays, read_json(folder / "cases.json", "expected a folder of reference cases"))


def verify(folder: Path, mode: str, used: device.Used) -> Iterator[tuple[str, str, Check]]:
    """(layout, dtype, check) for every quantity of every layout in the folder, in every dtype of the device.

    used: what `device.use` gave.
    """
    compile_, cases = device.compiler(mode), open_cases(folder)
    for layout in LAYOUTS:
        if not (folder / layout).is_dir():
            continue
        opened = open_model(str(folder / layout))
        vq = opened.build_vq(len(cases.arrays["image_uint8"]))
        bounds = Bounds(opened.config, "float32")
        yield from ((layout, "float32", check) for check in _vq_checks(vq, bounds, cases.arrays, compile_))
        for dtype in device.dtypes(used.device):
            model, bounds = opened.build(dtype), Bounds(opened.config, dtype)
            checks = [_part_checks(model, bounds, cases.arrays, compile_)]
            checks += [_task_checks(model, task, cases, bounds, compile_) for task in TASKS]
            yield from ((layout, dtype, check) for part in checks for check in part)


def _vq_checks(vq: Any, bounds: Bounds, arrays: Arrays, compile_: Any) -> Iterator[Check]:
    found = vq_values(vq, arrays, compile_)
    for name in ("t2i.vq_latent", "t2i.vq_decoded"):
        yield bounds.values(name, found[name], arrays[name], 0)
    wrong = (found["t2i.image_tokens"] != arrays["t2i.image_tokens"]).sum()
    yield Check("t2i.image_tokens that differ", float(wrong), 0.0)


def _part_checks(model: Any, bounds: Bounds, arrays: Arrays, compile_: Any) -> Iterator[Check]:
    for name, values in part_values(model, arrays, compile_).items():
        roundings = 1 if name.startswith("t2i") else bounds.vision
        after = 0 if name == "vqa.siglip_features" else MLP
        yield bounds.values(name, values, arrays[name].reshape(values.shape), roundings + after)


def _task_checks(model: Any, task: str, cases: Cases, bounds: Bounds, compile_: Any) -> Iterator[Check]:
    expected = cases.arrays[f"{task}.logits"].reshape(-1, cases.arrays[f"{task}.logits"].shape[-1])
    counted = cases.batch(task)[1]
    everywhere = len(expected) == cases.arrays[f"{task}.input_ids"].size  # or of the states that count alone
    states = np.flatnonzero(cases.arrays[f"{task}.attention_mask"]) if everywhere else counted
    logits_NV, loss, gradients = task_values(model, task, cases, states.astype(np.int32), compile_)
    yield bounds.values(
        f"{task}.logits", logits_NV, expected[states] if everywhere else expected, bounds.logits(task)
    )
    counts = expected[counted] if everywhere else expected
    yield bounds.loss(task, loss, cases.facts["losses"][task], counts)
    yield bounds.norms(task, gradient_norms(gradients), cases.facts["grad_norms"][task])
    by_old_name = {deepseek_name(name).name: gradient for name, gradient in gradients.items()}
    prefix = f"{task}.grad."
    for key in sorted(key for key in cases.arrays if key.startswith(prefix)):
        yield bounds.gradient(task, key, by_old_name[key.removeprefix(prefix)], cases.arrays[key])


def vq_values(vq: Any, arrays: Arrays, compile_: Any) -> Arrays:
    """What the image tokenizer gives, float32 everywhere: latents, codes, decoded pictures (I, C, H, W)."""
    from mindspore import Tensor

    codes, latent = compile_(vq.encode)(Tensor(arrays["image_uint8"]))
    drawn = arrays.get("t2i.image_tokens", codes.asnumpy())
    decoded = compile_(vq.decode)(Tensor(drawn)).asnumpy()
    images, size = len(drawn), round(drawn.shape[1] ** 0.5)
    latent_IHWE = latent.asnumpy().reshape(images, size, size, -1)
    return {
        "t2i.vq_latent": latent_IHWE.transpose(0, 3, 1, 2),
        "t2i.vq_decoded": decoded.transpose(0, 3, 1, 2),
        "t2i.image_tokens": codes.asnumpy(),
    }


def part_values(model: Any, arrays: Arrays, compile_: Any) -> Arrays:
    """What SigLIP, its aligner and the embedding of codes give."""
    from mindspore import Tensor

    features = compile_(model.vision_model.construct)(Tensor(arrays["image_uint8"]))
    found = {
        "vqa.siglip_features": features,
        "vqa.aligned_features": compile_(model.aligner.construct)(features),
        "t2i.gen_embeds": compile_(model.embed_codes.construct)(Tensor(arrays["t2i.image_tokens"])),
    }
    return {name: values.astype("float32").asnumpy() for name, values in found.items()}


def task_values(
    model: Any, task: str, cases: Cases, shown_N: np.ndarray, compile_: Any
) -> tuple[np.ndarray, float, Arrays]:
    """Logits of the states `shown_N`, mean loss, and its gradient by the names of the parameters."""
    import mindspore as ms

    from janus.model.loss import TaskLoss
    from janus.model.weights import parted

    loss = TaskLoss(model, SIGNATURES[task])
    labels, states, *inputs = (ms.Tensor(array) for array in cases.batch(task))
    logits_NV = compile_(loss.logits)(ms.Tensor(shown_N), *inputs).asnumpy()
    parameters = list(loss.get_parameters())
    backward = compile_(ms.value_and_grad(loss, None, ms.ParameterTuple(parameters)))
    loss_sum, gradients = backward(labels, states, *inputs)
    count = labels.shape[0]
    named = {
        p.name: g.astype("float32").asnumpy() / count for p, g in zip(parameters, gradients, strict=True)
    }
    return logits_NV, float(loss_sum.asnumpy()) / count, parted(named)


def gradient_norms(named: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The norm of each parameter's gradient, by DeepSeek's names, where q, k and v are one tensor."""
    squares: dict[str, float] = defaultdict(float)
    for name, gradient in named.items():
        squares[deepseek_name(name).name] += float(np.square(gradient.astype(np.float64)).sum())
    return {name: square**0.5 for name, square in squares.items()}
