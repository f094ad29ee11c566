"""Command-line options from the fields of a frozen dataclass: one declaration is option, help and YAML key.

A field `seed: int = option(0, "Seed of all draws.", click.IntRange(min=0))` of a dataclass is `--seed` of a
command under `@add_options(TheDataclass)`, and its value among the keyword arguments of the command.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
import yaml

from janus.common.errors import UserError
from janus.device import DEVICES, DTYPES

FOLDER = click.Path(file_okay=False, path_type=Path)
FOLDER.name = "dir"  # as help shows it
FILE = click.Path(dir_okay=False, path_type=Path)
DEVICE = click.Choice(DEVICES)
DEVICE_ID = click.IntRange(min=0)
DTYPE = click.Choice(DTYPES)
BEST_DTYPE = "bfloat16 on Ascend, float32 on CPU, which has nothing else"
MODE = click.Choice(["graph", "pynative"])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_METAVARS = {click.IntRange: "N", click.FloatRange: "X"}


def option(default: Any, help: str, type: click.ParamType | None = None, **notes: Any) -> Any:
    """A dataclass field that is an option.

    type: Click's; the default's type if None. With a tuple as default the option may be repeated, unless the
    type reads lists itself. notes: `flag`, its name on the command line if not the field's; `metavar`;
    `shown`, the default in words; `required`; `group`, its heading in the help; and a program's own.
    """
    repeated = isinstance(default, tuple) and not getattr(type, "takes_lists", False)
    kind = type or (click.STRING if repeated else click.types.convert_type(None, default))
    metadata = {"help": help, "kind": kind, "repeated": repeated, "metavar": _METAVARS.get(kind.__class__)}
    metadata |= notes
    if isinstance(default, Mapping):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def option_fields(cls: type) -> dict[str, Field]:
    """The dataclass's fields made by `option`, by name."""
    return {entry.name: entry for entry in fields(cls) if "kind" in entry.metadata}


def add_options(cls: type, *names: str, only_given: bool = False) -> Decorator:
    """Give a command all options of a dataclass, or those named.

    It receives their values, defaults included; with only_given, only those on the command line.
    """
    known = option_fields(cls)
    chosen = [known[name] for name in names or known]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*arguments: Any, **values: Any) -> Any:
            for entry in chosen:
                if values[entry.name] in (None, ()):
                    del values[entry.name]
                    if not only_given:
                        values[entry.name] = entry.default
            return command(*arguments, **values)

        for entry in reversed(chosen):
            flag = entry.metadata.get("flag", f"--{entry.name.replace('_', '-')}")
            flag += f"/--no-{flag[2:]}" if entry.metadata["kind"] is click.BOOL else ""
            run = click.option(flag, entry.name, cls=_FieldOption, entry=entry)(run)
        return run

    return decorate


class _FieldOption(click.Option):
    """A field as an option without a default, so that Click tells whether it is on the command line."""

    def __init__(self, declaration: Any, entry: Field, **attributes: Any) -> None:
        self.entry, notes = entry, entry.metadata
        attributes |= {name: notes[name] for name in ("help", "metavar", "required") if name in notes}
        super().__init__(
            declaration, type=notes["kind"], multiple=notes["repeated"], default=None, **attributes
        )

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        if value is None:
            return None
        try:
            return parse(self.entry, value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, self) from None

    def get_help_extra(self, ctx: click.Context) -> Any:
        notes, default = self.entry.metadata, self.entry.default
        plain = "yes" if default is True else "no" if default is False else str(default)
        text = notes.get("shown", plain if default not in (None, ()) else "")
        return {**super().get_help_extra(ctx), **({"default": text} if text else {})}


def parse(entry: Field, value: Any) -> Any:
    """The field's value from a command-line text or a YAML node. Raises ValueError saying what is wrong."""
    kind, repeated = entry.metadata["kind"], entry.metadata["repeated"]
    return tuple(_convert(kind, part) for part in value) if repeated else _convert(kind, value)


def _convert(kind: click.ParamType, value: Any) -> Any:
    if not getattr(kind, "takes_lists", False):  # Click's types expect a scalar
        if isinstance(value, list | tuple | Mapping):
            raise ValueError(f"expected one value, got {value!r}")
        if value == "":
            raise ValueError("expected a value, got nothing")
    try:
        converted = kind.convert(value, None, None)
    except click.BadParameter as error:
        text = error.message.replace("integer range", "integer").replace("float range", "number")
        raise ValueError(text.rstrip(".")) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError(f"{value} is not a finite number")
    return converted


def read_options(path: Path, cls: type) -> dict[str, Any]:
    """The parsed values of a YAML file.

    Raises UserError naming file, field, the nearest known field, and what was expected.
    """
    try:
        # BaseLoader keeps scalars as text: YAML reads 5:1:4 in base 60 and 1e-3 as a string.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not content:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected `field: value` lines, got a {type(content).__name__}")
    known = option_fields(cls)
    values = {}
    for name, value in content.items():
        if name not in known:
            near = nearest(name.replace("-", "_"), known)
            hint = f"did you mean {near}?" if near else f"the fields are {', '.join(known)}"
            raise UserError(f"{path}: unknown field {name}; {hint}")
        try:
            values[name] = parse(known[name], value)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}") from None
    return values


def nearest(name: str, known: Any) -> str | None:
    """The known name most like `name`, if any is similar."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


class Names(click.ParamType):
    """Comma-separated names, or a YAML list, as a tuple."""

    name = "name[,name]"
    takes_lists = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises click.BadParameter for anything but text."""
        parts = value if isinstance(value, list | tuple) else value.split(",")
        if not all(isinstance(part, str) for part in parts):
            self.fail(f"expected names, got {value!r}", param, ctx)
        return tuple(part.strip() for part in parts if part.strip())


class Command(click.Command):
    """Lists options under the headings of their groups; reports a wrong argument in one line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            notes = parameter.entry.metadata if isinstance(parameter, _FieldOption) else {}
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(notes.get("group", "Options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as Click does, but leave the usage out of its errors."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise UserError(error.format_message()) from None


class Group(click.Group):
    """The commands of one program."""

    command_class = Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}
        super().__init__(*arguments, context_settings=settings, **attributes)
