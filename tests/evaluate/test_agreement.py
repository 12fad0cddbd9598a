"""Agreement: against a plain computation, and what holds of a student that is its teacher."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.errors import LGDError
from lgd_timm.evaluate import agreement

TEMPERATURES = {"student_temperature": 0.2, "teacher_temperature": 0.1}


def made() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    teacher = torch.randn(60, 8, generator=draw)
    student = teacher + torch.randn(60, 8, generator=draw)
    return (
        student,
        teacher,
        normalize(torch.randn(5, 8, generator=draw), dim=1),
        torch.randint(5, (60,), generator=draw),
    )


def distribution(embedding: Tensor, bank: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(torch.cosine_similarity(embedding, name, dim=0)) / temperature) for name in bank]
    return [power / sum(powers) for power in powers]


def test_it_is_a_plain_computation() -> None:
    student, teacher, bank, labels = made()
    score = agreement(student, teacher, bank, labels, **TEMPERATURES)
    ours = [distribution(row, bank, 0.2) for row in student]
    theirs = [distribution(row, bank, 0.1) for row in teacher]
    answers = [
        (p.index(max(p)), q.index(max(q)), label) for p, q, label in zip(ours, theirs, labels.tolist(), strict=True)
    ]
    right, wrong = [a for a in answers if a[1] == a[2]], [a for a in answers if a[1] != a[2]]
    for share, among in ((score.top1, answers), (score.top1_teacher_right, right), (score.top1_teacher_wrong, wrong)):
        assert share == pytest.approx(100 * sum(a[0] == a[1] for a in among) / len(among))
    assert 0 < score.top1 < 100
    kl = [sum(t * math.log(t / s) for s, t in zip(p, q, strict=True)) for p, q in zip(ours, theirs, strict=True)]
    assert score.kl == pytest.approx(sum(kl) / 60, rel=1e-4)
    assert score.cosine == pytest.approx(float(torch.cosine_similarity(student, teacher).mean()))
    assert (score.samples, score.student_temperature, score.teacher_temperature) == (60, 0.2, 0.1)
    assert json.loads(json.dumps(score.to_dict())) == score.to_dict()


def test_a_student_that_is_its_teacher_agrees_in_all() -> None:
    _, teacher, bank, labels = made()
    score = agreement(3 * teacher, teacher, bank, labels, student_temperature=0.1, teacher_temperature=0.1)
    assert (score.top1, score.top1_teacher_right, score.top1_teacher_wrong) == (100, 100, 100)
    assert score.kl == pytest.approx(0, abs=1e-6)
    assert score.cosine == pytest.approx(1)


def test_without_labels_nothing_is_said_of_right_and_wrong() -> None:
    student, teacher, bank, labels = made()
    score = agreement(student, teacher, bank, torch.full_like(labels, -1), **TEMPERATURES)
    assert (score.top1_teacher_right, score.top1_teacher_wrong) == (None, None)
    assert score.top1 == agreement(student, teacher, bank, labels, **TEMPERATURES).top1
    assert "where the teacher" not in str(score)
    answers = (normalize(teacher, dim=1) @ bank.T).argmax(1)
    assert agreement(student, teacher, bank, answers, **TEMPERATURES).top1_teacher_wrong is None  # it never is


def test_refusals() -> None:
    student, teacher, bank, labels = made()
    arguments: list[tuple[Any, ...]] = [
        (student[:5], teacher, bank, labels),
        (student, teacher, bank[:, :4], labels),
        (student, teacher, bank, labels[:5]),
        (student[:0], teacher[:0], bank, labels[:0]),
    ]
    for wrong in arguments:
        with pytest.raises(LGDError, match="do not fit one another"):
            agreement(*wrong, **TEMPERATURES)
    with pytest.raises(LGDError, match=r"temperatures \(0, 0\.1\) must be above 0"):
        agreement(student, teacher, bank, labels, student_temperature=0, teacher_temperature=0.1)
