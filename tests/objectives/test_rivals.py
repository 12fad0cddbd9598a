"""The rivals: each against a plain statement of its loss, and what all objectives have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.objectives import (
    CLIPKD,
    LGD,
    OBJECTIVES,
    SEED,
    Logits,
    Objective,
    Regression,
    Supervised,
    create_objective,
    objective_config,
)
from lgd_timm.objectives.registry import check_objective

DIM, NAMES, BATCH = 12, 5, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank() -> Tensor:
    return normalize(draw(NAMES, DIM, seed=9), dim=1)


def batch(seed: int = 0, size: int = BATCH) -> tuple[Tensor, Tensor]:
    return draw(size, DIM, seed=100 + seed), draw(size, DIM, seed=200 + seed)


def target_of(objective: Objective, teacher: Tensor) -> Tensor:
    return torch.arange(len(teacher)) % NAMES if objective.needs_labels else teacher


# what all have in common


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_gives_finite_losses_and_a_gradient_to_the_student_alone(kind: str, dtype: torch.dtype) -> None:
    objective = create_objective(bank(), kind=kind)
    student, teacher = (rows.to(dtype).requires_grad_() for rows in batch())
    losses = objective(student, target_of(objective, teacher))
    losses["loss"].backward()
    objective.update(teacher.detach(), assigned=losses.pop("assigned", None))
    assert all(loss.dtype == torch.float32 and loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert not list(objective.parameters())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_length_of_an_embedding_says_nothing(kind: str) -> None:
    objective = create_objective(bank(), kind=kind).eval()
    student, teacher = batch()
    target = target_of(objective, teacher)
    other = target if objective.needs_labels else 3 * target
    torch.testing.assert_close(objective(7 * student, other)["loss"], objective(student, target)["loss"])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_step_against_the_gradient_lowers_the_loss(kind: str) -> None:
    objective = create_objective(bank(), kind=kind)
    student, teacher = batch()
    student.requires_grad_()
    objective.eval()
    before = objective(student, target_of(objective, teacher))["loss"]
    (gradient,) = torch.autograd.grad(before, student)
    after = objective(student - 0.01 * gradient / gradient.norm(), target_of(objective, teacher))["loss"]
    assert after < before


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_state_makes_the_same_objective_again(kind: str) -> None:
    objective, again = create_objective(bank(), kind=kind), create_objective(bank(), kind=kind, seed=5)
    for step in range(3):
        student, teacher = batch(step)
        objective(student, target_of(objective, teacher))
        objective.update(teacher)
    again.load_state_dict(objective.state_dict())
    student, teacher = batch(7)
    assert torch.equal(
        again(student, target_of(again, teacher))["loss"], objective(student, target_of(objective, teacher))["loss"]
    )


@pytest.mark.parametrize("kind", [kind for kind in OBJECTIVES if kind != "supervised"])
@pytest.mark.parametrize(
    ("shape", "message"), [((BATCH, DIM + 1), "teacher embeddings have shape"), ((BATCH - 1, DIM), "8 student .* 7 of")]
)
def test_embeddings_that_do_not_fit_are_refused(kind: str, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(LGDError, match=message):
        create_objective(bank(), kind=kind)(draw(BATCH, DIM), draw(*shape))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_preset_can_be_built_and_reads_as_a_classifier(kind: str) -> None:
    for preset in OBJECTIVES[kind].presets:
        assert create_objective(bank(), kind=kind, preset=preset).config == objective_config(
            {"kind": kind, "preset": preset}
        )
        assert objective_config({"kind": kind, "preset": preset}).student_temperature > 0


# regression


def test_regression_is_0_for_the_teacher_itself_and_4_for_its_opposite() -> None:
    objective, (_, teacher) = Regression(bank()), batch()
    assert objective(5 * teacher, teacher)["loss"] == pytest.approx(0, abs=1e-6)
    assert objective(-teacher, teacher)["loss"] == pytest.approx(4, abs=1e-6)


def test_regression_is_the_squared_distance_of_unit_rows() -> None:
    student, teacher = batch()
    plain = (normalize(student) - normalize(teacher)).square().sum(1).mean()
    torch.testing.assert_close(Regression(bank())(student, teacher)["loss"], plain)


# logits


def test_logits_are_lgd_without_the_visual_bank() -> None:
    student, teacher = batch()
    torch.testing.assert_close(
        Logits(bank())(student, teacher)["loss"], LGD(bank(), alpha=0.0)(student, teacher)["loss"]
    )


# clip_kd


def test_clip_kd_is_contrast_plus_weighted_distance() -> None:
    student, teacher = batch()
    losses = CLIPKD(bank(), feature_weight=30.0, contrastive_weight=0.5, student_temperature=0.1)(student, teacher)
    s, t = normalize(student), normalize(teacher)
    contrastive = torch.stack([cross_entropy((s[i] @ t.T / 0.1)[None], torch.tensor([i])) for i in range(BATCH)]).mean()
    torch.testing.assert_close(losses["loss_contrastive"], contrastive)
    torch.testing.assert_close(losses["loss_feature"], (s - t).square().sum() / (BATCH * DIM))
    torch.testing.assert_close(losses["loss"], 0.5 * contrastive + 30 * losses["loss_feature"])


# supervised


def test_supervised_is_cross_entropy_over_the_names_and_leaves_unlabelled_images_out() -> None:
    student, labels = draw(4, DIM), torch.tensor([3, 0, -1, 4])
    logits = normalize(student) @ bank().T / 0.1
    plain = -logits.log_softmax(1)[[0, 1, 3], [3, 0, 4]].mean()
    torch.testing.assert_close(Supervised(bank())(student, labels)["loss"], plain)


# seed


def plain_seed(student: Tensor, teacher: Tensor, queue: Tensor, *, ts: float, tt: float, positive: bool) -> Tensor:
    s, t = normalize(student), normalize(teacher)
    p, q = t @ queue.T / tt, s @ queue.T / ts
    if positive:
        p, q = (
            torch.cat([(t * t).sum(1, keepdim=True) / tt, p], 1),
            torch.cat([(s * t).sum(1, keepdim=True) / ts, q], 1),
        )
    return -(p.softmax(1) * q.log_softmax(1)).sum(1).mean()


def test_seed_compares_similarities_to_the_queue_before_the_batch_enters_it() -> None:
    objective = SEED(bank(), queue_size=20, student_temperature=0.3, teacher_temperature=0.05)
    for step in range(4):  # the queue wraps round
        student, teacher = batch(step)
        plain = plain_seed(student, teacher, objective.queue.clone(), ts=0.3, tt=0.05, positive=True)
        torch.testing.assert_close(objective(student, teacher)["loss"], plain)
        objective.update(teacher)


def test_lightly_trains_form_has_the_batch_in_the_queue_and_one_temperature() -> None:
    objective = SEED(bank(), preset="lightly_train", queue_size=20)
    assert objective.config.student_temperature == objective.config.teacher_temperature == 0.07
    student, teacher = batch()
    queue = objective.queue.clone()
    queue[:BATCH] = normalize(teacher)
    torch.testing.assert_close(
        objective(student, teacher)["loss"], plain_seed(student, teacher, queue, ts=0.07, tt=0.07, positive=False)
    )
    objective.update(teacher)
    assert torch.equal(objective.queue, queue), "the batch enters once"


@pytest.mark.parametrize(("size", "sizes"), [(20, [8, 8, 8, 8]), (7, [3, 3, 3]), (5, [8, 3])])
def test_the_queue_holds_the_last_rows_in_their_order(size: int, sizes: list[int]) -> None:
    objective = SEED(bank(), queue_size=size)
    rows = [normalize(draw(count, DIM, seed=step)) for step, count in enumerate(sizes)]
    for part in rows:
        objective.update(part)
    last = torch.cat(rows)[-size:]
    torch.testing.assert_close(objective.queue.roll(-int(objective.place), 0), last)


def test_scoring_in_eval_mode_leaves_the_queue_alone() -> None:
    objective = SEED(bank(), preset="lightly_train", queue_size=20).eval()
    queue = objective.queue.clone()
    objective(*batch())
    assert torch.equal(objective.queue, queue)


def test_rows_that_are_not_finite_stay_out_of_the_queue() -> None:
    objective = SEED(bank(), queue_size=20)
    before, teacher = objective.queue.clone(), draw(BATCH, DIM)
    teacher[2] = float("nan")
    objective.update(teacher)
    assert objective.queue.isfinite().all()
    assert torch.equal(objective.queue[2], before[2])
    torch.testing.assert_close(objective.queue[3], normalize(teacher[3], dim=0))


RANK_CASES: list[dict[str, Any]] = [
    {"kind": "seed", "queue_size": 20},
    {"kind": "seed", "preset": "lightly_train", "queue_size": 20},
    {"kind": "clip_kd"},
]


def on_rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    out = []
    for case in RANK_CASES:
        objective, losses = create_objective(bank(), **case), []
        for step in range(3):
            student, teacher = (rows.chunk(world)[rank] for rows in batch(step))
            losses.append(objective(student, teacher)["loss"])
            objective.update(teacher)
        out.append((torch.stack(losses), objective.state_dict()))
    torch.save(out, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_losses_and_the_queue_of_one_process(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for case, one, other in zip(RANK_CASES, first, second, strict=True):
        alone, losses = create_objective(bank(), **case), []
        for step in range(3):
            losses.append(alone(*batch(step))["loss"])
            alone.update(batch(step)[1])
        torch.testing.assert_close((one[0] + other[0]) / 2, torch.stack(losses))
        for name, tensor in alone.state_dict().items():
            assert torch.equal(one[1][name], other[1][name])
            torch.testing.assert_close(one[1][name], tensor)


# as a recipe says it


def test_without_a_kind_it_is_lgd() -> None:
    assert isinstance(create_objective(bank()), LGD)
    assert objective_config({"preset": "paper"}) == LGD.presets["paper"]
    assert check_objective({"alpha": "0.25"}) == {"alpha": 0.25}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bingo"}, "objective.kind 'bingo' is unknown; choose one of lgd, seed, regression"),
        ({"kind": ["seed"]}, r"objective.kind \['seed'\] is unknown"),
        ({"kind": "seed", "queue_sise": 5}, "did you mean 'objective.queue_size'"),
        ({"kind": "seed", "queue_size": 0}, "objective.queue_size = 0 must be above 0"),
        ({"kind": "seed", "queue_size": 2.5}, "objective.queue_size = 2.5 is no int"),
        ({"kind": "seed", "update": "never"}, "choose one of after, before"),
        ({"kind": "seed", "preset": "paper"}, "choose one of seed, lightly_train"),
        ({"kind": "clip_kd", "feature_weight": -1}, r"objective.feature_weight = -1.0 is outside \[0, inf\]"),
        ({"kind": "regression", "student_temperature": 0}, "must be above 0"),
        ({"kind": "supervised", "smoothing": 2}, "outside"),
        ({"kind": "logits", "alpha": 0.5}, "Unknown recipe field 'objective.alpha'"),
    ],
)
def test_settings_that_an_objective_can_not_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_objective(settings)
