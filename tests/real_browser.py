"""A real browser for tests of pages: Chromium or Chrome, wherever it is installed, without a window."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    ),
    "win32": (
        "C:/Program Files/Google/Chrome/Application/chrome.exe",
        "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
        "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
    ),
}
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")


def find_browser() -> str | None:
    """The file that environment variable CHROME names, else a browser that is installed; None if there is none."""
    named = os.environ.get("CHROME")
    if named:
        return named
    found = (shutil.which(name) for name in NAMES)
    installed = (place for place in PLACES.get(sys.platform, ()) if Path(place).exists())
    return next((path for path in (*found, *installed) if path), None)


@contextmanager
def launched_browser() -> Iterator[Any]:
    """Playwright's handle of a browser. Skips the test that needs it where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="browser tests are not run: playwright is not installed: pip install -e .[test]"
    )
    path = find_browser()
    if path is None:
        pytest.skip("browser tests are not run: no Chromium or Chrome is found. Install one, or name it in CHROME")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


class Opened:
    """A page in a browser, with all that it did which it must not do.

    Attributes
    ----------
    page : Playwright's
    complaints : errors, and what was written to the console
    requests : addresses that were asked for, apart from the page's own
    """

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.requests.remove(self.page.url)

    def ask(self, script: str, argument: Any = None) -> Any:
        """The value of JavaScript, in which ``report`` is the page's parts."""
        body = script if "return" in script else f"return {script}"
        return self.page.evaluate(f"async (argument) => {{ const report = window.miaiReport; {body} }}", argument)
