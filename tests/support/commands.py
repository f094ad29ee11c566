"""Commands as a user calls them: in this process, or in one of their own."""

import os
import re
import subprocess
import sys
from functools import partial

import click
from click.testing import CliRunner, Result
from paths import ROOT


def invoke(program: click.Command, *arguments: object, code: int = 0) -> Result:
    """The command in this process; it must end with that exit code."""
    result = CliRunner().invoke(program, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def execute(
    *command: object, code: int = 0, cwd: object = ROOT, **environment: object
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; it must end with that exit code. None unsets a variable."""
    variables = os.environ | {"PYTHONPATH": ROOT} | environment
    env = {name: str(value) for name, value in variables.items() if value is not None}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


python = partial(execute, sys.executable)


def run_well(program: click.Command, *arguments: object) -> str:
    """Its output; the command must succeed."""
    return invoke(program, *arguments).output


def refusal(program: click.Command, *arguments: object) -> str:
    """The one line with which it ends, its exit code 2; progress may come before it."""
    (line,) = re.findall(r"^Error: (?s:.*)", invoke(program, *arguments, code=2).output, re.M)
    assert line.count("\n") == 1
    return line
