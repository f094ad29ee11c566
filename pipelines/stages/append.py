"""What stage write appends to: shards that were written from the first generations, by the same options.

WORK/published.json says by the hash of a manifest what its folder was written from. It is written before a
folder is published and names the folder before as well: a build may be killed at any point.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from janus.common.files import hash_file, write_text
from shards.manifest import MANIFEST, Manifest, folder_problems, load_manifest
from shards.read import open_shard

PUBLISHED = "published.json"


@dataclass(frozen=True)
class Old:
    """A folder of shards that is appended to.

    known: inputs of stage write that it was written from; "stages" has an entry for each generation.
    """

    folder: Path
    manifest: Manifest
    known: Mapping[str, Any]

    @classmethod
    def of(cls, out: Path, known: Mapping[str, Any] | None, inputs: Mapping[str, Any]) -> Self | None:
        """What is in `out`, if the inputs are those it was written from, and maybe more generations."""
        if known is None or {**known, "stages": []} != {**inputs, "stages": []}:
            return None
        manifest = load_manifest(out)
        continued = inputs["stages"][: len(known["stages"])] == known["stages"]
        return cls(out, manifest, known) if continued and not folder_problems(out, manifest) else None

    @property
    def generations(self) -> int:
        """How many generations it was written from."""
        return len(self.known["stages"])

    def sides(self) -> dict[str, str]:
        """Split of each row by sample_id."""
        return {
            sample_id: entry.split
            for entry in self.manifest.shards
            for chunk in open_shard(self.folder, entry).column("sample_id")
            for sample_id in chunk.to_pylist()
        }

    def extended(self, new: Manifest) -> Manifest:
        """The manifest of the folder with what is new."""
        old = self.manifest
        counts = {
            name: count + old.counts[name] if name in old.counts else count
            for name, count in new.counts.items()
        }
        return replace(
            new,
            counts={**old.counts, **counts},
            shards=old.shards + new.shards,
            pictures=old.pictures + new.pictures,
            generations=old.generations + (new.generations if new.counts else ()),
        )

    def link(self, out: Path) -> None:
        """Give `out` its files, copied where the file system has no links."""
        for entry in self.manifest.files:
            (out / entry.path).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.folder / entry.path, out / entry.path)
            except OSError:
                shutil.copy2(self.folder / entry.path, out / entry.path)


def published(work: Path, out: Path) -> Mapping[str, Any] | None:
    """What `out` was written from, None if that is not known."""
    try:
        return json.loads((work / PUBLISHED).read_text(encoding="utf-8")).get(hash_file(out / MANIFEST))
    except (OSError, ValueError):
        return None


def note_published(work: Path, tmp: Path, inputs: Mapping[str, Any], old: Old | None) -> None:
    """Note what `tmp`, which is published next, is written from; and the folder in its place."""
    record = {hash_file(tmp / MANIFEST): inputs}
    if old:
        record.setdefault(hash_file(old.folder / MANIFEST), old.known)
    write_text(work / PUBLISHED, json.dumps(record))
