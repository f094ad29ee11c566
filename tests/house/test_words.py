"""What is said of Ascend: nobody has run this project on one, so no page says that it runs, or how fast."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PAGES = [*ROOT.glob("*.md"), ROOT / "bench/README.md", *(ROOT / "docs").glob("*.md")]
CLAIM = re.compile(
    r"\b(?:runs?|running|works?|compiles?|compiled|train(?:s|ed)|(?<!un)tested|measured|verified|supported|faster)"
    r"\b[^.;]{0,40}?\b(?:on|for) (?:an? |the )?(?:Ascend|910B|Atlas|NPU)",
    re.I,
)
DENIED = re.compile(
    r"\b(?:not|no|nobody|never|nothing|untested|until|whether|projection|stubbed|simulation)\b", re.I
)


def _claims(text: str) -> Iterator[str]:
    """Sentences and cells of tables that say that something was run on an Ascend, and do not deny it."""
    prose = re.sub(r"^(?: {4}|```).*$", "", text, flags=re.M)  # commands
    for sentence in re.split(r"(?<=[.:;!?])\s+|\n\n|\n- |\|", prose):
        words = " ".join(sentence.split())
        if CLAIM.search(words) and not DENIED.search(words):
            yield words


@pytest.mark.parametrize(
    "said",
    [
        "It runs on Ascend.",
        "The graphs compile for a 910B in seconds.",
        "| trained on an Atlas 800T A2 | 0.3 s |",
        "Nothing is missing. Tested on Ascend, too.",
        "bfloat16 is faster on Ascend.",
    ],
)
def test_a_claim_is_seen(said: str) -> None:
    assert list(_claims(said))


@pytest.mark.parametrize(
    "said",
    [
        "Nothing was measured on Ascend.",
        "Every graph was accepted by MindSpore's Ascend compiler with CANN stubbed.",
        "All of it is a projection, not measured on an Ascend.",
        "The plugin is in the wheel. Ascend is untested.",
    ],
)
def test_what_is_no_claim_passes(said: str) -> None:
    assert not list(_claims(said))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "LOG.md"], ids=lambda page: page.name
)
def test_no_page_claims_a_run_on_ascend(page: Path) -> None:
    assert list(_claims(page.read_text(encoding="utf-8"))) == []


def test_the_first_pages_say_that_it_is_untested() -> None:
    for name in ("README.md", "docs/ascend.md"):
        assert re.search(r"\*untested\*", (ROOT / name).read_text(encoding="utf-8")), name
