"""What is known of a primitive's kernels on Ascend: `support.yaml`, and MindSpore's own docstrings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import yaml

TABLE = Path(__file__).with_name("support.yaml")
_PLATFORMS = re.compile(r"Supported Platforms:\s*\n\s*(.*)")
_REFERRED = re.compile(r":(?:func|class):`(mindspore[\w.]+)`")
_HOMES = ("ops.auto_generate", "ops.operations", "ops.operations._inner_ops", "ops")


@dataclass(frozen=True)
class Support:
    """The table; `support.yaml` says what each part means.

    functions: the function whose docstring speaks for a primitive. allowed: the source that says a primitive
    has a kernel. dtypes: of a primitive's first tensors, each combination. int64: why a primitive may read
    64-bit integers.
    """

    functions: Mapping[str, str]
    allowed: Mapping[str, str]
    dtypes: Mapping[str, list[tuple[str, ...]]]
    int64: Mapping[str, str]

    @classmethod
    def load(cls, path: Path = TABLE) -> Self:
        """The table of a file."""
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        dtypes = {name: [*map(tuple, kernel["inputs"])] for name, kernel in content.pop("dtypes").items()}
        return cls(dtypes=dtypes, **content)

    def known(self, primitive: str) -> bool:
        """Whether the primitive is documented for Ascend, or the table names a source for its kernel."""
        if primitive in self.allowed:
            return True
        return "Ascend" in platforms(primitive, self.functions.get(primitive, ""))


@cache
def platforms(primitive: str, function: str = "") -> tuple[str, ...]:
    """The platforms that MindSpore's docstrings name for a primitive; none where they say nothing.

    function: whose docstring speaks for the primitive. Else that of the primitive's class, or of the function
    that it refers to.
    """
    text = _docstring(function) if function else _of_class(primitive)
    found, referred = _PLATFORMS.search(text), _REFERRED.search(text)
    if not found and referred:
        found = _PLATFORMS.search(_docstring(referred[1]))
    return tuple(re.findall(r"``(\w+)``", found[1])) if found else ()


def _of_class(primitive: str) -> str:
    homes = (import_module(f"mindspore.{home}") for home in _HOMES)
    classes = (getattr(home, primitive, None) for home in homes)
    return next((found.__doc__ or "" for found in classes if isinstance(found, type)), "")


def _docstring(path: str) -> str:
    """Of what a dotted path below `mindspore` names; nothing if there is no such thing."""
    import mindspore

    found = reduce(lambda at, name: getattr(at, name, None), path.split(".")[1:], mindspore)
    return getattr(found, "__doc__", None) or ""
