"""The page that classifies: opened from the disk in a real browser, its answers are timm's."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import lgd_timm  # registers the names  # noqa: F401
from lgd_timm.errors import LGDError
from lgd_timm.export.loading import open_export_model
from lgd_timm.export.targets import export
from lgd_timm.export.web import TARBALL, _runtime
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.web_runtime import runtime_tarball

MODEL = "lgd_mobilenetv2"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web from the npm registry, fetched once a machine."""
    return runtime_tarball(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Path:
    folder = tmp_path_factory.mktemp("web") / "page"
    export(open_export_model(MODEL), folder, to="web", runtime=str(runtime))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no chromium here; tests/run.sh installs it where it may")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def pictures() -> list[Image.Image]:
    """Smooth and noisy pictures of many shapes and sizes, upright and wide.

    None is taller than twice its width: Pillow 13 resizes some of those down first, older ones never do.
    """
    draw = np.random.default_rng(0)
    shapes = [(48, 48), (32, 32), (200, 301), (64, 33), (640, 480), (50, 49), (61, 999), (55, 55), (96, 48), (150, 77)]
    found = []
    for height, width in shapes * 2:
        coarse = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + draw.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
        found.append(Image.fromarray(noisy))
    return found


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ready(browser: Browser, page: Path, *, width: int = 1200) -> None:
    browser.open((page / "index.html").as_uri(), width=width)
    browser.evaluate("LGD_READY")
    assert browser.evaluate("document.getElementById('state').textContent") == "Ready."


CLASSIFY = """(async () => {
  await open(new Blob([Uint8Array.from(atob(%s), (letter) => letter.charCodeAt(0))]));
  return JSON.stringify(LGD_ANSWER.probabilities);
})()"""


def test_its_answers_are_timms(browser: Browser, page: Path) -> None:
    model = timm.create_model(MODEL, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    ready(browser, page)
    for picture in pictures():
        code = CLASSIFY % json.dumps(data_url(picture).partition(",")[2])
        found = torch.tensor(json.loads(browser.evaluate(code)))
        with torch.no_grad():
            wanted = model(transform(picture)[None]).softmax(1)[0]
        assert (found - wanted).abs().max() < 1e-3, picture.size


def test_names_are_shown_as_text(browser: Browser, page: Path) -> None:
    ready(browser, page)
    browser.evaluate(CLASSIFY % json.dumps(data_url(pictures()[0]).partition(",")[2]))
    shown = json.loads(
        browser.evaluate("JSON.stringify([...document.querySelectorAll('#answers li')].map((x) => x.innerText))")
    )
    assert len(shown) == 5
    assert all(line.rstrip().endswith("%") for line in shown)


def test_what_is_no_picture_is_said(browser: Browser, page: Path) -> None:
    ready(browser, page)
    browser.evaluate("(async () => { await open(new File(['nothing'], 'notes.txt')); return '' })()")
    assert "notes.txt is no picture" in browser.evaluate("document.getElementById('state').textContent")


def test_nothing_is_asked_of_other_hosts(browser: Browser, page: Path) -> None:
    ready(browser, page)
    assert browser.requests
    assert all(url.startswith(("file:", "blob:")) for url in browser.requests)
    assert browser.complaints == []


@pytest.mark.parametrize("width", [320, 390, 1300])
def test_it_fits(browser: Browser, page: Path, width: int) -> None:
    ready(browser, page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth") is True


def test_every_control_has_a_name_and_a_keyboard(page: Path) -> None:
    text = (page / "index.html").read_text(encoding="utf-8")
    assert '<label for="file"' in text
    assert 'aria-live="polite"' in text
    assert 'role="status"' in text
    assert "tabindex" not in text  # nothing is taken out of the order of the page


def test_another_tarball_is_refused(tmp_path: Path) -> None:
    (tmp_path / TARBALL).write_bytes(b"something else")
    with pytest.raises(LGDError, match=r"is not onnxruntime-web 1\.30\.0: its sha512 is"):
        _runtime(tmp_path / TARBALL)
    with pytest.raises(LGDError, match=r"is no file\. Get it with npm pack"):
        _runtime(tmp_path / "nowhere.tgz")


def test_a_model_without_names_is_refused(tmp_path: Path, runtime: Path) -> None:
    with pytest.raises(LGDError, match="has no names to answer with"):
        export(open_export_model("resnet18", pretrained=False), tmp_path / "page", to="web", runtime=str(runtime))
    assert os.listdir(tmp_path) == []
