"""Stage download: the recipe's datasets from the hub, at a pinned commit, only the files needed.

A download that was cut off continues where it stopped. Which commit lies in the data folder stands in
`<data>/revisions.json`, and from there in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from janus.common.errors import UserError
from pipelines.sources import Source, chosen_sources, read_revisions, write_revision

TIMEOUT = 10.0
"""Seconds until the hub is taken to be out of reach."""


def download(data: Path, names: Sequence[str]) -> None:
    """Fetch every chosen source into `data`.

    Raises UserError, within seconds, if the hub cannot be reached or refuses.
    """
    data.mkdir(parents=True, exist_ok=True)
    for source in chosen_sources(names):
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
    """Download one source and note its commit, first, so that a resumed download asks for the same."""
    from huggingface_hub import HfApi, snapshot_download

    # Asked first: snapshot_download takes an existing folder for whole when the hub is out of reach.
    commit = HfApi().dataset_info(source.repo_id, revision=revision, timeout=TIMEOUT).sha
    if revision is None:
        click.echo(f"download: {source.name}: no revision in the recipe, pinned to {commit}")
    write_revision(data, source.name, str(commit))
    snapshot_download(
        source.repo_id,
        repo_type="dataset",
        revision=commit,
        allow_patterns=list(source.patterns),
        local_dir=data / source.folder,
        etag_timeout=TIMEOUT,
    )
    click.echo(f"download: {source.name} at {commit} in {data / source.folder}")
