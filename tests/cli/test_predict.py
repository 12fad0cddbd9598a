"""`lgd-timm predict`, `recipes` and `init`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd_timm.cli import main

MODEL = "lgd_mobilenetv2"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_a_line_a_picture(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", MODEL, str(pictures), "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.count(" %") == 2 for line in lines)


def test_json_csv_and_a_sheet(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", MODEL, str(pictures / "*.png"), "--json", "--draw", str(tmp_path / "sheet.png")]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert [len(prediction["names"]) for prediction in predictions] == [5, 5, 5]
    assert (tmp_path / "sheet.png").is_file()
    assert main(["predict", MODEL, str(pictures), "--csv", str(tmp_path / "out.csv"), "--top-k", "1"]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["name_1"] for row in rows] == [prediction["names"][0] for prediction in predictions]


def test_paths_come_from_standard_input(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{pictures / '0.png'}\n\n{pictures / '2.png'}\n"))
    assert main(["predict", MODEL, "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_cant_be_read_is_named_and_counted(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "1.png").write_bytes(b"nothing")
    assert main(["predict", MODEL, str(pictures)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "1.png: " in said.err
    assert "1 of 3 pictures could not be read" in said.err
    assert main(["predict", MODEL, str(pictures / "1.png")]) == 1


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("quickstart ") for line in lines)
    assert all(len(line) <= 120 for line in lines)


def test_init_writes_a_recipe_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["init", str(path), "--shards", "data/mine"]) == 0
    assert "data/mine" in path.read_text(encoding="utf-8")
    assert main(["init", str(path)]) == 2
    assert "exists" in capsys.readouterr().err
