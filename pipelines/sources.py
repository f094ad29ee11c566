"""The datasets of `sources.yaml`: which of them a data folder holds, and their download.

`<data>/revisions.json` says which commit of each was downloaded; the manifest repeats it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import yaml

from janus.common.errors import UserError
from janus.common.files import write_text

REVISIONS = "revisions.json"
TIMEOUT = 10.0
"""Seconds after which the hub counts as unreachable."""


@dataclass(frozen=True)
class Source:
    """One dataset."""

    name: str  # in the column `source`
    repo_id: str  # of the dataset on the hub
    revision: str | None  # commit hash; None: looked up at the first download and kept
    patterns: list[str]  # files that are needed, relative to the folder
    folder: str  # in the data folder
    adapter: str  # a key of ADAPTERS
    task: str  # text, vqa or t2i
    licence: str
    upstream_splits: list[str]  # kept if there are several
    may_lack_images: bool = False  # missing pictures are expected and do not stop a build


def load_sources(names: Sequence[str] = ()) -> list[Source]:
    """The named sources of sources.yaml, or all, in its order."""
    content = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))["sources"]
    return [Source(name, **entry) for name, entry in content.items() if not names or name in names]


def present_sources(data: Path, names: Sequence[str]) -> list[Source]:
    """The named sources (or all) whose folder is in `data`; the others are reported as skipped.

    Their `revision` comes from `revisions.json`, None for files put there by hand. Raises UserError if `data`
    holds none of the folders.
    """
    revisions = read_revisions(data)
    chosen = [replace(source, revision=revisions.get(source.name)) for source in load_sources(names)]
    present = [source for source in chosen if (data / source.folder).is_dir()]
    if not present:
        raise UserError(
            f"{data}: holds none of {', '.join(source.folder for source in chosen)}; `pipelines sample "
            f"--data {data}` writes a synthetic data set, `pipelines download --data {data}` fetches the real"
        )
    for source in chosen:
        if source not in present:
            click.echo(f"ingest: {source.name} skipped, no folder {data / source.folder}")
    return present


def read_revisions(data: Path) -> dict[str, str]:
    """Source → commit that was downloaded into `data`, or a note that its files are synthetic."""
    try:
        return json.loads((data / REVISIONS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{data / REVISIONS}: not JSON ({error}); remove it and download again") from error


def write_revisions(data: Path, revisions: dict[str, str]) -> None:
    """Add to the revisions of `data`."""
    content = read_revisions(data) | revisions
    write_text(data / REVISIONS, json.dumps(content, indent=1, sort_keys=True) + "\n")


def download(data: Path, names: Sequence[str]) -> None:
    """Fetch the needed files of every named source (or all) at its commit; resumes an interrupted download.

    Raises UserError, within seconds, if the hub is unreachable or refuses.
    """
    data.mkdir(parents=True, exist_ok=True)
    for source in load_sources(names):
        kept = read_revisions(data).get(source.name)
        if kept and kept.startswith("synthetic"):
            raise UserError(f"{data}: holds the synthetic sample; give another --data to download into")
        try:
            _fetch(source, source.revision or kept, data)
        except Exception as error:  # the hub's client lets through whatever its transport raises
            # Only the type: messages may carry request headers.
            raise UserError(
                f"download: {source.repo_id} cannot be fetched ({type(error).__name__}); check the network "
                f"and HF_TOKEN, or put {', '.join(source.patterns)} into {data / source.folder} by hand"
            ) from None


def _fetch(source: Source, revision: str | None, data: Path) -> None:
    """Download one source. Its commit is noted first, so that a resumed download asks for the same."""
    from huggingface_hub import HfApi, snapshot_download

    # Asked first: snapshot_download takes an existing folder for complete when the hub is unreachable.
    commit = HfApi().dataset_info(source.repo_id, revision=revision, timeout=TIMEOUT).sha
    if revision is None:
        click.echo(f"download: {source.name}: no revision in sources.yaml, pinned to {commit}")
    write_revisions(data, {source.name: str(commit)})
    snapshot_download(
        source.repo_id,
        repo_type="dataset",
        revision=commit,
        allow_patterns=source.patterns,
        local_dir=data / source.folder,
        etag_timeout=TIMEOUT,
    )
    click.echo(f"download: {source.name} at {commit} in {data / source.folder}")
