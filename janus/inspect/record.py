"""`janus cases`: reference cases of any model, computed here, for `janus verify` on another device.

Two rows of random tokens for each task, the second shorter; two pictures of noise. A CPU's numbers are held
to the reference implementation's by the tests, so its cases say what another device has to give.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from janus import device
from janus.checkpoint.folder import ModelFolder
from janus.checkpoint.names import deepseek_name
from janus.checkpoint.tensors import DTYPES, TensorToSave, save_safetensors
from janus.common.errors import UserError
from janus.common.files import read_json, write_folder
from janus.inspect.verify import (
    LAYOUTS,
    TASKS,
    Arrays,
    Cases,
    gradient_norms,
    part_values,
    task_values,
    vq_values,
)
from janus.model.config import JanusConfig
from janus.tokens import IGNORE, JanusTokenizer

ROWS, TEXT, ANSWER = 2, 32, 12
"""Rows of a task, and tokens of a row beside its picture; those of them that are supervised."""
SHORTER = 5
IN_FULL = "self_attn.q_proj.weight"
"""Of each task the first gradient of this name is kept whole."""


def write_cases(folder: ModelFolder, target: Path) -> None:
    """Write cases for the model, with a link to its weights. Raises UserError for a model without weights."""
    if folder.checkpoint is None or folder.path is None:
        raise UserError(f"{folder.name}: has no weights to compare with; name a folder with weights")
    weights = folder.path.resolve()
    layout = LAYOUTS["text_config" not in read_json(weights / "config.json", "expected a model folder")]
    write_folder(target, lambda tmp: _fill(folder, weights, layout, tmp))


def _fill(folder: ModelFolder, weights: Path, layout: str, out: Path) -> None:
    special = JanusTokenizer(weights).special
    facts: dict[str, Any] = {"image_token_id": special.image_placeholder, "losses": {}, "grad_norms": {}}
    arrays = _inputs(folder.config, special.image_placeholder)
    compile_, cases = device.compiler("graph"), Cases(arrays, facts)
    arrays |= vq_values(folder.build_vq(ROWS), arrays, compile_)
    model = folder.build()
    arrays |= part_values(model, arrays, compile_)
    for task in TASKS:
        states_N = cases.batch(task)[1]
        logits_NV, loss, gradients = task_values(model, task, cases, states_N, compile_)
        arrays[f"{task}.logits"], facts["losses"][task] = logits_NV, loss
        facts["grad_norms"][task] = gradient_norms(gradients)
        kept = next(name for name in gradients if name.endswith(IN_FULL))
        arrays[f"{task}.grad.{deepseek_name(kept).name}"] = gradients[kept]
    save_safetensors(out / "cases.safetensors", {name: _stored(array) for name, array in arrays.items()})
    (out / "cases.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / layout).symlink_to(weights)


def _inputs(config: JanusConfig, placeholder: int) -> Arrays:
    """Ids, masks, labels, pictures; placeholders stand before the answer, in t2i at the end."""
    random = np.random.default_rng(0)
    size = config.vision.image_size
    arrays: Arrays = {"image_uint8": random.integers(0, 256, (ROWS, size, size, 3)).astype(np.uint8)}
    for task in TASKS:
        shown = 0 if task == "text" else config.num_image_tokens
        ids_BS = random.integers(0, placeholder, (ROWS, TEXT + shown)).astype(np.int32)
        first = TEXT - (0 if task == "t2i" else ANSWER)
        ids_BS[:, first : first + shown] = placeholder
        mask_BS, labels_BS = np.ones_like(ids_BS), np.full_like(ids_BS, IGNORE)
        labels_BS[:, -ANSWER:] = ids_BS[:, -ANSWER:]
        if task != "t2i":
            mask_BS[1, -SHORTER:], labels_BS[1, -SHORTER:] = 0, IGNORE
        own = {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": labels_BS}
        arrays |= {f"{task}.{name}": array for name, array in own.items()}
    return arrays


def _stored(array: np.ndarray) -> TensorToSave:
    kind = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    return TensorToSave(kind, array.shape, lambda: [array])
