"""One module per dataset: from its folder, in the hub's own layout, to `RawRow`s.

An adapter knows where fields lie, and sets aside rows it cannot take apart. What holds for every source
(stripping, empty texts, hashes) is done once, by ingest.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol

from pipelines.adapters.common import RawRow


class Adapter(Protocol):
    """The functions of an adapter module. Both raise UserError for a file of another layout."""

    def count_rows(self, folder: Path) -> int:
        """Rows that `read` will give."""

    def read(self, folder: Path) -> Iterator[RawRow]: ...


def load_adapter(name: str) -> Adapter:
    """The module that sources.yaml names."""
    return import_module(f"pipelines.adapters.{name}")  # type: ignore[return-value]
