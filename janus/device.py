"""One switch between compiled graphs and op-by-op execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any], mode: str = "graph") -> Callable[..., Any]:
    """The function as one compiled graph, or as it is where mode is "pynative".

    MindSpore notes on a Cell which of its methods was compiled last, and later parses the whole Cell as that
    method. A plain function around the method keeps the note off the Cell.
    """
    import mindspore as ms

    if mode == "pynative":
        return function

    def run(*arguments: Any) -> Any:
        return function(*arguments)

    return ms.jit(run)
