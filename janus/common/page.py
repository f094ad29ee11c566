"""One self-contained HTML page: style, script and pictures inside, no network.

A page is a template of the caller's package that extends `templates/page.html`. All text is escaped, and the
Content-Security-Policy admits only the style and script of the templates' folders, by their hashes. So text
from the data cannot become markup, and could do nothing if it did.
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
    """The page `name`.html of the folder `templates`, with the `name`.css and `name`.js next to it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader([templates, TEMPLATES])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    style = _texts(TEMPLATES / "page.css", templates / f"{name}.css")
    script = _texts(templates / f"{name}.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_only(style)}; script-src {_only(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    inside = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return environment.get_template(f"{name}.html").render(**inside, **values).encode()


def write_output(out: Path, content: bytes) -> None:
    """Atomic write of the file that `--out` names. Raises UserError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, lambda tmp: tmp.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another place (--out)"
        ) from None


def data_uri(content: bytes, kind: str) -> str:
    """A data URI of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(pixels_HWC: np.ndarray, limit: int, longest: int = 384) -> str:
    """A uint8 picture as WebP in a data URI: the best size and quality that stay within `limit` bytes.

    longest: limit of its longer side, in pixels.
    """
    from PIL import Image

    for share, quality in _ENCODINGS:
        shown, buffer = Image.fromarray(pixels_HWC), io.BytesIO()
        shown.thumbnail((round(share * longest),) * 2)
        shown.save(buffer, format="WEBP", quality=quality, method=2)
        if buffer.tell() <= limit:
            break
    return data_uri(buffer.getvalue(), "image/webp")


def _texts(*files: Path) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _only(text: str) -> str:
    """What the Content-Security-Policy says to admit this text only."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'" if text else "'none'"
