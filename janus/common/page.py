"""One HTML page that needs nothing but itself: style, script and pictures inside, no network.

A page is a template of its own package that fills `templates/page.html`. All text is escaped; and the page's
Content-Security-Policy runs and loads nothing but the style and script that stand beside the templates, known
by their hashes. So text from the data can neither become markup nor, if it did, do anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.common.errors import UserError
from janus.common.files import write_file

if TYPE_CHECKING:
    import numpy as np

TEMPLATES = Path(__file__).parent / "templates"

_ENCODINGS = ((1, 82), (1, 65), (0.83, 60), (0.67, 50), (0.5, 40), (0.33, 30), (0.17, 20))
"""(share of the longest side, WebP quality), best first."""


def render_page(templates: Path, name: str, values: Mapping[str, Any]) -> bytes:
    """The page `name`.html of the folder `templates`, with `name`.css and `name`.js that stand beside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    style = _texts(TEMPLATES / "page.css", templates / f"{name}.css")
    script = _texts(templates / f"{name}.js")
    inside = {"style": Markup(style), "script": Markup(script), "policy": Markup(_policy(style, script))}
    return environment.get_template(f"{name}.html").render(**inside, **values).encode()


def write_whole(out: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it. Raises UserError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, lambda beside: beside.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another place (--out)"
        ) from None


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it. kind: its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(pixels_HWC: np.ndarray, limit: int, longest: int = 384) -> str:
    """A uint8 picture as WebP in a data URI: the best size and quality that stay within `limit` bytes.

    longest: the longest side it is shown at, in pixels.
    """
    from PIL import Image

    picture, content = Image.fromarray(pixels_HWC), b""
    for share, quality in _ENCODINGS:
        shown = picture.copy()
        shown.thumbnail((round(share * longest),) * 2)
        buffer = io.BytesIO()
        shown.save(buffer, format="WEBP", quality=quality, method=2)
        content = buffer.getvalue()
        if len(content) <= limit:
            break
    return data_uri(content, "image/webp")


def _texts(*files: Path) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _policy(style: str, script: str) -> str:
    """What the page may do, as a Content-Security-Policy."""

    def only(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'" if text else "'none'"

    return (
        f"default-src 'none'; img-src data:; style-src {only(style)}; script-src {only(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
