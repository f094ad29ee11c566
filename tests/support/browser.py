"""A real headless Chromium on a page of the disk.

Tests that need it skip where there is none; with JANUS_TEST_BROWSER=required (`make test-browser`) they fail.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
REQUIRED = os.environ.get("JANUS_TEST_BROWSER") == "required"

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not REQUIRED,
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)


class Browser:
    """One window: pages, keys, and what the page looks like."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        """Show a page at that width (CSS pixels), with the reader's colour scheme."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(page.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script that returns one."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """The first element."""
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """The text of each element."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.run(script, selector)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def check(self) -> None:
        """No errors in the console, all pictures shown, nothing wider than the window."""
        assert self.driver.get_log("browser") == []
        broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
        assert self.run(broken) == 0
        root = "document.documentElement"
        assert self.run(f"return {root}.scrollWidth <= {root}.clientWidth")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile."""
    from selenium import webdriver

    assert CHROMIUM and DRIVER, "chromium or chromedriver is not installed"  # noqa: PT018
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two `rgb(r, g, b)` colours: 4.5 and more is legible as text."""
    levels = np.array([re.findall(r"\d+", colour)[:3] for colour in (one, other)], float) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    low, high = np.sort(linear @ [0.2126, 0.7152, 0.0722]) + 0.05
    return float(high / low)
