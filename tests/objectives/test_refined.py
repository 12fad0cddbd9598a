"""The refined objective against a plain statement of it; its moments, target, gradients and steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from lgd_timm.errors import LGDError
from lgd_timm.objectives import RefinedDistillation
from lgd_timm.objectives.refined import RefinedConfig, _due, _Sample, balance_names

NAMES, DIM, BATCH = 5, 12, 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank(names: int = NAMES) -> Tensor:
    return normalize(draw(names, DIM, seed=9), dim=1)


def rows(count: int = BATCH, seed: int = 0) -> Tensor:
    """Embeddings of any length with a mean and unequal variances."""
    return draw(count, DIM, seed=200 + seed) * torch.linspace(0.2, 2, DIM) + 0.5


def fitted(teacher: Tensor, **switches) -> RefinedDistillation:
    objective = RefinedDistillation(bank(), **switches)
    objective.fit(teacher.split(7))
    return objective


# a plain statement, in float64


def unit(x: Tensor) -> np.ndarray:
    x = np.asarray(x.detach(), dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def plain_target(teacher: Tensor, everything: Tensor, config: RefinedConfig) -> np.ndarray:
    c, t, every = unit(bank()), unit(teacher), unit(everything)
    q, m = softmax(every @ c.T / config.teacher_temperature), every.mean(0)
    s = np.cov(every.T, bias=True)
    ridge = config.ridge * np.trace(s) / DIM * np.eye(DIM)
    r = np.linalg.solve(s + ridge, (every - m).T @ (q - q.mean(0)) / len(every))
    p = np.maximum(q.mean(0) + (t - m) @ r, config.floor / NAMES) ** config.sharpen
    return p / p.sum(1, keepdims=True)


def plain_loss(student: Tensor, teacher: Tensor, everything: Tensor, config: RefinedConfig) -> float:
    c, every = unit(bank()), unit(everything)
    s = np.cov(every.T, bias=True)
    metric = power(s + config.shrink * np.trace(s) / DIM * np.eye(DIM), -config.whiten / 2)
    xs, xt = (unit(torch.from_numpy((unit(e) - every.mean(0)) @ metric)) for e in (student, teacher))
    names = -(
        plain_target(teacher, everything, config) * np.log(softmax(unit(student) @ c.T / config.student_temperature))
    )
    keys = xt.T / config.contrast_temperature
    contrast = -softmax(xt @ keys) * np.log(softmax(xs @ keys))
    parts = names.sum(1).mean(), (1 - (xs * xt).sum(1)).mean(), contrast.sum(1).mean()
    weights = config.names_weight, config.feature_weight, config.contrast_weight
    return float(sum(weight * part for weight, part in zip(weights, parts, strict=True)))


@pytest.mark.parametrize(
    "switches", [{}, {"whiten": 0.0}, {"whiten": 1.0, "ridge": 0.1}, {"sharpen": 1.0, "floor": 0.9, "shrink": 1.0}]
)
def test_the_loss_is_that_of_a_plain_statement(switches: dict) -> None:
    everything, student = rows(200), draw(BATCH, DIM, seed=1)
    objective = fitted(everything, **switches)
    loss = objective(student, everything[:BATCH])["loss"]
    assert loss.item() == pytest.approx(plain_loss(student, everything[:BATCH], everything, objective.config), rel=1e-4)


def test_a_weight_of_0_leaves_its_term_out() -> None:
    teacher, student = rows(), draw(BATCH, DIM, seed=1)
    whole = fitted(teacher)(student, teacher)
    for name in ("names", "feature", "contrast"):
        losses = fitted(
            teacher, **{f"{other}_weight": 0.0 for other in ("names", "feature", "contrast") if other != name}
        )
        assert set(losses(student, teacher)) == {"loss", f"loss_{name}"}
        torch.testing.assert_close(losses(student, teacher)[f"loss_{name}"], whole[f"loss_{name}"])


# moments


def test_running_moments_over_all_batches_are_the_exact_ones() -> None:
    everything = rows(32 * BATCH)
    running, exact = RefinedDistillation(bank()), fitted(everything)
    for batch in everything.split(BATCH):
        running.update(batch)
    for name in ("images", "mean", "second", "prior", "cross", "metric", "refiner"):
        torch.testing.assert_close(getattr(running, name), getattr(exact, name), rtol=1e-3, atol=1e-4)


def test_moments_that_were_fitted_stay() -> None:
    objective, loaded = fitted(rows()), RefinedDistillation(bank())
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    loaded.load_state_dict(before)
    for stays in (objective, loaded):
        stays.update(rows(seed=1))
        assert all(torch.equal(value, before[name]) for name, value in stays.state_dict().items())


def test_autocast_changes_no_moment() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        lowered = fitted(rows(200), balance=1.0)
    for name, value in fitted(rows(200), balance=1.0).state_dict().items():
        assert torch.equal(lowered.state_dict()[name], value)
    plain, running = RefinedDistillation(bank(), balance=1.0), RefinedDistillation(bank(), balance=1.0)
    for step in range(3):
        plain.update(rows(seed=step))
        with torch.autocast("cpu", torch.bfloat16):
            running.update(rows(seed=step))
    assert all(torch.equal(running.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_images_that_are_all_alike_change_no_answer_much() -> None:
    """Their covariance is rounding, which the ridge must not divide by."""
    alike = rows(1).repeat(50, 1)
    assert fitted(alike).refiner.abs().max() < 1


def test_the_balance_is_found_on_images_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all have room: shards may be sorted by class."""
    teacher, _ = clusters(1, per_name=400)
    monkeypatch.setattr("lgd_timm.objectives.refined.SAMPLE", 150 * NAMES)
    some = fitted(teacher, balance=1.0).target(normalize(teacher, dim=1)).mean(0)
    torch.testing.assert_close(some, torch.full((NAMES,), 1 / NAMES), atol=0.04, rtol=0)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_sample_is_spread_evenly(size: int) -> None:
    sample = _Sample(room=100)
    for part in torch.arange(1000)[:, None].split(size):
        sample.add(part)
    kept = torch.cat(sample.parts).flatten().tolist()
    assert kept == list(range(0, 1000, 16))


def test_a_warning_tells_of_too_few_images_to_balance(caplog: pytest.LogCaptureFixture) -> None:
    fitted(rows(10 * NAMES), balance=1.0)
    assert not caplog.records
    fitted(rows(10 * NAMES - 1), balance=1.0)
    assert f"{NAMES} names and {10 * NAMES - 1} images" in caplog.text


def test_the_covariance_is_decomposed_seldom() -> None:
    due = [step for step in range(1, 100_001) if _due(step)]
    assert due[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert len(due) < 70


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_rows_that_are_not_finite_stay_out(balance: float) -> None:
    clean, poisoned = RefinedDistillation(bank(), balance=balance), RefinedDistillation(bank(), balance=balance)
    batch = rows()
    spoilt = batch.clone()
    spoilt[3, 2], spoilt[5, 0] = torch.nan, torch.inf
    clean.update(batch[[i for i in range(BATCH) if i not in (3, 5)]])
    poisoned.update(spoilt)
    assert poisoned.images == BATCH - 2
    for name, value in clean.state_dict().items():
        if balance == 0 or name not in ("found", "balanced", "potential"):
            torch.testing.assert_close(poisoned.state_dict()[name], value)
    assert all(value.isfinite().all() for value in poisoned.state_dict().values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_no_harm(count: int) -> None:
    for objective in (fitted(rows(count), balance=1.0), RefinedDistillation(bank(), balance=1.0)):
        objective.update(rows(count))
        student = draw(count, DIM, seed=1).requires_grad_()
        objective(student, rows(count, seed=3))["loss"].backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()


# the target


def clusters(seed: int, *, per_name: int = 100, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Images around one direction a name, not quite the name's own: a teacher that mistakes some for others."""
    labels = torch.arange(NAMES).repeat_interleave(per_name)
    centres = bank() + 0.6 * bank().roll(1, 0) + 0.7 * draw(NAMES, DIM, seed=5) / DIM**0.5
    return centres[labels] + noise * draw(len(labels), DIM, seed=seed) / DIM**0.5 * 2, labels


def accuracy(p: Tensor, labels: Tensor) -> float:
    return (p.argmax(1) == labels).float().mean().item()


def test_refining_helps_where_the_images_bear_out_the_names() -> None:
    teacher, labels = clusters(1)
    plain = accuracy(fitted(teacher, refine=False).target(normalize(teacher, dim=1)), labels)
    assert accuracy(fitted(teacher).target(normalize(teacher, dim=1)), labels) > plain


def test_where_the_names_say_little_of_the_images_the_order_of_the_answers_stays() -> None:
    """Images without any clusters: the answers are all but linear in the embedding, and so are the refined ones."""
    teacher = draw(4000, DIM, seed=3)
    t = normalize(teacher, dim=1)
    plain, refined = (fitted(teacher, **switches).target(t) for switches in ({"refine": False}, {"sharpen": 1.0}))
    assert (plain.argmax(1) == refined.argmax(1)).float().mean() > 0.9


def test_where_the_names_say_nothing_of_the_images_the_target_stays_as_it_is() -> None:
    """The names' directions are at right angles to all images: every answer is uniform, and so is the target."""
    objective = RefinedDistillation(normalize(torch.cat([bank(), torch.zeros(NAMES, DIM)], 1), dim=1), balance=1.0)
    images = torch.cat([torch.zeros(300, DIM), rows(300)], 1)
    objective.fit([images])
    p = objective.target(normalize(images, dim=1))
    torch.testing.assert_close(p, torch.full((300, NAMES), 1 / NAMES))


def test_balance_brings_the_names_to_equal_frequency() -> None:
    teacher, labels = clusters(1)
    t = normalize(teacher, dim=1)
    balanced = fitted(teacher, balance=1.0).target(t)
    torch.testing.assert_close(balanced.mean(0), torch.full((NAMES,), 1 / NAMES), atol=1e-3, rtol=0)
    assert accuracy(balanced, labels) >= accuracy(fitted(teacher).target(t), labels)


def test_logits_that_are_shifted_by_the_potential_name_all_classes_equally_often() -> None:
    logits = draw(300, NAMES) + draw(NAMES, seed=1)
    balance = balance_names(torch.softmax(logits, 1))
    assert torch.allclose(balance.found, torch.softmax(logits, 1).mean(0))
    assert balance.found.max() > 2 * balance.found.min()
    shifted = torch.softmax(logits + balance.potential.log(), 1).mean(0)
    assert torch.allclose(shifted, torch.full((NAMES,), 1 / NAMES), atol=1e-5)


def test_without_balance_unequal_frequencies_are_no_harm() -> None:
    teacher, labels = clusters(1)
    keep = torch.cat([torch.nonzero(labels == k).flatten()[: 100 // (k + 1)] for k in range(NAMES)])
    t = normalize(teacher[keep], dim=1)
    plain, refined, balanced = (
        accuracy(fitted(teacher[keep], **switches).target(t), labels[keep])
        for switches in ({"refine": False}, {}, {"balance": 1.0})
    )
    assert refined >= plain
    assert balanced < refined  # it was told what is not so


def test_running_balance_comes_near_to_the_exact_one() -> None:
    teacher, _ = clusters(1, per_name=400)
    order = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(0))
    running = RefinedDistillation(bank(), balance=1.0)
    for epoch in range(6):
        for batch in teacher[order.roll(epoch)].split(50):
            running.update(batch)
    frequencies = running.target(normalize(teacher, dim=1)).mean(0)
    torch.testing.assert_close(frequencies, torch.full((NAMES,), 1 / NAMES), atol=0.02, rtol=0)
    torch.testing.assert_close(running.found, fitted(teacher, balance=1.0).found, atol=0.01, rtol=0)


def test_a_name_that_no_image_shows_is_no_harm() -> None:
    teacher, labels = clusters(1)
    t, names = normalize(teacher, dim=1), torch.cat([bank(), -bank()[:1]])
    objective = RefinedDistillation(names)
    objective.fit([teacher])
    p = objective.target(t)
    assert p[:, -1].max() < 1e-3
    assert accuracy(p, labels) >= accuracy(fitted(teacher).target(t), labels) - 0.01


def test_a_name_that_no_image_shows_takes_images_where_it_is_said_to_be_as_frequent() -> None:
    """What `balance` is told is believed: the answers stay finite, some go to it, and most stay right."""
    teacher, labels = clusters(1)
    told = RefinedDistillation(torch.cat([bank(), -bank()[:1]]), balance=1.0)
    told.fit([teacher])
    p = told.target(normalize(teacher, dim=1))
    assert p.isfinite().all()
    assert p[:, -1].mean() > 0.01
    assert told.potential.max() <= 1e3
    assert accuracy(p, labels) > 0.8


# gradients


def test_the_embedding_terms_have_no_gradient_where_student_equals_teacher() -> None:
    teacher = rows()
    student = teacher.clone().requires_grad_()
    losses = fitted(rows(200))(student, teacher)
    assert losses["loss_feature"].item() == pytest.approx(0, abs=1e-6)
    for term in ("loss_feature", "loss_contrast"):
        (gradient,) = torch.autograd.grad(losses[term], student, retain_graph=True)
        assert gradient.abs().max() < 1e-5


def test_the_names_have_no_gradient_where_the_student_answers_with_the_target() -> None:
    objective = fitted(rows(200), refine=False, student_temperature=0.1, feature_weight=0.0, contrast_weight=0.0)
    student = rows().requires_grad_()
    objective(student, student.detach())["loss"].backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [0.01, 1000.0])
def test_the_embeddings_scale_changes_nothing(scale: float) -> None:
    teacher, student = rows(), draw(BATCH, DIM, seed=1)
    one, other = fitted(teacher), fitted(scale * teacher)
    torch.testing.assert_close(other(scale * student, scale * teacher)["loss"], one(student, teacher)["loss"])


# steps


@pytest.mark.parametrize("switches", [{}, {"balance": 1.0}, {"refine": False}])
def test_no_value_is_read_on_the_host(switches: dict) -> None:
    """Fake tensors have none: whatever asks for one raises. Only the steps that decompose ask."""
    objective = RefinedDistillation(bank(), **switches)
    for step in range(8):
        objective.update(rows(seed=step))
    with FakeTensorMode() as mode:
        for name, buffer in [*objective.named_buffers()]:
            setattr(objective, name, mode.from_tensor(buffer))
        student, teacher = mode.from_tensor(draw(BATCH, DIM).requires_grad_()), mode.from_tensor(rows())
        objective(student, teacher)["loss"].backward()
        objective.update(teacher)
    assert student.grad is not None


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_compiled_whole_the_loss_is_the_same(balance: float) -> None:
    torch.compiler.reset()
    objective, student, teacher = fitted(rows(200), balance=balance), draw(BATCH, DIM, seed=1), rows()
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher), objective(student, teacher))


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_a_resumed_run_goes_on_to_the_bit(balance: float) -> None:
    whole = RefinedDistillation(bank(), balance=balance)
    for step in range(11):
        whole.update(rows(seed=step))
    resumed = RefinedDistillation(bank(), balance=balance)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for step in range(11, 30):
        for objective in (whole, resumed):
            objective.update(rows(seed=step))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def on_rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    running, exact = RefinedDistillation(bank(), preset="balanced"), RefinedDistillation(bank(), preset="balanced")
    exact.fit(rows(200)[rank::world].split(7))
    losses = []
    for step in range(10):
        student, teacher = draw(BATCH, DIM, seed=step).chunk(world)[rank], rows(seed=step).chunk(world)[rank]
        losses.append([running(student, teacher)["loss"], exact(student, teacher)["loss"]])
        running.update(teacher)
    total = torch.tensor(losses)
    dist.all_reduce(total)
    torch.save([total / world, running.state_dict(), exact.state_dict()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_state_of_one_process(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for states in zip(one[1:], two[1:], strict=True):
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    running, exact = RefinedDistillation(bank(), preset="balanced"), fitted(rows(200), preset="balanced")
    for step in range(10):
        student, teacher = draw(BATCH, DIM, seed=step), rows(seed=step)
        for objective, number in ((running, 0), (exact, 1)):
            torch.testing.assert_close(one[0][step, number], objective(student, teacher)["loss"], rtol=1e-3, atol=1e-3)
        running.update(teacher)
    for objective, state in ((running, one[1]), (exact, one[2])):
        for name, value in objective.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"balance": 1.5}, "objective.balance = 1.5 is outside [0, 1]"),
        ({"ridge": 0.0}, "objective.ridge = 0.0 must be above 0"),
        ({"names_weight": -1.0}, "objective.names_weight = -1.0 is outside"),
        ({"sharpness": 2.0}, "no switch 'sharpness'"),
    ],
)
def test_values_that_make_no_sense_are_refused(switches: dict, message: str) -> None:
    with pytest.raises(LGDError) as caught:
        RefinedDistillation(bank(), **switches)
    assert message in str(caught.value)
