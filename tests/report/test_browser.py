"""The written pages in a real browser: the gallery works; everything is legible and no data is run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium, contrast, needs_browser
from commands import run_well
from shard_factory import HOSTILE, hostile_folder, make_folder, make_row
from test_trainer_report import all_charts_alike, make_run

from shards.cli import main as shards
from trainer.report.page import write_report

pytestmark = needs_browser
SIZE = 16


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preview of 70 samples: 30 vqa, 20 text and 10 t2i of train, 10 vqa of validation."""
    sizes = {("train", "vqa"): 30, ("train", "text"): 20, ("train", "t2i"): 10, ("validation", "vqa"): 10}
    rows = {(s, t): [make_row(t, s, key, SIZE) for key in range(n)] for (s, t), n in sizes.items()}
    return _written(make_folder(tmp_path_factory.mktemp("preview"), rows, SIZE))


def _written(folder: Path) -> Path:
    run_well(shards, "preview", folder)
    return folder / "preview.html"


def _choose(browser: Browser, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find(f"select[name={name}]")).select_by_visible_text(value)


def _found(browser: Browser) -> int:
    return int(browser.find("#found").text.split(" of ")[1].split()[0])


def test_the_gallery_is_filtered_paged_and_enlarged(browser: Browser, preview: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(preview)
    first = browser.texts(".card .id")
    assert (_found(browser), len(first)) == (70, 24)
    browser.run("for (const _ of [1, 2]) document.getElementById('next').click()")
    last = browser.texts(".card .id")
    assert (browser.find("#next").is_enabled(), len(last)) == (False, 70 - 48)
    assert not set(first) & set(last)
    _choose(browser, "task", "vqa")  # a filter starts at its first page
    assert (_found(browser), len(browser.texts(".card"))) == (40, 24)
    assert set(browser.texts(".card .badge")) == {"vqa"}
    _choose(browser, "task", "text")
    browser.find("input[name=words]").send_keys("QUESTION 7")
    names = browser.texts(".card .id")
    assert names == ["pubmedqa/train-7", "pubmedqa/train-17"]
    browser.press(Keys.TAB, Keys.ENTER, Keys.ARROW_RIGHT)
    assert browser.find("#sample-title").text == names[1]
    assert browser.texts("dialog .stream mark") != []
    browser.press(Keys.ESCAPE)
    assert not browser.run("return document.getElementById('sample').open")
    browser.check()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    one, two = make_run(folder / "one"), make_run(folder / "two", steps=5, seed=1)
    with all_charts_alike():
        return [write_report([one]), write_report([one, two])]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_legible(browser: Browser, preview: Path, reports: list[Path], width: int, scheme: str) -> None:
    browser.open(preview, width, scheme)
    browser.check()
    _check_colours(browser, (".tile dd", ".card .words", "mark"), scheme)
    browser.run("document.querySelector('.card').click()")
    assert browser.find("dialog").size["width"] <= width
    browser.check()
    for report in reports:
        browser.open(report, width, scheme)
        browser.check()
        _check_colours(browser, (".facts dd", "summary"), scheme)
        browser.run("document.querySelector('details').open = true")
        browser.check()


def _check_colours(browser: Browser, selectors: tuple[str, ...], scheme: str) -> None:
    """Text stands out from what is behind it, which is light or dark as the reader prefers."""
    colours = """
        let node = document.querySelector(arguments[0]), text = getComputedStyle(node).color, back;
        for (; node; node = node.parentElement) {
          back = getComputedStyle(node).backgroundColor;
          if (back !== 'rgba(0, 0, 0, 0)') return [text, back];
        }"""
    for selector in ("body", ".muted", ".badge.vqa", *selectors):
        text, back = browser.run(colours, selector)
        assert contrast(text, back) >= 4.5, (selector, text, back)
    back = browser.run(colours, "body")[1]
    assert (contrast(back, "rgb(0, 0, 0)") > 10) == (scheme == "light")


def test_text_that_is_markup_does_nothing(browser: Browser, tmp_path: Path) -> None:
    page = _written(hostile_folder(tmp_path / "s"))
    browser.open(page)
    browser.find("input[name=words]").send_keys("onerror")
    assert browser.texts(".card .id") == [HOSTILE]
    browser.run("document.querySelector('.card').click()")
    assert browser.find("#sample-title").get_attribute("textContent") == HOSTILE
    assert browser.driver.title.startswith("Shards: ")
    assert browser.run("return document.querySelectorAll('main img:not([src^=\"data:\"])').length") == 0
    browser.check()
