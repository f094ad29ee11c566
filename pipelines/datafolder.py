"""A data folder: which sources lie in it, from which commits, and their download.

`<data>/revisions.json` says which commit of each was downloaded; the manifest repeats it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from janus.common.errors import UserError
from janus.common.files import write_text
from pipelines.forms.captions import has_captions
from pipelines.forms.files import suffix_of
from pipelines.sources import Source, load_sources, source_of

REVISIONS = "revisions.json"
TIMEOUT = 10.0
"""Seconds after which the hub counts as unreachable."""


def present_sources(data: Path, names: Sequence[str], file: Path | None = None) -> tuple[Path, list[Source]]:
    """The named sources (or all) to read, and the folder that theirs are relative to.

    Those of `file`, else of <data>/sources.yaml, else the presets whose folder is in `data` (the others are
    reported as skipped), else the one file of a known form there. Raises UserError if there is none.
    """
    if file is None and (data / "sources.yaml").is_file():
        file = data / "sources.yaml"
    if file is not None:
        return file.parent, load_sources(names, file)
    revisions = read_revisions(data)
    chosen = [replace(source, revision=revisions.get(source.name)) for source in load_sources(names)]
    present = [source for source in chosen if (data / source.folder).is_dir()]
    if not present and not names and (source := _only_source(data)):
        return data, [source]
    if not present:
        folders = ", ".join(source.folder for source in chosen)
        raise UserError(
            f"{data}: holds none of {folders}, no sources.yaml and no single file of a known form; "
            f"`pipelines sample --data {data}` writes a synthetic data set, "
            f"`pipelines download --data {data}` fetches the real ones"
        )
    for source in chosen:
        if source not in present:
            click.echo(f"ingest: {source.name} skipped, no folder {data / source.folder}")
    return data, present


def _only_source(data: Path) -> Source | None:
    """The one table in the folder, or its captioned pictures, as a source. None if there is no such thing."""
    if not data.is_dir():
        return None
    tables = [path for path in sorted(data.iterdir()) if suffix_of(path) and path.name != REVISIONS]
    tables = [path for path in tables if path.suffix != ".json"] or tables  # .json may describe the others
    if len(tables) == 1:
        return source_of(tables[0], data)
    return source_of(data, data) if not tables and has_captions(data) else None


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
    content = json.dumps(read_revisions(data) | revisions, indent=1, sort_keys=True)
    write_text(data / REVISIONS, content + "\n")


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
        allow_patterns=list(source.patterns),
        local_dir=data / source.folder,
        etag_timeout=TIMEOUT,
    )
    click.echo(f"download: {source.name} at {commit} in {data / source.folder}")
