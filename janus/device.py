"""The only place that sets or asks for device, mode, dtype, determinism and device memory.

A command calls `use` before its first tensor; code that may run without a command calls `current`.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from janus.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

DEVICES = ("auto", "CPU", "Ascend")
"""Values of every command's `--device`."""
DTYPES = ("auto", "float32", "bfloat16")
"""Values of `--dtype`; auto: bfloat16 on Ascend, float32 on CPU."""
HEAD_STEP, LARGEST_HEAD, MOST_SEGMENTS = 16, 512, 1024
"""What `mindspore.ops.flash_attention_score` takes: multiples as head size up to the largest; segments."""
DRIVER = Path("/usr/local/Ascend/driver/version.info")
"""Where Ascend's driver says its version."""


class Used(NamedTuple):
    """What `use` chose: "CPU" or "Ascend"; "float32" or "bfloat16"."""

    device: str
    dtype: str


def use(
    device: str = "auto", dtype: str = "auto", device_id: int = 0, deterministic: bool | None = None
) -> Used:
    """Compute on `device` from now on. Operations run one by one; only what `compiled` marks becomes a graph.

    device auto: the one in use, which at first is the best that this MindSpore has. device_id: which Ascend.
    deterministic: whether the same sums keep their order on Ascend; None leaves it as it is.
    Raises UserError if the device is missing or cannot compute in `dtype`.
    """
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    chosen = current() if device == "auto" else device
    if chosen == "Ascend":
        _use_ascend(device_id)
    elif chosen != current():
        ms.set_device(chosen)
    if device_id and chosen == "CPU":
        raise UserError(f"device_id: {device_id} names an Ascend, and this is a CPU; leave --device-id out")
    if chosen == "Ascend" and deterministic is not None:
        _set_deterministic(deterministic)
    check_dtype(dtype, chosen)
    return Used(chosen, dtypes(chosen)[-1] if dtype == "auto" else dtype)


def current() -> str:
    """The device in use, "CPU" or "Ascend"."""
    import mindspore as ms

    return ms.get_context("device_target")


@cache
def _use_ascend(device_id: int) -> None:
    """Choose an Ascend; UserError if CANN is not what this MindSpore is for, or there is no such device."""
    import mindspore as ms
    from mindspore.run_check._check_version import AscendEnvChecker

    checker, found = AscendEnvChecker(None), cann_version()
    if found and ".".join(found.split(".")[:2]) not in checker.version:
        raise UserError(
            f"device: CANN {found} ({checker.ascend_home_path}) is not for MindSpore {ms.__version__}, which "
            f"takes {', '.join(checker.version)}; install one of these, or source the set_env.sh of one"
        )
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the error below says it in one line
    ascend = ms.device_context.ascend
    try:
        if device_id and ascend.is_available() and device_id >= (count := ascend.device_count()):
            raise UserError(f"device_id: {device_id}, but this machine has {count} Ascends, numbered from 0")
        ms.set_device("Ascend", device_id or None)
        # Else convolutions keep 10 bits of float32's 23: VQ codes would be another encoder's.
        ascend.op_precision.conv_allow_hf32(False)
    except RuntimeError as error:
        raise UserError(f"device: Ascend cannot be used: {_reason(str(error))}; {_remedy()}") from error
    finally:
        logging.disable(before)


def _reason(text: str) -> str:
    """Of MindSpore's message, the library that is missing; else its first sentence."""
    missing = [line for line in text.splitlines() if "cannot open shared object file" in line]
    return missing[0].partition("failed. ")[2] if missing else text.split(". ")[0].strip(" .\n")


def _remedy() -> str:
    if os.environ.get("ASCEND_HOME_PATH"):
        return "see docs/ascend.md, or use --device CPU"
    return "source CANN's set_env.sh first (docs/ascend.md), or use --device CPU"


@cache
def _set_deterministic(deterministic: bool) -> None:
    """MindSpore takes it once a process."""
    import mindspore as ms

    ms.set_deterministic(deterministic)


def dtypes(device: str) -> tuple[str, ...]:
    """What a device has kernels for; the last is what `auto` means."""
    return ("float32", "bfloat16") if device == "Ascend" else ("float32",)


def check_dtype(dtype: str, device: str) -> None:
    """Raise UserError if the device has no kernels for `dtype`. device: one of `DEVICES`."""
    if device == "CPU" and dtype not in ("auto", *dtypes(device)):
        raise UserError(f"dtype: {dtype} has no kernels on CPU; use --dtype float32")


def check_head_sizes(sizes: Iterable[int], dtype: str) -> None:
    """Raise UserError for a width of attention heads that flash attention, bfloat16's, does not take."""
    for size in sizes if dtype == "bfloat16" else ():
        if size % HEAD_STEP or size > LARGEST_HEAD:
            raise UserError(
                f"model: its attention heads are {size} wide; Ascend's flash attention takes multiples of "
                f"{HEAD_STEP} up to {LARGEST_HEAD}; use --dtype float32, which does without it"
            )


def cann_version() -> str | None:
    """The version of CANN that the environment names, where MindSpore looks for it; None: no CANN."""
    home = os.environ.get("ASCEND_HOME_PATH")
    return _written_version(Path(home) / "compiler" / "version.info") if home else None


def _written_version(path: Path) -> str | None:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("Version=")), None)


def facts() -> dict[str, str]:
    """What decides numbers besides sources and data, by name: versions, and the device's own name."""
    import mindspore as ms

    named = {"mindspore": version("mindspore"), "device": processor()}
    if current() == "Ascend":  # never run there: untested
        named["device"] = ms.hal.get_device_name(ms.get_current_device().device_id, "Ascend")
        named |= {"CANN": cann_version() or "unknown", "driver": _written_version(DRIVER) or "unknown"}
    return named


def processor() -> str:
    """The CPU: its name, kind, widest vectors and cores, which decide how sums are cut."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines() if path.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = next((name for name in ("avx512f", "avx2") if name in said.get("flags", "").split()), "")
    name = said.get("model name") or platform.processor() or platform.machine()
    kind = " ".join(said[key] for key in ("cpu family", "model", "stepping") if key in said)
    return " ".join(filter(None, (name, kind, vectors, f"{os.cpu_count()} cores")))


def peak_memory() -> int | None:
    """Most bytes ever allocated on the device at once; None on CPU, whose memory is the host's."""
    import mindspore as ms

    return None if current() == "CPU" else ms.runtime.max_memory_allocated()  # never run on Ascend: untested


def forget_peak() -> None:
    """Let `peak_memory` start from what is allocated now."""
    import mindspore as ms

    if current() != "CPU":
        ms.runtime.reset_peak_memory_stats()  # never run on Ascend: untested


def wait(results: Iterable[Any]) -> None:
    """Wait until these tensors are there."""
    import mindspore as ms

    if current() == "CPU":
        for tensor in results:
            tensor.asnumpy()
    else:
        ms.runtime.synchronize()  # never run on Ascend: untested


def zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """A tensor of zeros, made on the device: a 7B's moments are 55 GiB that no host has to hold."""
    import mindspore as ms
    import numpy as np

    if current() == "CPU":  # all float32; numpy's zeros take no memory before they are written
        return ms.Tensor.from_numpy(np.zeros(shape, np.float32))
    return ms.ops.zeros(shape, dtype)


def upload(array: "np.ndarray") -> Any:
    """The array as a tensor; on Ascend its copy to the device begins and nobody waits for it."""
    import mindspore as ms

    if current() == "CPU":
        return ms.Tensor(array)
    return ms.Tensor.from_numpy(array).move_to("Ascend", blocking=False)  # never run there: untested


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one compiled graph.

    MindSpore notes on a Cell which of its methods was compiled last, and later parses the whole Cell as that
    method. A plain function around the method keeps the note off the Cell.
    """

    def run(*arguments: Any) -> Any:
        return function(*arguments)

    return to_graph(run)


def to_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """MindSpore's graph of a function, or of a Cell's `construct`."""
    import mindspore as ms

    # O1: chains of element-wise operations become one kernel; O0, the default, launches each.
    return ms.jit(function) if current() == "CPU" else ms.jit(function, jit_level="O1")


def compiler(mode: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What `--mode` makes of a function: `compiled`, or itself, to run op by op."""
    return compiled if mode == "graph" else lambda function: function
