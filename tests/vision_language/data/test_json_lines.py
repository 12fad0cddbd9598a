"""Samples of JSON lines: the plainest data, and what is refused of it by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgd_timm.errors import LGDError
from lgd_timm.vision_language.data.json_lines import JsonLines, JsonLinesDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "1.jpg")
    return tmp_path


def opened(folder: Path, text: str) -> JsonLinesDataset:
    (folder / "x.jsonl").write_text(text, encoding="utf-8")
    return JsonLines(str(folder / "x.jsonl")).open()


def test_a_mark_blank_lines_and_ends_of_lines_within_texts_are_no_matter(folder: Path) -> None:
    captions = ["one\u2028line", "another\x85one"]
    first = json.dumps({"image": "1.jpg", "captions": captions}, ensure_ascii=False)
    data = opened(folder, "\ufeff" + first + "\r\n\n" + json.dumps({"image": "1.jpg", "boxes": [[0, 0, 2, 2]]}) + "\n")
    assert [data[index].key for index in range(len(data))] == ["1", "3"]
    assert data[0].captions == tuple(captions)
    assert data[1].boxes is not None
    assert data[1].boxes.tolist() == [[0.0, 0.0, 2.0, 2.0]]


WRONG: dict[str, tuple[Any, str]] = {
    "a box far away, at which RoIAlign would crash": ({"boxes": [[0, 0, 1e308, 5]]}, "is outside"),
    "a box that is no number": ({"boxes": [[0, 0, float("nan"), 5]]}, "not finite"),
    "a box of nothing": ({"boxes": [[5, 0, 5, 5]]}, "left, top, right, bottom"),
    "a box that is turned": ({"boxes": [[0, 9, 5, 5]]}, "left, top, right, bottom"),
    "a box of three numbers": ({"boxes": [[0, 9, 5]]}, "four numbers"),
    "a score that is none": ({"answers": {"yes": float("nan")}}, "not finite"),
    "a score of 10^400": ({"answers": {"yes": 10**400}}, "no number"),
    "a score below 0": ({"answers": {"yes": -1}}, "outside"),
    "a score that is true": ({"answers": {"yes": True}}, "no float"),
    "a name that no file has": ({"image": "a\0b"}, "is missing"),
    "a name that is no text of any disk": ({"image": "\ud800"}, "is missing"),
    "a name that is too long": ({"image": "x" * 5000}, "is missing"),
    "an unknown field": ({"caption": "a"}, "caption"),
    "an image that is a number": ({"image": 1}, "no str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_its_line(folder: Path, case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(LGDError, match=message) as refused:
        opened(folder, json.dumps({"image": "1.jpg"}) + "\n" + json.dumps({"image": "1.jpg", **change}))
    assert len(str(refused.value).splitlines()) == 1
    assert "x.jsonl:2" in str(refused.value) or "is missing" in str(refused.value)


@pytest.mark.parametrize("text", ["", "\n\n", "[", "[" * 100_000, "3", "null", '{"image": '])
def test_what_are_no_lines_of_objects(folder: Path, text: str) -> None:
    with pytest.raises(LGDError, match=r"x\.jsonl"):
        opened(folder, text)
