"""`lgd-timm auto` and `lgd-timm teacher`: every option arrives, and what was made is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgd_timm import cli
from lgd_timm.teachers.catalog import TEACHERS
from lgd_timm.training import auto
from lgd_timm.training.auto import AutoResult


def test_every_option_of_auto_arrives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def distill_folder(images: str, **options: Any) -> AutoResult:
        calls.append((images, options))
        return AutoResult(Path("o/published"), Path("o/recipe.yaml"), Path("o/report/index.html"), 41.25, 60.0, 5.0)

    monkeypatch.setattr(auto, "distill_folder", distill_folder)
    words = "auto photos --names names.txt --templates simple --teacher clip-rn50 --student resnet18 --time 30m"
    assert cli.main([*words.split(), "--from-scratch", "--out", "o", "--device", "cpu"]) == 0
    assert calls == [
        (
            "photos",
            {
                "names": "names.txt",
                "templates": "simple",
                "teacher": "clip-rn50",
                "student": "resnet18",
                "time": "30m",
                "from_scratch": True,
                "out": "o",
                "device": "cpu",
            },
        )
    ]
    out = capsys.readouterr().out
    assert "right on held-out images: student 41.2 %, teacher 60.0 %, chance 5.0 %" in out
    assert "published: o/published" in out
    assert "report:    o/report/index.html" in out


def test_without_scores_none_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = AutoResult(Path("p"), Path("r"), Path("i"), None, None, None)
    monkeypatch.setattr(auto, "distill_folder", lambda *_, **__: made)
    assert cli.main(["auto", "photos"]) == 0
    assert "right on" not in capsys.readouterr().out


def test_missing_pictures_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["auto", str(tmp_path / "none"), "--names", "[a, b]", "--teacher", "clip-rn50"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is not a folder. Give the folder that holds the images." in capsys.readouterr().err


def test_teachers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teacher", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TEACHERS)
    assert all("MB" in line for line in lines[1:])


def test_an_unknown_teacher_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teacher", "get", "conse-lite7"]) == 2
    assert "Did you mean 'conse-lite" in capsys.readouterr().err
