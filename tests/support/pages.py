"""A written page taken apart: its elements, its data, and whether it stands alone."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """Every element with its attributes, and the text inside script and style elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open, data))

    def count(self, tag: str) -> int:
        """Elements of that name."""
        return sum(name == tag for name, _ in self.elements)

    @property
    def data(self) -> Any:
        """What the data block holds."""
        return json.loads(re.findall(r'type="application/json" id="data">(.*?)</script>', self.html)[0])


def check_alone(page: Page) -> None:
    """Nothing is loaded, and the policy allows the page's own style and script only, by their hashes."""
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}, tag
        for name, value in attributes.items():
            assert not name.startswith(("on", "style")), (tag, name)
            if name in {"src", "srcset", "href", "action", "data"}:
                assert value.startswith(("data:image/", "#")), (tag, name, value[:80])
    (policy,) = (a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, text in re.findall(r"<(style|script)>(.*?)</(?:style|script)>", page.html, flags=re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert re.search(rf"{tag}-src [^;]*'sha256-{re.escape(digest)}'", policy)
