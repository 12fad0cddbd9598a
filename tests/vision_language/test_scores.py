"""Scores of captions where data has a line for each of an image's captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lgd_timm.vision_language.data.json_lines import JsonLines
from lgd_timm.vision_language.data.sample import images_of
from lgd_timm.vision_language.run import evaluate, pretrain
from lgd_timm.vision_language.scores import score_captions, score_most_frequent
from tests.helpers.vl_data import recipe, write_scenes


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The same images: a line with all captions each, and a line for each caption."""
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))
    whole = write_scenes(tmp_path / "scenes")
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    split = whole.with_name("split.jsonl")
    split.write_text(
        "".join(json.dumps({**line, "captions": [text]}) + "\n" for line in lines for text in line["captions"])
    )
    return whole, split


def test_an_image_is_captioned_once_and_scored_by_all_its_captions(scenes: tuple[Path, Path], tmp_path: Path) -> None:
    whole, split = scenes
    pretrain(recipe(whole), out=tmp_path / "run")
    found = [evaluate(tmp_path / "run", _evaluated(path), device="cpu") for path in scenes]
    assert found[0] == pytest.approx(found[1])
    numbers, samples = images_of(JsonLines(path=str(split)).open())
    assert numbers == [place // 2 for place in range(24)]
    assert samples == list(range(0, 24, 2))


def _evaluated(path: Path) -> object:
    return recipe(path, data={"val": {"kind": "json_lines", "path": str(path)}})


def test_scores_of_one_caption_for_all_images_are_alike(scenes: tuple[Path, Path]) -> None:
    whole, split = (JsonLines(path=str(path)).open() for path in scenes)
    task = recipe(scenes[0]).task
    assert score_most_frequent(split, split, task) == pytest.approx(score_most_frequent(whole, whole, task))
    said = "a red square beside a blue square"
    alike = [score_captions(dict.fromkeys(images_of(data)[1], said), data) for data in (whole, split)]
    assert alike[0] == pytest.approx(alike[1])
