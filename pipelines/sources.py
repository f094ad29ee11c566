"""The sources of a `sources.yaml`, ours (the presets) or a user's: where files are, how rows are read."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from janus.common.errors import UserError
from janus.common.options import nearest
from janus.prompts import SPLITS, TASKS


@dataclass(frozen=True)
class Source:
    """One dataset: where its files are and how their rows are read. `docs/data.md` explains each field."""

    name: str  # in the column `source`
    path: str  # file, folder or glob, relative to `folder`
    folder: str = ""  # relative to the data folder, or to the user's sources.yaml
    form: str | None = None  # one of FORMS, or the path of a plug-in; None: found out
    columns: Mapping[str, str] = field(default_factory=dict)  # our name → theirs
    images: str | bool | None = None  # folder of the pictures, seen from the file; False: marks are text
    tags: tuple[str, ...] = ()  # rows with other tags are rejected; (): none is
    as_: str = "t2i"  # what a row of `captions` becomes: t2i or vqa
    question: str | None = None  # of the user, where captions become vqa
    split: str = "hash"  # or upstream (by file name), or the split of every row
    licence: str = "not stated"
    number_ids: bool = False  # the second row of an id is `id#2`
    may_lack_images: bool = False  # missing pictures are expected and do not stop a build
    repo_id: str = ""  # of the dataset on the hub
    revision: str | None = None  # commit hash; None: looked up at the first download and kept
    patterns: tuple[str, ...] = ()  # files to download, relative to the folder

    @property
    def is_plugin(self) -> bool:
        """Whether the user's own Python reads it."""
        return (self.form or "").endswith(".py")

    @property
    def dialect(self) -> str | None:
        """What its columns mean, None if that has to be found out."""
        return self.form if self.form in DIALECTS else None


DIALECTS = ("messages", "conversations", "query", "captions")
FORMS = (*DIALECTS, "webdataset", "folder")
"""What `form:` may be, besides the path of a plug-in. The last two say only what the file shows by itself."""

KNOWN_COLUMNS = ["id", "system", "image", "images", "caption", "messages", "conversations"]
KNOWN_COLUMNS += ["query", "response", "history", "instruction", "input", "output"]
"""Our names of columns."""

PRESETS = Path(__file__).with_name("sources.yaml")


def load_sources(names: Sequence[str] = (), path: Path = PRESETS) -> list[Source]:
    """The named sources of a sources.yaml, or all, in its order.

    Raises UserError naming file, source and field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries or len(content) > 1:
        raise UserError(f"{path}: expected `sources:` alone, and below it a name for each source")
    for name in names:
        if name not in entries:
            raise UserError(f"{path}: no source {name}; {_hint(name, entries)}")
    return [_source(path, str(n), entry) for n, entry in entries.items() if not names or n in names]


def _hint(name: str, known: Iterable[Any]) -> str:
    names = [str(one) for one in known]
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"expected {', '.join(names)}"


def _source(path: Path, name: str, entry: Any) -> Source:
    """The source of an entry. Raises UserError for a field that is unknown or of the wrong type."""
    where = f"{path}: {name}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: a source's name is made of letters, digits, `.`, `_` and `-`")
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected `field: value` lines")
    if "preset" in entry:
        presets = yaml.safe_load(PRESETS.read_text(encoding="utf-8"))["sources"]
        if entry["preset"] not in presets:
            raise UserError(f"{where}.preset: {entry['preset']!r}; {_hint(str(entry['preset']), presets)}")
        entry = presets[entry["preset"]] | {key: entry[key] for key in entry if key != "preset"}
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in _FIELDS:
            raise UserError(f"{where}: unknown field {key}; {_hint(str(key), _FIELDS)}")
        if not _FIELDS[key][0](value):
            raise UserError(f"{where}.{key}: {value!r}, expected {_FIELDS[key][1]}")
        values[{"as": "as_"}.get(key, key)] = tuple(value) if isinstance(value, list) else value
    for ours in values.get("columns", ()):
        if ours not in KNOWN_COLUMNS:
            raise UserError(f"{where}.columns: {ours} is none of ours; {_hint(str(ours), KNOWN_COLUMNS)}")
    if "path" not in values:
        raise UserError(f"{where}: path is missing: a file, a folder or a glob, relative to {path.name}")
    if (values.get("as_") == "vqa") != (values.get("question") is not None):
        raise UserError(
            f"{where}: `as: vqa` and `question:` go together: captions that answer a fixed question"
        )
    return Source(name, **values)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_Check = tuple[Callable[[Any], bool], str]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _one_of(*names: str) -> _Check:
    return (lambda value: value in names), f"one of {', '.join(names)}"


_FIELDS: dict[str, _Check] = {
    **dict.fromkeys(("path", "licence", "repo_id", "question"), (_text, "a text")),
    "folder": (lambda value: isinstance(value, str), "a folder"),
    "revision": (lambda value: value is None or _text(value), "a commit"),
    "patterns": (_texts, "a list of globs"),
    "form": (lambda v: v in FORMS or (_text(v) and v.endswith(".py")), f"{', '.join(FORMS)} or a .py file"),
    "columns": (lambda v: isinstance(v, dict) and _texts([*v.values()]), "our name: theirs"),
    "images": (lambda value: value is False or _text(value), "a folder, or false"),
    "tags": (lambda value: _texts(value) and {*value} <= {*TASKS}, f"a list of {', '.join(TASKS)}"),
    "as": _one_of("t2i", "vqa"),
    "split": _one_of("hash", "upstream", *SPLITS),
    **dict.fromkeys(("number_ids", "may_lack_images"), (lambda v: isinstance(v, bool), "true or false")),
}
"""Field of a source → whether a value is right, and what is expected."""


def source_of(path: Path, root: Path, form: str | None = None) -> Source:
    """A file, or a folder, as a source of its name. root: what its path is relative to."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.absolute().name.split(".")[0]).strip("-._")
    relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())
    return Source(name or "data", relative, form=form)
