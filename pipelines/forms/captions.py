"""The dialect `captions`: a picture and its caption, read as t2i or as the answer to a fixed question.

Columns of a table, or files: pictures in a folder, each with its caption in a .txt of the same name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.forms.pictures import SUFFIXES, Picture, RowError, stays_below
from pipelines.forms.row import MAX_ROW, Record, Records, Turn, text_of

PICTURES = ("image", "image_path", "file_name", "filename", "picture", "path", "jpg", "png")
CAPTIONS = ("caption", "text", "description", "prompt")
"""Names that the two columns go by, the first that is there."""


def picture_and_caption(names: Iterable[str]) -> tuple[str, str] | None:
    """The two columns among these, None if one is not there."""
    known = set(names)
    picture = next((name for name in PICTURES if name in known), None)
    caption = next((name for name in CAPTIONS if name in known), None)
    return (picture, caption) if picture and caption else None


def captions(fields: Mapping[str, Any], root: Any, question: str | None) -> list[Turn]:
    """Caption → picture, or with a question: it and the picture → caption. Raises RowError."""
    image, caption = picture_and_caption(fields) or ("image", "caption")
    picture, text = Picture(fields.get(image), root), text_of(fields.get(caption), caption)
    if question is None:
        return [Turn("user", (text,)), Turn("assistant", (picture,))]
    return [Turn("user", (picture, question)), Turn("assistant", (text,))]


def has_captions(folder: Path) -> bool:
    """Whether a picture in the folder has a caption."""
    return any(path.with_suffix(".txt").is_file() for path in pictures_of(folder))


def pictures_of(folder: Path) -> list[Path]:
    """The picture files below, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]


def read_folder(folder: Path) -> Records:
    """Columns `image` and `caption` of every picture; a .txt without its picture is a row, too."""
    pictures = pictures_of(folder)
    named = {path.with_suffix("") for path in pictures}
    alone = [path for path in sorted(folder.rglob("*.txt")) if path.with_suffix("") not in named]
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        try:
            yield Record(name, {"image": name, "caption": _caption(folder, path.with_suffix(".txt"))})
        except RowError as error:
            yield Record(name, error=error)
    for path in alone:
        missing = RowError("image_missing", "no picture of this name")
        yield Record(path.relative_to(folder).as_posix(), error=missing)


def _caption(folder: Path, path: Path) -> str:
    if not stays_below(folder, path):
        raise RowError("image_path_refused", f"{path.name} leaves the folder by a link")
    if not path.is_file():
        raise RowError("empty_caption", f"there is no {path.name}")
    if (size := path.stat().st_size) > MAX_ROW:
        raise RowError("line_too_long", f"{path.name}: {size} bytes")
    return path.read_bytes().decode(errors="surrogateescape").removeprefix("\ufeff")
