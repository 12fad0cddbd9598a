"""The page in a real browser: opened from the disk, with every picture, no request to other hosts, fit for a phone."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lgd_timm.evaluate.report import report
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.reported import copy_run, nasty_run, own_cache

pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no chromium here, so the page is not opened in a browser. tests/run.sh installs it where it may.",
)

HEADINGS = [
    "1. Headline numbers",
    "2. Accuracy",
    "3. Training",
    "4. What it takes for what",
    "5. The two banks",
    "6. What it finds for a name",
    "7. Where it is wrong",
    "8. How it was made",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page about two groups, one of them with names that are markup."""
    folder = tmp_path_factory.mktemp("reported")
    runs = [copy_run(run_folder, folder, "a"), copy_run(run_folder, folder, "b", seed=1), nasty_run(run_folder, folder)]
    with own_cache(tmp_path_factory):
        return report(runs, out=folder / "out").resolve().as_uri()


def test_the_page_opens_whole_and_asks_for_nothing_else(browser: Browser, page: str) -> None:
    browser.open(page)
    pictures = browser.evaluate(
        "[...document.images].map(image => [image.complete, image.naturalWidth, image.naturalHeight, image.alt])"
    )
    assert len(pictures) > 20
    assert all(complete and width > 0 and height > 0 and alt for complete, width, height, alt in pictures)
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(heading => heading.innerText)") == HEADINGS
    assert browser.requests == [page]
    assert browser.complaints == []
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate(
        "[...document.querySelectorAll('nav a')].every(link => document.querySelector(link.getAttribute('href')))"
    )


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_overflows_to_the_side(browser: Browser, page: str, width: int) -> None:
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll('img, p, h1, h2, h3, li, summary, figure, .scroll')]
        .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map(element => element.outerHTML.slice(0, 200))"""
    assert browser.evaluate(beyond) == []


def test_it_is_dark_where_that_is_asked_for(browser: Browser, page: str) -> None:
    browser.open(page)
    grounds = []
    for scheme in ("light", "dark"):
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        ground, ink = browser.evaluate("['backgroundColor', 'color'].map(key => getComputedStyle(document.body)[key])")
        assert ground != ink
        grounds.append(sum(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")))
    assert grounds[0] > 700
    assert grounds[1] < 150


def test_it_prints(browser: Browser, page: str) -> None:
    browser.open(page)
    assert len(browser.ask("Page.printToPDF", printBackground=True)["data"]) > 10_000


def test_these_tests_notice_what_they_look_for(browser: Browser, tmp_path: Path) -> None:
    """A broken picture, a request, an error and an overflow are noticed, or any page would pass."""
    asked: list[str] = []

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *words: object) -> None:
            asked.append(str(words[0]))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/none.png"
    bad = tmp_path / "bad.html"
    bad.write_text(f"<p style='width: 2000px'>wide<img src='{url}'><script>console.error('complaint')</script>")
    try:
        browser.open(bad.as_uri(), width=400)
        assert url in browser.requests
        assert asked
        assert browser.complaints
        assert browser.evaluate("document.images[0].naturalWidth") == 0
        assert browser.evaluate("document.documentElement.scrollWidth") > 400
    finally:
        server.shutdown()
        server.server_close()
