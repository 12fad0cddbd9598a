"""The whole report: sections in order, pictures in the page and beside it, text escaped, faults named."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lgd_timm import cli
from lgd_timm.errors import LGDError
from lgd_timm.evaluate.report import report
from tests.helpers.reported import NASTY, Make

KEYS = ["headline", "bars", "curves", "confusion", "banks", "nearest", "mistakes", "made"]


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def pngs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def test_a_report_of_two_seeds_and_another_objective(make: Make, tmp_path: Path) -> None:
    runs = [make("a"), make("b", seed=1), make("c", objective={"preset": "reference"})]
    page = report(runs, out=tmp_path / "out")
    found = Page(page)
    assert page == tmp_path / "out" / "index.html"
    assert [attributes["id"] for attributes in found.all("section")] == KEYS
    assert [attributes["href"] for attributes in found.all("a")] == [f"#{key}" for key in KEYS]
    assert (len(found.all("h1")), len(found.all("h2"))) == (1, 8)
    names = ["2-zero-shot.png", "3-loss.png", "3-zero-shot.png"]
    for place in (1, 2):
        names += [f"{what}-{place}.png" for what in ("5-banks", "6-nearest", "7-mistakes")]
        names += [f"4-confusion-{place}-{who}.png" for who in ("student", "teacher")]
    assert pngs(page.parent) == sorted(names)


def test_the_pictures_beside_the_page_are_those_in_it(run_page: Path) -> None:
    images = Page(run_page).all("img")
    assert all(image["alt"] and image["width"] and image["height"] for image in images)
    inside = {base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) for image in images}
    figures = [
        path for path in run_page.parent.glob("*.png") if path.name[0] in "2345"
    ]  # galleries are sheets of what is in the page
    assert len(figures) == 6
    assert {path.read_bytes() for path in figures} <= inside


def test_a_page_needs_nothing_from_elsewhere(run_page: Path) -> None:
    found = Page(run_page)
    assert not {"script", "iframe", "object", "form"}.intersection(tag for tag, _ in found.tags)
    for _, attributes in found.tags:
        for key in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(key) or "#")
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    } in found.all("meta")


def test_text_from_files_is_never_markup(nasty: Path, tmp_path: Path) -> None:
    page = report([nasty], out=tmp_path / "out <&>")
    found = Page(page)
    assert not found.all("script")
    assert "<script>" not in page.read_text(encoding="utf-8")
    for name in NASTY:
        assert " ".join(name.split()) in found.text
        assert any(name in (image["alt"] or "") for image in found.all("img"))


def test_equal_runs_give_equal_pictures(run_folder: Path, run_page: Path, tmp_path: Path) -> None:
    again = report([run_folder], out=tmp_path / "out")
    first, second = ({path.name: path.read_bytes() for path in page.parent.glob("*.png")} for page in (run_page, again))
    assert first == second


# -------------------------------------------------------------------------------------------------- what can't be shown


def test_without_images_the_rest_is_shown(make: Make, tmp_path: Path) -> None:
    folder = make("gone")
    for path in (folder / "recipe.yaml", folder / "published" / "recipe.yaml"):
        path.write_text(re.sub(r"shards: .*", f"shards: {tmp_path}/nowhere", path.read_text()))
    found = Page(report([folder], out=tmp_path / "out"))
    assert found.text.count("No images are shown.") == 3
    assert "nowhere holds no _info.json" in found.text
    assert "Say where the images are with --data." in found.text
    assert pngs(tmp_path / "out") == ["2-zero-shot.png", "3-loss.png", "3-zero-shot.png", "5-banks-1.png"]


def test_images_are_where_data_says(published_folder: Path, taught_folder: Path, tmp_path: Path) -> None:
    elsewhere = Page(report([published_folder], out=tmp_path / "a"))
    assert "stays in the working directory" in elsewhere.text  # a published folder's recipe may be somebody else's
    given = Page(report([published_folder], data=taught_folder, split="train", out=tmp_path / "b"))
    assert f"Images: 48 of {taught_folder}, split train." in given.text
    assert f"lgd-timm report {published_folder} --data {taught_folder} --split train --out {tmp_path}/b" in given.text


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_the_images_are_shown(run_folder: Path, tmp_path: Path) -> None:
    found = Page(report([run_folder], out=tmp_path / "out"))
    assert found.text.count("pip install 'lgd_timm[plot]'") == 4
    assert [attributes["id"] for attributes in found.all("section")] == KEYS
    assert pngs(tmp_path / "out") == ["6-nearest-1.png", "7-mistakes-1.png"]


def test_an_unfinished_run_and_one_that_is_none(make: Make, tmp_path: Path) -> None:
    folder = make("unfinished")
    shutil.rmtree(folder / "published")
    found = Page(report([folder, tmp_path / "nowhere"], out=tmp_path / "out"))
    assert "nowhere is no folder" in found.text
    assert "the run is not finished" in found.text
    assert f"{folder} is not finished: its log ends at step 9, scores are those after epoch 2 of 3." in found.text
    assert pngs(tmp_path / "out") == ["2-zero-shot.png", "3-loss.png", "3-zero-shot.png"]


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("no_matplotlib")  # which takes time
def test_more_settings_than_are_looked_into(make: Make, tmp_path: Path) -> None:
    runs = [make(f"lr{i}", optimizer={"lr": i / 100}, top1=50.0 + i) for i in range(1, 6)]
    found = Page(report(runs, out=tmp_path / "out"))
    assert found.text.count("The first 4 of 5 settings are looked into") == 4
    assert "lr 0.02, seed 0" in found.text
    assert "lr 0.01, seed 0" not in found.text  # the one with the least zero-shot


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.usefixtures("no_matplotlib")
def test_an_earlier_report_is_replaced_and_nothing_else_is_touched(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    a, b = make("a"), make("b", objective={"preset": "reference"})
    report([a, b], out=out)
    (out / "notes.txt").write_text("mine")
    (out / "photo.png").write_bytes(b"mine")
    assert (out / "7-mistakes-2.png").exists()
    report([a], out=out)
    assert not (out / "7-mistakes-2.png").exists()
    assert (out / "notes.txt").exists()
    assert (out / "photo.png").exists()


@pytest.mark.parametrize("content", [{"photo.png": "x"}, {"index.html": "<h1>Home</h1>"}])
def test_a_folder_of_others_is_refused(run_folder: Path, tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(LGDError, match=r"out exists and holds no report\. Choose another --out, or remove it"):
        report([run_folder], out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == list(content)


@pytest.mark.usefixtures("no_matplotlib")
def test_the_command(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out == "report: output/report/index.html\n"
    assert cli.main(["report", str(tmp_path / "nowhere"), "--out", "other"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lgd-timm: error: No run can be read.")
    assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()
