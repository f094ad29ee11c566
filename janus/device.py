"""The only place that sets or asks for the device, the mode, determinism and device memory.

A command calls `use` before its first tensor; code that may run without a command calls `current`.
"""

from collections.abc import Callable
from typing import Any

from janus.common.errors import UserError

DEVICES = ("auto", "CPU", "Ascend")
"""Values of every command's `--device`."""


def use(device: str = "auto", dtype: str = "float32") -> str:
    """Compute on `device` from now on; returns its name, "CPU" or "Ascend".

    auto: the device in use, which at first is the best that this MindSpore has. Operations run one by one;
    only what `compiled` marks becomes a graph.
    Raises UserError if the device is missing or cannot compute in `dtype`.
    """
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    if device not in ("auto", current()):
        try:
            ms.set_device(device)
        except RuntimeError as error:
            reason = str(error).split(". ")[0].strip()
            raise UserError(f"device: {device} cannot be used: {reason}; use --device {current()}") from error
        if device == "Ascend":  # a resumed run repeats bits; never run there: untested
            ms.set_deterministic(True)
    check_dtype(dtype, current())
    return current()


def current() -> str:
    """The device in use, "CPU" or "Ascend"."""
    import mindspore as ms

    return ms.get_context("device_target")


def check_dtype(dtype: str, device: str) -> None:
    """Raise UserError if the device has no kernels for `dtype`. device: one of `DEVICES`."""
    if dtype == "bfloat16" and device == "CPU":
        raise UserError("dtype: bfloat16 has no kernels on CPU; use --dtype float32")


def peak_memory() -> int | None:
    """Most bytes ever allocated on the device at once; None on CPU, whose memory is the host's."""
    import mindspore as ms

    return None if current() == "CPU" else ms.runtime.max_memory_allocated()  # never run on Ascend: untested


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one compiled graph.

    MindSpore notes on a Cell which of its methods was compiled last, and later parses the whole Cell as that
    method. A plain function around the method keeps the note off the Cell.
    """
    import mindspore as ms

    def run(*arguments: Any) -> Any:
        return function(*arguments)

    return ms.jit(run)
