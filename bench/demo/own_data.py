"""`make own-data`: edits of pictures as a user would bring them, and the proof that a network learned them.

"Make the square blue.": the user shows a scene of the sample, the assistant draws it in that colour. The rows
are JSONL files of conversations beside their PNGs; a sources.yaml names them and the sample's four datasets.
What is edited in the end is held out: no training row shows or draws these pictures, nor any others with
their shape, background and place. The judge is the demo's.
"""

# Shapes: H W pixels, C channels.

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
import yaml

from bench.demo.proof import CHANCES, SHARES, Figure, command, drawn_by, overview, prove, shares_right
from bench.measures.link import ROOT
from janus.checkpoint.folder import write_json
from janus.common.files import write_file
from janus.generate.pictures import save_picture
from pipelines.sample.scenes import BACKGROUNDS, COLOURS, COLUMNS, SHAPES, Scene
from pipelines.sources import load_sources
from trainer.report.records import EVALUATIONS

WORK = ROOT / "data" / "own-data"
SEED = 0
TRAINED = 17
"""Edits of each instruction that are trained on, of 24; there are twelve instructions."""
LONGEST = 1280
"""Tokens of a sample: an edit has two pictures."""
DRAWING = ("--guidance", "1.5", "--temperature", "0.5", "--batch", "12")


@dataclass(frozen=True)
class Edit:
    """A scene, and the same one with its figure in another colour."""

    before: Scene
    after: Scene

    @property
    def instruction(self) -> str:
        """What the user says."""
        return f"Make the {self.after.shape} {self.after.colour}."

    def row(self, answered: bool = True) -> dict[str, Any]:
        """The conversation as a line of JSONL; without its answer it asks for one."""
        shown = [{"type": "image", "image": file_of(self.before)}, {"type": "text", "text": self.instruction}]
        asked = {"role": "user", "content": shown}
        if not answered:
            return {"messages": [asked], "draw": True}
        drawn = [{"type": "image", "image": file_of(self.after)}]
        return {"messages": [asked, {"role": "assistant", "content": drawn}]}


def file_of(scene: Scene) -> str:
    """The scene's picture, relative to the JSONL."""
    return f"pictures/{'-'.join((scene.colour, scene.shape, scene.background, scene.column))}.png"


def all_edits(seed: int) -> tuple[list[Edit], list[Edit]]:
    """Edits to train on, equally many of each instruction, and held-out ones.

    Held out are three of the 27 combinations of shape, background and place, in all their colours.
    """
    trained: dict[str, list[Edit]] = {}
    held_out = []
    names = list(SHAPES), list(BACKGROUNDS), list(COLUMNS)
    for places in product(range(3), repeat=3):
        shape, background, column = (own[place] for own, place in zip(names, places, strict=True))
        for before, after in permutations(COLOURS, 2):
            scene = Scene(shape, before, background, column)
            edit = Edit(scene, replace(scene, colour=after))
            if len(set(places)) == 1:
                held_out.append(edit)
            else:
                trained.setdefault(edit.instruction, []).append(edit)
    random = Random(f"edits:{seed}")
    return [edit for edits in trained.values() for edit in random.sample(edits, TRAINED)], held_out


def write_edits(folder: Path, trained: Sequence[Edit], held_out: Sequence[Edit]) -> None:
    """The JSONL files with their pictures, and `asked.jsonl`, which asks for the held-out ones."""
    (folder / "pictures").mkdir(parents=True)
    for scene in {scene for edit in (*trained, *held_out) for scene in (edit.before, edit.after)}:
        scene.draw().save(folder / file_of(scene))
    files = {"train": (trained, True), "validation": (held_out, True), "asked": (held_out, False)}
    for name, (edits, answered) in files.items():
        lines = [json.dumps(edit.row(answered)) + "\n" for edit in edits]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_sources(path: Path, sample: Path) -> None:
    """The sources.yaml: the edits, split by their files' names, and the four datasets of the sample."""
    sources: dict[str, Any] = {
        source.name: {"preset": source.name, "folder": f"{sample.name}/{source.folder}"}
        for source in load_sources()
    }
    # Its scenes are those of the edits, whose files say already what is held out.
    sources["artwork"]["split"] = "train"
    sources["edits"] = {"path": "edits/[tv]*.jsonl", "split": "upstream", "licence": "CC0 1.0"}
    path.write_text(yaml.safe_dump({"sources": sources}, sort_keys=False), encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Write edits as JSONL, train on them beside the embedded sample, edit held-out pictures, check them.

    Everything goes to data/own-data, which is emptied first.
    """
    shutil.rmtree(WORK, ignore_errors=True)
    times = [time.perf_counter()]
    trained, held_out = all_edits(SEED)
    sample, shards, run = WORK / "sample", WORK / "shards", WORK / "run"
    command("pipelines", "sample", "--data", sample)
    write_edits(WORK / "edits", trained, held_out)
    write_sources(WORK / "sources.yaml", sample)
    model, longest = ("--model", sample / "tiny"), ("--max-length", LONGEST)
    folders = ("--sources", WORK / "sources.yaml", "--work", WORK / "work", "--out", shards)
    command("pipelines", "build", *folders, "--tokenizer", sample / "tokenizer", *model, *longest)
    times.append(time.perf_counter())
    command("trainer", "train", "--config", "own-data", *model, "--shards", shards, "--out", run)
    times.append(time.perf_counter())
    newest = max((run / "checkpoints").iterdir())
    asked = ("--chat", WORK / "edits" / "asked.jsonl", "--out", WORK / "drawn")
    command("janus", "generate", newest, *asked, *DRAWING)
    shares = judge(WORK / "drawn", held_out, run / EVALUATIONS)
    command("trainer", "report", run)
    times.append(time.perf_counter())
    parts = (*np.diff(times), times[-1] - times[0])
    click.echo("\nshards {:.0f} s, training {:.0f} s, pictures {:.0f} s, together {:.0f} s".format(*parts))
    prove(figures(shares))


def judge(drawn: Path, edits: Sequence[Edit], out: Path) -> dict[str, float]:
    """Share of the pictures that are as told in each part; figures and an overview go where reports look.

    The overview has each picture that was shown beside the one that was drawn.
    """
    pictures = drawn_by(drawn, "number")
    drawn_HWC = [pictures[str(number)] for number in range(len(edits))]
    shares = shares_right(drawn_HWC, [edit.after for edit in edits])
    content = {"metrics": {"edit": {"edits": len(edits), **shares}}}
    out.mkdir(exist_ok=True)
    write_file(out / "held-out-edits.json", lambda path: write_json(path, content))
    pairs = zip(edits, drawn_HWC, strict=True)
    grid = overview([pixels for edit, own in pairs for pixels in (np.asarray(edit.before.draw()), own)])
    facts = {f"prompt {i}": edit.instruction for i, edit in enumerate(edits)}
    save_picture(out / "held-out-edits.png", grid, facts)
    return shares


def figures(shares: Mapping[str, float]) -> list[Figure]:
    """Everything that is to be proved: the colour is the one that was asked for, all else is kept."""
    words = {"colour": "as told", "background": "kept", "shape": "kept"}
    return [
        Figure(f"edit: {part} {words[part]}", shares[part], 1 / CHANCES[part], bound)
        for part, bound in SHARES.items()
    ]


if __name__ == "__main__":
    main()
