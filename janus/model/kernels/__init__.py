"""The operations a device is good or bad at, in one body for each device, and the switch between them.

    kernels = body()                       # what the device in use computes fastest
    self.rotate = kernels.Rotary(config.num_heads, config.head_size, config.rope_theta)

A body is a module with the Cells that `plain.py` has, under the same names and with the same arguments: Cells
hold no parameters. `plain.py` says what is computed; `cpu.py` and `ascend.py` compute the same faster, and
tests hold their values and gradients against the plain ones. `JOINED` says whether a body takes weights of
one input below each other, `takes_slots` how it takes segments. Another device gets a file of its own and a
line in `BODIES`.
"""

from importlib import import_module
from types import ModuleType

from janus.device import current

BODIES = {"CPU": "cpu", "Ascend": "ascend"}
"""By device."""
SLOTTED = {"cpu"}
"""Bodies whose attention takes tokens in rows of slots, not where their segments end."""


def body(device: str | None = None) -> ModuleType:
    """The kernels of `device`; None: of the device in use."""
    return import_module(f"{__name__}.{BODIES[device or current()]}")


def takes_slots(device: str = "auto") -> bool:
    """Whether a batch needs slots on `device`; MindSpore is loaded only to answer for "auto"."""
    return BODIES[current() if device == "auto" else device] in SLOTTED
