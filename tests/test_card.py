"""The model card: what the Hub reads, what people read, and that both are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lgd_timm.card import model_card
from lgd_timm.publish import load
from lgd_timm.recipe import Recipe, recipe_from_dict

STUDENT = {"top1": 61.256, "top5": 95.0, "chance": 10.0, "samples": 10000}
TEACHER = {"top1": 70.0, "top5": 98.5}
METRICS: dict[str, Any] = {
    "zero_shot": STUDENT,
    "teacher_zero_shot": TEACHER,
    "teacher": {"name": "clip_rn50"},
    "input": {"size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}


def recipe(**student: Any) -> Recipe:
    return recipe_from_dict(
        {
            "name": "clip_rn50_birds",
            "teacher": {"kind": "open_clip", "model": "RN50"},
            "vocabulary": {"source": ["wren", "owl"]},
            "data": {"shards": "data/birds", "val_split": "test"},
            "student": {"model": "lgd_mobilenetv2", **student},
        }
    )


def card(metrics: dict[str, Any] = METRICS, names: tuple[str, ...] = ("wren", "owl"), **student: Any) -> str:
    return model_card(name="lgd_mobilenetv2.clip_rn50_birds", recipe=recipe(**student), metrics=metrics, names=names)


def test_the_hub_reads_library_licence_and_score() -> None:
    data = ModelCard(card()).data
    assert data.library_name == "timm"
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "image-classification"
    assert data.tags is not None
    assert {"timm", "lgd_timm"} <= set(data.tags)
    assert data.eval_results is not None
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value) == ("accuracy", 61.26)
    assert (result.dataset_name, result.dataset_split) == ("data/birds", "test")
    assert data.model_name == "lgd_mobilenetv2.clip_rn50_birds"


def test_people_read_the_same_scores() -> None:
    text = ModelCard(card()).text
    assert "| this student | 61.26 % | 95.00 % |" in text
    assert "| its teacher | 70.00 % | 98.50 % |" in text
    assert "| chance | 10.00 % | |" in text
    assert "Top-1 over 10000 images of `data/birds`, split `test`" in text
    assert "taught by clip_rn50" in text
    assert "lgd_mobilenetv2 (mobilenetv2_100)" in text


def test_the_snippet_names_this_model() -> None:
    text = card()
    snippet = text.split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert snippet.count('"hf-hub:lgd-timm/lgd_mobilenetv2.clip_rn50_birds"') == 2
    assert 'timm.create_model("lgd_mobilenetv2.clip_rn50_birds", pretrained=True)' in snippet


def test_without_scores_none_are_claimed() -> None:
    text = card(metrics={})
    assert ModelCard(text).data.eval_results is None
    assert "| this student | not measured | |" in text
    assert "| its teacher | not measured | |" in text
    assert "chance" not in text


def test_other_names_than_its_own_are_said_to_have_been_scored() -> None:
    text = card(metrics={**METRICS, "zero_shot": {**STUDENT, "names": ["robin", "hawk", "crow"]}})
    assert "asked about the 3 names of that split, which are not the 2 that the student was distilled for" in text
    assert "They are: robin, hawk, crow." in text
    assert "asked about" not in card()


def test_a_teacher_that_was_not_measured_is_not_claimed() -> None:
    text = card(metrics={**METRICS, "teacher_zero_shot": None})
    assert "| its teacher | not measured | |" in text


def test_how_it_was_trained_is_said_where_it_is_known() -> None:
    facts = {"images": 50000, "epochs": 10, "steps": 3900, "device": "cpu", "torch": "2.15", "timm": "1.0", "date": "2026-01-02"}
    line = "50,000 images, 10 epochs, 3,900 steps on cpu (torch 2.15, timm 1.0), 2026-01-02."
    assert line in card(metrics={**METRICS, "training": facts})
    assert "images, " not in card()


@pytest.mark.parametrize(("projector", "says"), [("linear", "folded into one linear layer"), ("mlp", "it stays in `lgd.safetensors`")])
def test_the_head_is_described_as_it_is(projector: str, says: str) -> None:
    assert says in card(projector=projector)


def test_long_vocabularies_are_shortened() -> None:
    names = tuple(f"name{i}" for i in range(1000))
    text = card(names=names)
    assert "It knows 1000 category names" in text
    assert "name199, ... (1000 in all)" in text
    assert "name200" not in text
    assert "in all" not in card(names=names[:200])


def test_names_with_markup_and_braces_are_left_as_they_are() -> None:
    assert "{0}, größe, a: b" in card(names=("{0}", "größe", "a: b"))


def test_the_card_of_a_real_run_is_whole(published_folder: Path) -> None:
    published = load(published_folder)
    found = ModelCard.load(published_folder / "README.md")
    assert found.data.eval_results is not None
    assert found.data.eval_results[0].metric_value == published.metrics["summary"]["zero_shot_top1"]
    assert "Input: 32 x 32 pixels" in found.text
    assert "48 images, 3 epochs, 9 steps on cpu" in found.text
    assert "blue, green, red" in found.text
    assert "?" not in found.text
    assert "None" not in found.text
