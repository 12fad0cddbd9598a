"""Labels: short, telling, each a group's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgd_timm.evaluate.report.labels import label_groups, objective_name

BASE: dict[str, Any] = {
    "name": "x",
    "student": {"model": "lgd_resnet18", "projector": "linear"},
    "objective": {"kind": "lgd", "preset": "paper", "alpha": 0.5},
    "vocabulary": {"source": ["a", "b", "c", "d", "e"]},
    "data": {"shards": "/long/way/to/cifar10"},
    "schedule": {"epochs": 8},
    "finished": True,
}


def changed(**parts: dict[str, Any] | Any) -> dict[str, Any]:
    return {
        **BASE,
        **{key: {**BASE[key], **value} if isinstance(value, dict) else value for key, value in parts.items()},
    }


def labels(*groups: dict[str, Any]) -> list[str]:
    return [label for label, _ in label_groups(groups)]


def test_one_group_is_called_by_student_and_objective() -> None:
    assert labels(BASE) == ["lgd_resnet18, lgd (paper)"]
    assert objective_name({"kind": "seed"}) == "seed"
    assert objective_name({"preset": "reference"}) == "lgd (reference)"
    assert objective_name({"kind": "clip_kd", "preset": "clip_kd"}) == "clip_kd"


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"student": {"model": "lgd_mobilenetv2"}}, ["lgd_resnet18", "lgd_mobilenetv2"]),
        ({"objective": {"preset": "reference"}}, ["paper", "reference"]),
        ({"objective": {"kind": "seed", "preset": "seed"}}, ["lgd", "seed"]),
        ({"objective": {"alpha": 0.1}}, ["alpha 0.5", "alpha 0.1"]),
        ({"vocabulary": {"source": ["cat", "dog"]}}, ["5 names", "names cat, dog"]),
        ({"data": {"shards": "/other/way/to/photos"}}, ["shards cifar10", "shards photos"]),
        ({"schedule": {"epochs": 200}}, ["8 epochs", "200 epochs"]),
        ({"finished": False}, ["lgd_resnet18, lgd (paper)", "not finished"]),
        ({"student": {"model": "lgd_mobilenetv2"}, "schedule": {"epochs": 9}}, ["lgd_resnet18", "lgd_mobilenetv2"]),
    ],
)
def test_a_label_says_what_differs_first(other: dict[str, Any], expected: list[str]) -> None:
    assert labels(BASE, changed(**other)) == expected


def test_a_label_takes_as_much_as_it_needs() -> None:
    two = {"student": {"model": "lgd_mobilenetv2"}}
    paper, reference = changed(**two), changed(**two, objective={"preset": "reference"})
    assert labels(BASE, paper, reference) == [
        "lgd_resnet18, paper",
        "lgd_mobilenetv2, paper",
        "lgd_mobilenetv2, reference",
    ]


def test_what_can_not_be_told_apart_in_words_is_numbered() -> None:
    assert labels(BASE, changed(data={"shards": "/elsewhere/cifar10"})) == [
        "lgd_resnet18, lgd (paper) #1",
        "lgd_resnet18, lgd (paper) #2",
    ]


def test_all_that_differs_is_told() -> None:
    ours, theirs = (
        differs
        for _, differs in label_groups([BASE, changed(student={"model": "lgd_mobilenetv2"}, schedule={"epochs": 9})])
    )
    assert ours == {"student.model": "lgd_resnet18", "schedule.epochs": "8"}
    assert theirs == {"student.model": "lgd_mobilenetv2", "schedule.epochs": "9"}


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=60), st.lists(st.text(max_size=5), max_size=5)
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"name": st.text(), "data.shards": values, "a": st.dictionaries(st.text(max_size=3), values)}
        )
    )
)
def test_labels_are_never_alike_nor_empty(parts: list[dict[str, Any]]) -> None:
    groups = [{**changed(name=part["name"], data={"shards": part["data.shards"]}), "more": part["a"]} for part in parts]
    found = labels(*groups)
    assert all(found)
    assert len(set(found)) == len(groups)
