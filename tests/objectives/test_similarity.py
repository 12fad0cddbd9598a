"""The loss against its simple form, and what it may keep, read and copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgd_timm.objectives import similarity
from lgd_timm.objectives.similarity import chunks, nearest_rows, similarity_loss

NAMES, DIM, BATCH = 7, 12, 10
TEMPERATURES = {"student_temperature": 0.2, "teacher_temperature": 0.1}
KEEP = torch.tensor([True, False, True, True, False, True, True])


def draw(*shape: int, seed: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def triple(size: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """Student with a gradient, teacher, bank."""
    return draw(size, DIM, seed=1).requires_grad_(), draw(size, DIM, seed=2), draw(NAMES, DIM, seed=3)


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return -(teacher_logits.softmax(1) * log_softmax(student_logits, dim=1)).sum(1).mean()


def simple(student, teacher, bank, *, student_temperature, teacher_temperature, positive=False, keep=None) -> Tensor:
    def logits(embeddings: Tensor, temperature: float) -> Tensor:
        all_names = embeddings @ bank.T / temperature
        if keep is not None:
            all_names = all_names[:, keep]
        mine = (embeddings * teacher).sum(1, keepdim=True) / temperature
        return torch.cat([mine, all_names], dim=1) if positive else all_names

    return cross_entropy(logits(student, student_temperature), logits(teacher, teacher_temperature))


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


def test_the_simple_form_is_least_where_the_distributions_are_equal():
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(8))
    entropy = cross_entropy(logits, logits)
    for seed in range(5):
        assert cross_entropy(logits + 0.3 * draw(5, 6, seed=seed), logits) > entropy
    torch.testing.assert_close(cross_entropy(logits + 7, logits - 3), entropy, msg="a constant has no say in a softmax")


@pytest.mark.parametrize("rows", [None, 1, 3, 5, BATCH, 99])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("teacher_temperature", [0.1, 0.01])
def test_value_and_gradient_are_those_of_the_simple_form(rows, positive, keep, teacher_temperature):
    student, teacher, bank = triple()
    options: dict[str, Any] = {
        **TEMPERATURES,
        "teacher_temperature": teacher_temperature,
        "positive": positive,
        "keep": keep,
    }
    result = similarity_loss(student, teacher, bank, rows=rows, **options)
    expected = simple(student, teacher, bank, **options)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(gradient(result.loss, student), gradient(expected, student))
    allowed = teacher @ bank.T if keep is None else (teacher @ bank.T).masked_fill(~keep, -2)
    assert torch.equal(result.nearest, allowed.argmax(1))
    assert result.confidence.shape == (BATCH,)
    if not positive and keep is None:
        torch.testing.assert_close(result.confidence, (teacher @ bank.T / teacher_temperature).softmax(1).amax(1))
        nearest, confidence = nearest_rows(teacher, bank, temperature=teacher_temperature, rows=rows)
        assert torch.equal(nearest, result.nearest)
        assert torch.equal(confidence, result.confidence)


def test_gradient_is_that_of_finite_differences():
    student, teacher, bank = (x.detach().double() for x in triple(3))

    def loss(s):
        return similarity_loss(s, teacher, bank, **TEMPERATURES, positive=True, rows=2).loss

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_an_incoming_gradient_scales_and_the_loss_can_be_used_twice():
    student, teacher, bank = triple()
    loss = similarity_loss(student, teacher, bank, **TEMPERATURES).loss
    once = torch.autograd.grad(loss, student, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss * -1024, student, retain_graph=True)[0], -1024 * once)
    (3 * loss + loss.square()).backward()
    torch.testing.assert_close(student.grad, (3 + 2 * loss.detach()) * once)


def test_a_second_derivative_is_refused():
    student, teacher, bank = triple()
    loss = similarity_loss(student, teacher, bank, **TEMPERATURES).loss
    first = torch.autograd.grad(loss.square(), student, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_the_student_gets_a_gradient():
    student, teacher, bank = (x.detach().requires_grad_() for x in triple())
    similarity_loss(student, teacher, bank, **TEMPERATURES, positive=True).loss.backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    assert bank.grad is None


def test_a_bank_changed_after_the_loss_leaves_the_gradient_right():
    student, teacher, bank = triple()
    expected = gradient(simple(student, teacher, bank, **TEMPERATURES), student)
    loss = similarity_loss(student, teacher, bank, **TEMPERATURES).loss
    bank.mul_(-3)
    teacher.zero_()
    torch.testing.assert_close(gradient(loss, student), expected)


class Record(TorchDispatchMode):
    """The operations that ran and the largest number of elements that one of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        self.largest = max([self.largest, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_without_a_gradient_none_is_computed():
    student, teacher, bank = triple()
    counts = {}
    for case, one in {"learning": student, "frozen": student.detach()}.items():
        with Record() as record:
            result = similarity_loss(one, teacher, bank, **TEMPERATURES)
        counts[case] = sum("addmm" in name for name in record.names)
        assert result.loss.requires_grad == (case == "learning")
    with torch.no_grad():
        assert torch.equal(similarity_loss(student, teacher, bank, **TEMPERATURES).loss, result.loss)
    assert counts == {"learning": 3, "frozen": 2}


@pytest.mark.parametrize("positive", [False, True])
def test_nothing_is_larger_than_a_chunk(monkeypatch, positive):
    monkeypatch.setattr(similarity, "CHUNK", 4000)
    student, teacher, bank = draw(64, 4, seed=1).requires_grad_(), draw(64, 4, seed=2), draw(900, 4, seed=3)
    with Record() as record:
        loss = similarity_loss(
            student, teacher, bank, **TEMPERATURES, positive=positive, keep=torch.ones(900, dtype=torch.bool)
        ).loss
        loss.backward()
    assert record.largest <= 4 * (900 + positive)
    torch.testing.assert_close(loss, simple(student, teacher, bank, **TEMPERATURES, positive=positive))


def test_chunks_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(similarity, "CHUNK", 100)
    for batch, names, rows in (
        (10, 7, None),
        (10, 30, None),
        (10, 1000, None),
        (10, 7, 4),
        (100, 9, None),
        (1, 1, None),
    ):
        parts = chunks(batch, names, rows=rows)
        assert [i for part in parts for i in range(batch)[part]] == list(range(batch))
        assert all(len(range(batch)[part]) <= (rows or max(1, 100 // names)) for part in parts)
    assert len(chunks(10, 7)) == 1, "a small problem is one chunk"
