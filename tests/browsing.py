"""A real browser for tests of the viewer: headless Chromium of the system, driven by playwright.

Both are optional: without them `browser` skips, saying which one is missing.
"""

import contextlib
import shutil
from collections.abc import Iterator

import pytest

# Without a GPU the page is drawn by SwiftShader, which Chromium wants to be asked for.
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@contextlib.contextmanager
def browser() -> Iterator:
    """A running Chromium, of playwright's class `Browser`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


def open_page(chromium, address: str, width: int, height: int):
    """The viewer at an address, once its panel is there; `errors` has what goes wrong in the page."""
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Save").wait_for(timeout=60_000)
    return page


def dismiss(page) -> None:
    """Close all notifications, such as viser's on drawing without a GPU."""
    page.evaluate("document.querySelectorAll('.mantine-Notification-closeButton').forEach(e => e.click())")
