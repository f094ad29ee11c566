"""mindone's Janus beside ours: the same weights and batches, forward and backward.

`mindone.transformers.JanusForConditionalGeneration` runs op by op, as it is meant to; ours as `--mode` says.
It comes with mindone's package; the published recipe trains a sibling of it, on the same Llama.
"""

import gc
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from janus import device
from janus.checkpoint.folder import open_model
from janus.checkpoint.names import deepseek_name
from janus.common.errors import UserError
from janus.inspect.verify import TASKS, Cases, gradient_norms
from janus.prompts import SIGNATURES

TIMED = 5
"""Calls that are timed, after one that is not; the fastest counts."""
Step = Callable[[], tuple[Any, Mapping[str, Any]]]


@dataclass(frozen=True)
class Run:
    """One side of a task. loss: the mean over targets. norms: of gradients, by DeepSeek's names.

    seconds: of forward and backward. peak: most bytes on the device; None on CPU.
    """

    loss: float
    norms: Mapping[str, float]
    seconds: float
    peak: int | None


def beside_mindone(folder: Path, cases: Cases, dtype: str, mode: str) -> Iterator[tuple[str, Run, Run]]:
    """(task, ours, mindone's) for the weights in `folder`, of transformers' layout."""
    ours = _measured(_our_steps(folder, cases, dtype, mode))
    gc.collect()  # of ours nothing is left on the device when mindone's peak is taken
    theirs = _measured(_mindone_steps(folder, cases, dtype))
    yield from ((task, ours[task], theirs[task]) for task in TASKS)


def _measured(steps: Iterator[tuple[str, Step]]) -> dict[str, Run]:
    try:
        return {task: _measure(step) for task, step in steps}
    except RuntimeError as error:
        if missing := re.search(r"kernel (\w+) unregistered", str(error), re.I):
            cause = f"its operation {missing[1]} has no kernel on {device.current()}"
            raise UserError(f"--peer mindone: {cause}; leave --peer out, or use --device Ascend") from None
        raise


def _measure(step: Step) -> Run:
    """step: gives the mean loss, and each parameter's gradient by its name in transformers' layout."""
    from janus.model.weights import parted

    device.forget_peak()
    loss, gradients = step()
    named = parted({name: gradient.astype("float32").asnumpy() for name, gradient in gradients.items()})
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        device.wait(step()[1].values())
        seconds.append(time.perf_counter() - began)
    return Run(float(loss.asnumpy()), gradient_norms(named), min(seconds), device.peak_memory())


def _our_steps(folder: Path, cases: Cases, dtype: str, mode: str) -> Iterator[tuple[str, Step]]:
    import mindspore as ms

    from janus.model.loss import TaskLoss

    compile_ = device.compiler(mode)
    model = open_model(str(folder)).build(dtype)
    for task in TASKS:
        loss, batch = TaskLoss(model, SIGNATURES[task]), [ms.Tensor(a) for a in cases.batch(task)]
        weights = list(loss.get_parameters())
        backward = compile_(ms.value_and_grad(loss, None, ms.ParameterTuple(weights)))

        def step(backward: Any = backward, batch: Any = batch, weights: Any = weights) -> Any:
            value, gradients = backward(*batch)
            mean = 1 / batch[0].shape[0]
            return value * mean, {p.name: g * mean for p, g in zip(weights, gradients, strict=True)}

        yield task, step


def _mindone_steps(folder: Path, cases: Cases, dtype: str) -> Iterator[tuple[str, Step]]:
    import mindspore as ms
    from mindone.transformers.models.janus.modeling_janus import JanusForConditionalGeneration

    flash = device.current() == "Ascend" and dtype == "bfloat16"  # what the published recipe chooses
    model = JanusForConditionalGeneration.from_pretrained(
        str(folder),
        dtype=getattr(ms, dtype),
        attn_implementation="flash_attention_2" if flash else "eager",
    )
    model.set_train(False)  # no dropout; nothing else differs
    for task in TASKS:
        trained = cases.facts["grad_norms"][task]
        weights = [p for p in model.get_parameters() if deepseek_name(p.name).name in trained]
        backward = ms.value_and_grad(_mindone_loss(model, cases, task), None, ms.ParameterTuple(weights))

        def step(backward: Any = backward, weights: Any = weights) -> Any:
            value, gradients = backward()
            return value, {p.name: g for p, g in zip(weights, gradients, strict=True)}

        yield task, step


def _mindone_loss(model: Any, cases: Cases, task: str) -> Callable[[], Any]:
    """The mean loss of a task's batch; of drawn pictures, which mindone has none for, from its parts."""
    import mindspore as ms
    from mindspore import ops

    ids_BS, mask_BS = (
        ms.Tensor(cases.arrays[f"{task}.{name}"].astype(np.int32)) for name in ("input_ids", "attention_mask")
    )
    shared = {"attention_mask": mask_BS, "use_cache": False}
    if task == "t2i":
        labels_N, states_N, *_, index_P, codes_IT = cases.batch(task)
        order_P = np.where(index_P, index_P - 1 + index_P.size, np.arange(index_P.size)).astype(np.int32)
        labels_N, states_N, order_P, codes_IT = map(ms.Tensor, (labels_N, states_N, order_P, codes_IT))

        def drawn_loss() -> Any:
            embeds_BSD = model.get_input_embeddings()(ids_BS)
            shown_ITD = model.prepare_embeddings_for_image_generation(codes_IT)
            width = embeds_BSD.shape[-1]
            both_XD = ops.concat((embeds_BSD.reshape(-1, width), shown_ITD.reshape(-1, width)), 0)
            embeds_BSD = ops.gather(both_XD, order_P, 0).reshape(embeds_BSD.shape)
            hidden_BSD = model.model.language_model(inputs_embeds=embeds_BSD, return_dict=True, **shared)[0]
            hidden_ND = ops.gather(hidden_BSD.reshape(-1, width), states_N, 0)
            return ops.cross_entropy(model.model.generation_head(hidden_ND).astype("float32"), labels_N)

        return drawn_loss
    shared["labels"] = ms.Tensor(cases.arrays[f"{task}.labels"].astype(np.int32))
    if task == "vqa":  # as the processor gives them: (I, C, H, W) from -1 to 1
        pixels_ICHW = cases.arrays["image_uint8"].transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        shared["pixel_values"] = ms.Tensor(pixels_ICHW.astype(np.float32))
    return lambda: model(input_ids=ids_BS, **shared).loss
