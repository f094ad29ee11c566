"""A function per dataset: from its folder, in the hub's own layout, to `RawRow`s.

An adapter knows where fields lie, and rejects rows it cannot take apart. What holds for every source
(stripping, empty texts, hashes) is done once, by ingest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.adapters.artwork import read_artwork
from pipelines.adapters.medical_vqa import read_medical_vqa
from pipelines.adapters.parquet import read_pubmedqa, read_roco
from pipelines.adapters.raw import RawRow

ADAPTERS: dict[str, Callable[[Path], tuple[int, Iterator[RawRow]]]] = {
    "pubmedqa": read_pubmedqa,
    "artwork": read_artwork,
    "medical_vqa": read_medical_vqa,
    "roco": read_roco,
}
"""Adapter in sources.yaml → number of rows, and the rows. UserError names a file of another layout."""
