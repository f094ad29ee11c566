"""JSON files that a folder must hold, read with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus.common.errors import UserError


def read_json(path: Path, why: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where there is none; `why` says what it is for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {why}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch or copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; fetch or copy it again")
    return content
