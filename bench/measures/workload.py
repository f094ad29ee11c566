"""A session of the benchmark and what it works on: the real samples where they stand, else the embedded ones.

All of it is made once in one folder: a tokenizer, shards, and for the ETL a
larger copy of the raw data.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measures.link import ROOT, Side, SideError

if TYPE_CHECKING:
    from shards.read import ShardSet
    from trainer.config import TrainConfig
    from trainer.stream.feed import Feed

HUB = ROOT.parent / "shared" / "data" / "hub"
OWN_TOKENIZERS = {size: ROOT.parent / "shared" / "tokenizers" / f"janus-pro-{size}" for size in ("1b", "7b")}
VOCABULARY = 8192 - 14
"""Entries of the benchmark's BPE; Janus-Pro's special tokens make it 8192."""

PUBLISHED_RATIO = {"vqa": 2, "text": 2, "t2i": 2}
OWN_RATIO = {"vqa": 5, "text": 1, "t2i": 4}


@dataclass(frozen=True)
class Workload:
    """folder: where everything lies, named SIZE-hub or SIZE-sample after preset and data.

    pixels: how the shards hold pictures. Raw ones hold medical-vqa alone and lie beside the others.
    """

    folder: Path
    pixels: str = "webp"

    @property
    def size(self) -> str:
        """The preset."""
        return self.folder.name.split("-")[0]

    @property
    def raw(self) -> Path:
        """The datasets in the hub's layouts."""
        return HUB if self.folder.name.endswith("-hub") else self.folder / "raw"

    @property
    def data(self) -> str:
        """Which samples these are, in words."""
        return "the real samples of ../shared/data/hub" if self.raw == HUB else "the embedded sample"

    @property
    def shards(self) -> Path:
        """The folder of shards."""
        return self.folder / f"shards{self._suffix}"

    @property
    def work(self) -> Path:
        """The folder of the pipeline's stages."""
        return self.folder / f"work{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "-raw" if self.pixels == "raw" else ""

    @cached_property
    def tokenizer(self) -> Path:
        """The tokenizer folder of the size: the real one for 1b and 7b."""
        own = OWN_TOKENIZERS.get(self.size)
        return own if own and own.is_dir() else self.folder / "tokenizer"

    def config(self, task: str, ratio: dict[str, int] | None = None, **options: Any) -> TrainConfig:
        """A run's configuration on this workload; the ratio also gives the samples of a step."""
        from trainer.config import resolve

        fixed: dict[str, Any] = {"task": task, "model": self.size, "shards": str(self.shards)}
        fixed |= {"eval_samples": 0, "null_prompt_prob": 0.0, "max_length": 1024}
        if ratio:
            fixed |= {"ratio": ratio, "batch_size": sum(ratio.values())}
        return resolve(fixed | options)

    def open(self) -> ShardSet:
        """The shards."""
        from shards.read import ShardSet

        return ShardSet.open(self.shards)

    def feed(self, config: TrainConfig) -> Feed:
        """What a run of this configuration reads."""
        from janus.checkpoint.folder import open_model
        from janus.tokens import JanusTokenizer
        from trainer.stream.feed import Feed
        from trainer.stream.shapes import ImageShape

        tokenizer = JanusTokenizer(self.shards / "tokenizer")
        image = ImageShape.of(open_model(self.size, tokenizer.folder).config)
        return Feed(self.open(), config, tokenizer.special, image)


@dataclass
class Session:
    """What the rows share.

    rounds: how often each side has its turn. peers: the interpreter that holds the peers' libraries.
    """

    workload: Workload
    rounds: int
    peers: str
    skipped: list[str] = field(default_factory=list)

    @property
    def scratch(self) -> Path:
        """A folder for logs and whatever a row writes."""
        folder = self.workload.folder / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def ours(self, name: str, *arguments: str) -> Side:
        """A side of our own."""
        return Side(name, list(arguments), self.scratch / f"{name}.log")

    def peer(self, name: str, *arguments: str) -> Side | None:
        """A peer's side; None, and a line that says why, where it cannot run."""
        log = self.scratch / f"{name}-{Path(arguments[0]).stem}.log"
        try:
            return Side(name, list(arguments), log, self.peers)
        except SideError as error:
            self.skipped.append(str(error))
            return None


def find(size: str, base: Path) -> Workload:
    """The workload of a size under `base`, nothing made yet."""
    return Workload(base / f"{size}-{'hub' if HUB.is_dir() else 'sample'}")


def prepare(workload: Workload) -> None:
    """Make whatever is missing: sample, tokenizer, shards."""
    if not workload.raw.is_dir():
        run("pipelines", "sample", "--data", str(workload.raw))
    if not (workload.tokenizer / "tokenizer.json").is_file():
        from pipelines.sample import write_tokenizer

        write_tokenizer(workload.tokenizer, _texts(workload.raw), VOCABULARY)
    folders = ["--data", str(workload.raw), "--work", str(workload.work)]
    folders += ["--out", str(workload.shards), "--tokenizer", str(workload.tokenizer)]
    sources = ["--source", "medical-vqa"] if workload.pixels == "raw" else []
    run("pipelines", "build", *folders, "--model", workload.size, "--pixels", workload.pixels, *sources)


def run(package: str, *arguments: str) -> str:
    """Run one of the project's commands; what it printed. Raises ClickException with its last lines."""
    command = [sys.executable, "-m", package, *arguments]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise click.ClickException(f"{' '.join(command[2:])}:\n{last}")
    return done.stdout


def _texts(raw: Path) -> list[str]:
    """Questions, answers and captions of the raw data, for the tokenizer."""
    texts: list[str] = []
    for path in sorted(raw.rglob("*.parquet")):
        table = pq.read_table(path)
        for column in {"question", "long_answer", "caption"}.intersection(table.column_names):
            texts += table[column].to_pylist()
    for path in sorted(raw.rglob("dataset.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        texts += [str(turn["value"]) for row in rows for turn in row["conversations"]]
    return sorted(texts)


def write_larger(raw: Path, target: Path, questions: int, pictures: int) -> None:
    """Raw data of the two datasets with most rows, at a chosen size, no row twice, each picture one file.

    questions: rows of PubMedQA. pictures: of medical-vqa, one question each; a picture that comes again
    gets another byte behind its end, so that it is another file.
    """
    if target.is_dir():
        return
    unfinished = target.with_name(f".tmp-{target.name}")
    _write_questions(raw / "PubMedQA", unfinished / "PubMedQA", questions)
    source = sorted((raw / "medical-vqa").glob("*/train/dataset.json"))[0].parent.parent
    _write_pictures(source, unfinished / "medical-vqa" / source.name, pictures)
    unfinished.rename(target)


def _write_questions(source: Path, target: Path, count: int) -> None:
    path = next(source.glob("pqa_labeled/*.parquet"))
    table = pq.read_table(path)
    repeats = -(-count // len(table))
    tables = []
    for repeat in range(repeats):
        ids = pa.array([10_000_000 * (repeat + 1) + i for i in range(len(table))], table["pubid"].type)
        asked = [f"{question} ({repeat})" for question in table["question"].to_pylist()]
        copy = table.set_column(table.schema.get_field_index("pubid"), "pubid", ids)
        tables.append(copy.set_column(table.schema.get_field_index("question"), "question", pa.array(asked)))
    (target / "pqa_labeled").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables).slice(0, count), target / "pqa_labeled" / path.name)


def _write_pictures(source: Path, target: Path, count: int) -> None:
    rows = json.loads((source / "train" / "dataset.json").read_text(encoding="utf-8"))
    by_file = {row["image"]: row for row in rows if (source / "images" / row["image"]).is_file()}
    files = sorted(by_file)
    (target / "images").mkdir(parents=True)
    written = []
    for number in range(count):
        repeat, place = divmod(number, len(files))
        row, name = by_file[files[place]], f"{repeat}-{files[place]}"
        content = (source / "images" / files[place]).read_bytes() + bytes([repeat]) * repeat
        (target / "images" / name).write_bytes(content)
        written.append({**row, "id": f"{row['id']}-{repeat}", "image": name})
    (target / "train").mkdir()
    (target / "train" / "dataset.json").write_text(json.dumps(written), encoding="utf-8")
