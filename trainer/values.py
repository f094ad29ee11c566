"""Kinds of values an option can take: one parser for the command line and for YAML, so neither drifts.

YAML scalars arrive as they are written (`5:1:4` would otherwise be a number of base 60, `1e-3` a text).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from janus.prompts import TASK_ORDER


@dataclass(frozen=True)
class Kind:
    """metavar: what help shows. parse: from a text, list or mapping; ValueError says what was expected."""

    metavar: str
    parse: Callable[[Any], Any]
    is_flag: bool = False


def whole(minimum: int = 0) -> Kind:
    """An integer of at least `minimum`."""

    def parse(value: Any) -> int:
        try:
            number = int(_text(value))
        except ValueError:
            raise ValueError(f"expected a whole number, got {value!r}") from None
        if number < minimum:
            raise ValueError(f"expected at least {minimum}, got {number}")
        return number

    return Kind("N", parse)


def number(low: float = 0.0, high: float = math.inf, *, above_low: bool = False) -> Kind:
    """A finite number in [low, high), or in (low, high) with `above_low`."""

    def parse(value: Any) -> float:
        try:
            found = float(_text(value))
        except ValueError:
            raise ValueError(f"expected a number, got {value!r}") from None
        if not (low < found if above_low else low <= found) or not found < high:
            bounds = f"{'above' if above_low else 'at least'} {low:g}"
            raise ValueError(
                f"expected {bounds}{'' if high == math.inf else f' and below {high:g}'}, got {found:g}"
            )
        return found

    return Kind("X", parse)


def choice(*names: str) -> Kind:
    """One of the names."""

    def parse(value: Any) -> str:
        if _text(value) not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {value!r}")
        return _text(value)

    return Kind("|".join(names), parse)


def numbered_choice(*numbers: int) -> Kind:
    """One of the numbers."""
    named = choice(*map(str, numbers))
    return Kind(named.metavar, lambda value: int(named.parse(value)))


def text(metavar: str) -> Kind:
    """A text that is not empty."""

    def parse(value: Any) -> str:
        if not _text(value):
            raise ValueError("expected a value, got nothing")
        return _text(value)

    return Kind(metavar, parse)


def names() -> Kind:
    """Names with commas between (or a YAML list), as a tuple."""

    def parse(value: Any) -> tuple[str, ...]:
        parts = value if isinstance(value, list | tuple) else _text(value).split(",")
        return tuple(part.strip() for part in map(_text, parts) if part.strip())

    return Kind("NAME[,NAME]", parse)


def flag() -> Kind:
    """true or false."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

    def parse(value: Any) -> bool:
        if _text(value).lower() not in words:
            raise ValueError(f"expected true or false, got {value!r}")
        return words[_text(value).lower()]

    return Kind("", parse, is_flag=True)


def task_ratio() -> Kind:
    """`5:1:4`, in the order vqa:text:t2i (or a YAML mapping), as a dict."""

    def parse(value: Any) -> dict[str, int]:
        if isinstance(value, Mapping):
            return _counts_by_task(value.items())
        parts = _text(value).split(":")
        if len(parts) != len(TASK_ORDER):
            raise ValueError(f"expected vqa:text:t2i, for example 5:1:4, got {value!r}")
        return _counts_by_task(zip(TASK_ORDER, parts, strict=True))

    return Kind("V:T:I", parse)


def task_counts() -> Kind:
    """`vqa=100,text=20,t2i=80` (or a YAML mapping), as a dict."""

    def parse(value: Any) -> dict[str, int]:
        if isinstance(value, Mapping):
            return _counts_by_task(value.items())
        pairs = [part.partition("=") for part in _text(value).split(",") if part.strip()]
        return _counts_by_task((name, count) for name, _, count in pairs)

    return Kind("TASK=N,…", parse)


def _counts_by_task(pairs: Any) -> dict[str, int]:
    counts = {}
    for name, count in pairs:
        name = _text(name).strip()
        if name not in TASK_ORDER:
            raise ValueError(f"expected the tasks {', '.join(TASK_ORDER)}, got {name!r}")
        if name in counts:
            raise ValueError(f"task {name} is given twice")
        counts[name] = whole().parse(_text(count).strip())
    return counts


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | Mapping):
        raise ValueError(f"expected one value, got {value!r}")
    return str(value)
