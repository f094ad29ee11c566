"""`sources.yaml` as frozen dataclasses: which datasets a build reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from janus.common.errors import UserError
from janus.common.files import write_text

REVISIONS = "revisions.json"


@dataclass(frozen=True)
class Source:
    """One dataset of the recipe."""

    name: str  # what the column `source` says
    repo_id: str  # of the dataset on the hub
    revision: str | None  # commit hash; None: looked up at the first download and kept
    patterns: tuple[str, ...]  # files that are needed, relative to the folder
    folder: str  # its place in the data folder
    adapter: str  # module in pipelines/adapters that reads it
    task: str  # text, vqa or t2i
    licence: str
    upstream_splits: tuple[str, ...]
    may_lack_images: bool = False  # rows without their picture are expected, and do not stop a build

    @property
    def keeps_splits(self) -> bool:
        """Whether upstream's own division is kept."""
        return len(self.upstream_splits) > 1


def load_recipe() -> tuple[Source, ...]:
    """The sources of sources.yaml, in its order."""
    content = yaml.safe_load((Path(__file__).parent / "sources.yaml").read_text(encoding="utf-8"))
    return tuple(_source(name, entry) for name, entry in content["sources"].items())


def _source(name: str, entry: dict[str, Any]) -> Source:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Source(name=name, **{**entry, **lists})


def chosen_sources(names: Sequence[str]) -> tuple[Source, ...]:
    """The named sources, or all if none is named."""
    return tuple(source for source in load_recipe() if not names or source.name in names)


def present_sources(data: Path, names: Sequence[str]) -> tuple[list[Source], list[Source]]:
    """The chosen sources whose folder stands in `data`, and those whose does not.

    Their `revision` is what lies there by `revisions.json`, None for files put there by hand.
    """
    revisions = read_revisions(data)
    chosen = [replace(source, revision=revisions.get(source.name)) for source in chosen_sources(names)]
    present = [source for source in chosen if (data / source.folder).is_dir()]
    if not present:
        folders = ", ".join(source.folder for source in chosen)
        raise UserError(
            f"{data}: holds none of {folders}; `pipelines sample --data {data}` writes a synthetic "
            f"data set, `pipelines download --data {data}` fetches the real ones"
        )
    return present, [source for source in chosen if source not in present]


def read_revisions(data: Path) -> dict[str, str]:
    """Source → commit that was downloaded into `data`, or that its files are synthetic."""
    try:
        return json.loads((data / REVISIONS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{data / REVISIONS}: not JSON ({error}); remove it and download again") from error


def write_revision(data: Path, name: str, revision: str) -> None:
    """Note what lies in `data` for a source."""
    content = {**read_revisions(data), name: revision}
    write_text(data / REVISIONS, json.dumps(content, indent=1, sort_keys=True) + "\n")
