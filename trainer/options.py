"""The fields of `TrainConfig` as Click options and as YAML keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

import click
import yaml

from janus.common.errors import UserError
from trainer.config import FIELDS

RECIPES = Path(__file__).parent / "recipes"


class GroupedCommand(click.Command):
    """A command whose help shows each option under the heading of its field's group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            option = FIELDS.get(parameter.name or "")
            if record is not None:
                groups.setdefault(option.metadata["group"] if option else "Start", []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def add_options(command: Callable) -> Callable:
    """Give a function one Click option per field; an option that is not given is passed as None."""
    for option in reversed(FIELDS.values()):
        command = _click_option(option)(command)
    return command


def _click_option(option: Field) -> Callable[[Callable], Callable]:
    name = option.name.replace("_", "-")
    kind, default = option.metadata["kind"], option.metadata["default"]
    help = f"{option.metadata['help']} [{default}]" if default else option.metadata["help"]
    if kind.is_flag:
        return click.option(f"--{name}/--no-{name}", option.name, default=None, help=help)
    return click.option(
        f"--{name}", option.name, metavar=kind.metavar, callback=_parse_option, default=None, help=help
    )


def _parse_option(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None or parameter.name is None:
        return None
    try:
        return FIELDS[parameter.name].metadata["kind"].parse(value)
    except ValueError as error:
        raise UserError(f"--{parameter.name.replace('_', '-')}: {error}") from None


def find_recipe(name_or_path: str) -> Path:
    """A YAML file by its path, or a recipe that comes with the program by its name.

    Raises UserError naming the recipes there are.
    """
    shipped = RECIPES / f"{name_or_path}.yaml"
    for path in (Path(name_or_path), shipped):
        if path.is_file():
            return path
    there = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise UserError(f"--config {name_or_path}: no such file, nor one of the recipes {there}")


def load_recipe(path: Path) -> dict[str, Any]:
    """The values a YAML file gives, parsed.

    Raises UserError naming file and field (and the nearest known one), and what was expected.
    """
    try:
        # Scalars as written: each field knows what it expects.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not content:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected `field: value` lines, got a {type(content).__name__}")
    return {name: _parse_field(path, name, value) for name, value in content.items()}


def _parse_field(path: Path, name: str, value: Any) -> Any:
    if name not in FIELDS:
        near = difflib.get_close_matches(str(name).replace("-", "_"), FIELDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(FIELDS)}"
        raise UserError(f"{path}: unknown field {name}; {hint}")
    try:
        return FIELDS[name].metadata["kind"].parse(value)
    except ValueError as error:
        raise UserError(f"{path}: {name}: {error}") from None
