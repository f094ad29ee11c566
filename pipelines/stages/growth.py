"""What a build has to read beyond what earlier ones have read: new files, new lines, new sources.

Anything else that has changed means that everything is read again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.forms.files import LINES, suffix_of
from pipelines.forms.json_rows import hash_lines

Starts = dict[str, dict[str, int]]
"""Source → file to read → byte to begin at."""


class Rewritten(Exception):
    """More has changed than that there are more rows; its arg says what."""


def growth(last: Mapping[str, Any], now: Mapping[str, Any], missing: set[str]) -> Starts:
    """What is new. last: stage.json of the last ingest. now: inputs of the next. Raises Rewritten.

    missing: names of pictures that earlier rows lacked.
    """
    old, files, heads = last["inputs"]["files"], now["files"], last["notes"]["heads"]
    if gone := sorted(old.keys() - files.keys()):
        raise Rewritten(f"{gone[0]} is gone")
    for source in last["inputs"]["sources"]:
        name = source["name"]
        if source not in now["sources"] or {*last["inputs"]["paths"][name]} - {*now["paths"][name]}:
            raise Rewritten(f"source {name} has changed")
    grown = {path: size for path, (size, _) in old.items() if old[path] != files[path]}
    for path, size in grown.items():
        if files[path][0] <= size or not heads.get(path) or heads[path] != hash_lines(Path(path), size):
            raise Rewritten(f"{path} has changed, not only grown by lines")
    known = {name: {*last["inputs"]["paths"].get(name, ())} for name in now["paths"]}
    starts = {
        name: {
            p: grown.get(p, 0) if p in known[name] else 0 for p in paths if p in grown or p not in known[name]
        }
        for name, paths in now["paths"].items()
    }
    _check_beside(files.keys() - old.keys(), {*map(Path, set().union(*known.values()))}, missing)
    if not any(starts.values()):
        raise Rewritten("files beside the data are others")
    return starts


def _check_beside(new: set[str], known: set[Path], missing: set[str]) -> None:
    """Raises Rewritten if a new file belongs to rows that have been read."""
    for path in map(Path, sorted(new)):
        if path.name in missing:
            raise Rewritten(f"{path}, which was missing, has come")
        if known.intersection(path.parents):
            raise Rewritten(f"{path} is new in a folder that is read as a whole")


def heads_of(inputs: Mapping[str, Any], known: Mapping[str, str | None]) -> dict[str, str | None]:
    """Hash of each file of lines that is still as long as in `inputs`; `known` ones are not read again."""
    sizes = {path: size for path, (size, _) in inputs["files"].items() if suffix_of(Path(path)) in LINES}
    named = [source["name"] for source in inputs["sources"] if not str(source["form"]).endswith(".py")]
    read = {path for name in named for path in inputs["paths"][name]} & sizes.keys()
    return {
        path: known[path] if path in known else hash_lines(Path(path), sizes[path])
        for path in sorted(read)
        if Path(path).stat().st_size == sizes[path]
    }
