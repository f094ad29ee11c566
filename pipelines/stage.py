"""What the stages share, and the build that runs them one after another.

A stage's folder is whole or absent, and a stage is skipped while nothing it depends on has changed:
`stage.json` in the folder holds a fingerprint of the previous stages' fingerprints, the parameters and the
version of the code. Raw files enter by path, size and modification time (ns): a change that keeps all three
goes unnoticed.

A build that finds more rows and nothing else changed makes a *generation*: the stages before write run on the
new rows alone, in WORK/gen-001, WORK/gen-002, …, and write appends to the shards.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import click
import polars as pl
import pyarrow as pa

from janus.common.errors import UserError
from janus.common.files import exclusive_lock, write_file, write_folder
from janus.prompts import SPLITS
from pipelines.pool import start_forkserver
from pipelines.tables import REJECT_SCHEMA, REJECTS, frame, read_table, write_table

CODE_VERSION = 3
"""Raised whenever the same inputs come to give a stage other content."""

STAGES = ("ingest", "tokenize", "images", "vq", "write")
"""Modules of `pipelines/stages`, each with `run(…)`, whose parameters have the names of the options."""

PER_GENERATION = STAGES[1:4]
"""Stages that know one generation at a time."""

STAGE_FILE = "stage.json"

GENERATION = "gen-"

SPLIT_REASONS = ("duplicate", "duplicate_id", "leak")
"""Usable rows that are rejected because of other rows: they never stop a build."""


def run_stages(stages: list[str], options: Mapping[str, Any]) -> None:
    """Run the named stages in order; options: by their names on the command line.

    Raises UserError if more than `max_reject_rate` of the rows are unusable, a file cannot be read or
    written, or another process is at work in the same folder.
    """
    work: Path = options["work"]
    busy = f"{work}: another build is at work in this folder; wait for its end, or give another --work"
    stage = stages[0]
    try:
        work.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(work / ".lock", busy):
            if "workers" in options:
                start_forkserver([f"pipelines.stages.{s}" for s in stages if s in ("tokenize", "images")])
            if "model" in options:
                from janus.checkpoint.folder import open_model
                from janus.device import use

                open_model(options["model"])  # a misspelt one is reported before the first stage
                if options["device"] != "auto" or options["device_id"]:  # a missing one too
                    use(options["device"], "float32", options["device_id"], deterministic=True)
            for stage in stages:
                _run(stage, work, options)
    except OSError as error:
        raise UserError(
            f"{stage}: {error.filename or work}: {error.strerror or error}; make room, or repair the folder, "
            "and run again: finished stages are kept"
        ) from error


def _run(stage: str, work: Path, options: Mapping[str, Any]) -> None:
    """Run a stage, stop if too many rows are unusable by now, and print a summary after the last one."""
    run = import_module(f"pipelines.stages.{stage}").run  # only now: its imports may be slow
    folders = (generations(work) if stage in PER_GENERATION else []) or [work]
    for number, folder in enumerate(folders):
        own = {**options, "work": folder, "before": folders[:number]}
        done = run(**{name: own[name] for name in signature(run).parameters})
    folders, stages = generations(work), STAGES[: STAGES.index(stage) + 1]
    gather_rejects(work, folders, stages)
    if "max_reject_rate" in options:
        for folder in folders:
            _check_reject_rate(folder, stages, options["max_reject_rate"], work / REJECTS)
    if stage == "write":
        _print_summary(done["notes"])


def _check_reject_rate(work: Path, stages: Sequence[str], max_rate: float, named: Path) -> None:
    """Raise UserError with the most frequent reason if more than `max_rate` of the rows read are unusable.

    Pictures missing in a source that may lack them do not count, nor do rows that a source's tags leave out.
    """
    ingested, rejects = require_stage("ingest", work), rejects_of(work, stages)
    lenient = [source["name"] for source in ingested["inputs"]["sources"] if source["may_lack_images"]]
    lacking = pl.col("source").is_in(lenient) & (pl.col("reason") == "image_missing")
    expected = lacking | (pl.col("reason") == "tag_filtered")
    counted = rejects.filter(~expected & ~pl.col("reason").is_in(SPLIT_REASONS))
    rows = sum(ingested["notes"]["read"].values()) - rejects.filter(expected).height
    if counted.height <= max_rate * rows:
        return
    reason, times = counted["reason"].value_counts(sort=True).row(0)
    raise UserError(
        f"{counted.height:,} of {rows:,} rows cannot be used, more than --max-reject-rate {max_rate:g}; "
        f"most often {reason} ({times:,}); see {named}"
    )


def _print_summary(notes: Mapping[str, Any]) -> None:
    """Print what a build made and what it lost. notes: those of the write stage."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = (*SPLITS, "all")
    written = Table("task", "source", *(Column(n, justify="right") for n in columns), title="rows written")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for task, source, split, count in notes["written"]:
        counts[task, source].update({split: count, "all": count})
    for names, count_of in counts.items():
        written.add_row(*names, *(f"{count_of[name]:,}" for name in columns))
    rejected = Table("source", "stage", "reason", Column("rows", justify="right"), title="rows rejected")
    for *names, count in notes["rejected"]:
        rejected.add_row(*names, f"{count:,}")
    console = Console()
    console.print(written)
    console.print(rejected if rejected.row_count else "no row was rejected")
    kept, lost = (sum(row[-1] for row in notes[name]) for name in ("written", "rejected"))
    console.print(f"{sum(notes['read'].values()):,} rows read = {kept:,} written + {lost:,} rejected")


def run_stage(
    name: str, work: Path, inputs: Mapping[str, Any], body: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Run `body(folder)` unless `<work>/<name>` was made from the same inputs; gives stage.json's content.

    inputs: all that the content depends on, as JSON values. body: fills the folder, gives the notes.
    """
    mark = _mark(name, inputs)
    folder = work / name
    if (done := _read(folder)) and done["fingerprint"] == mark:
        place = f"{work.name}/" if work.name.startswith(GENERATION) else ""
        click.echo(f"{place}{name}: unchanged, skipped")
        return done
    content = {"fingerprint": mark, "inputs": dict(inputs)}

    def fill(tmp: Path) -> None:
        content["notes"] = body(tmp)
        (tmp / STAGE_FILE).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        # The old mark goes first: a folder that is half removed must not count as whole.
        (folder / STAGE_FILE).unlink(missing_ok=True)

    write_folder(folder, fill)
    return content


def generations(work: Path) -> list[Path]:
    """The folders of work whose ingest is done, each continuing the one before."""
    folders: list[Path] = []
    before = None
    while done := _read((folder := generation(work, len(folders))) / "ingest"):
        inputs = done["inputs"]
        if inputs.get("before") != before or _mark("ingest", inputs) != done["fingerprint"]:
            break
        folders.append(folder)
        before = done["fingerprint"]
    return folders


def generation(work: Path, number: int) -> Path:
    """WORK, WORK/gen-001, …"""
    return work / f"{GENERATION}{number:03d}" if number else work


def rejects_of(work: Path, stages: Sequence[str]) -> pl.DataFrame:
    """The rejects of these stages in one generation."""
    files = [work / stage / REJECTS for stage in stages]
    tables = [read_table(file) for file in files if file.is_file()]
    return frame(_once(pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables])))


def gather_rejects(work: Path, folders: Iterable[Path], stages: Sequence[str]) -> None:
    """Write the rejects of these stages, of the generations in `folders`, to `<work>/rejects.arrow`."""
    table = pl.concat(rejects_of(folder, stages) for folder in folders).to_arrow()
    write_file(work / REJECTS, lambda path: write_table(path, table.cast(REJECT_SCHEMA)))


def _once(rejects: pa.Table) -> pa.Table:
    """Without the rows that tokenize has rejected when images rejects them, too."""
    names = list(zip(*(rejects[name].to_pylist() for name in ("source", "source_key", "stage")), strict=True))
    before = {(source, key) for source, key, stage in names if stage == "tokenize"}
    kept = [stage != "images" or (source, key) not in before for source, key, stage in names]
    return rejects.filter(pa.array(kept, pa.bool_()))


def require_stage(name: str, work: Path) -> dict[str, Any]:
    """stage.json of a finished stage. Raises UserError if it has not run."""
    if done := _read(work / name):
        return done
    raise UserError(f"{work / name}: stage {name} has not run; `pipelines {name}` or `pipelines build` does")


def _mark(stage: str, inputs: Mapping[str, Any]) -> str:
    return fingerprint({"stage": stage, "version": CODE_VERSION, **inputs})


def fingerprint(content: Mapping[str, Any]) -> str:
    """sha256 of JSON values, as hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
