"""`pipelines sample`: a small synthetic data set in the four datasets' own raw layouts.

Invented drugs (text), shapes and phantoms with questions (vqa) and with captions (t2i), all drawn and
worded from one seed. Every answer can be told from the question's own rule or from the picture. With
it comes a small tokenizer that has Janus-Pro's special tokens.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from janus.common.errors import UserError
from pipelines.sample.captions import write_artwork, write_roco
from pipelines.sample.facts import write_pubmedqa
from pipelines.sample.questions import write_medical_vqa
from pipelines.sample.tokenizer import write_tokenizer
from pipelines.sources import load_recipe, read_revisions, write_revision

VERSION = 3
"""Raised whenever the same seed comes to give other data."""


def write_sample(data: Path, seed: int) -> None:
    """Write the data set into `data`, whole or not at all; nothing is done if it is there already.

    Raises UserError if `data` holds anything but an earlier sample.
    """
    mark = f"synthetic {VERSION}, seed {seed}"
    there = set(read_revisions(data).values())
    if there == {mark}:
        click.echo(f"sample: {data} unchanged, skipped")
        return
    if data.exists() and any(data.iterdir()) and not all(m.startswith("synthetic") for m in there or {""}):
        raise UserError(f"{data}: holds other files; give --data a new folder for the sample")
    beside = data.with_name(f".tmp-{data.name}")
    shutil.rmtree(beside, ignore_errors=True)
    folders = {source.adapter: beside / source.folder for source in load_recipe()}
    texts = [
        *write_pubmedqa(folders["pubmedqa"], seed),
        *write_artwork(folders["artwork"], seed),
        *write_medical_vqa(folders["medical_vqa"], seed),
        *write_roco(folders["roco"], seed),
    ]
    write_tokenizer(beside / "tokenizer", texts)
    for source in load_recipe():
        write_revision(beside, source.name, mark)
    shutil.rmtree(data, ignore_errors=True)
    beside.rename(data)
    click.echo(f"sample: written to {data}, tokenizer in {data / 'tokenizer'}")
