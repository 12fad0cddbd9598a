"""The objective against the released code's numbers, against plain statements of the paper, and against itself."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from lgd_timm.errors import LGDError
from lgd_timm.objectives import LGD, Assigned, join_assigned
from lgd_timm.objectives.lgd import PRESETS, LGDConfig
from tests.helpers import ROOT

NAMES, DIM, BATCH = 7, 12, 9
SOFT = 0.1  # a teacher temperature at which every name counts; at 0.01 one takes all, and much goes unnoticed


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_bank(names: int = NAMES, dim: int = DIM) -> Tensor:
    return normalize(draw(names, dim, seed=1), dim=1)


def batch(seed: int = 0, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Student and teacher embeddings of any length, the student's with a gradient."""
    return draw(size, DIM, seed=100 + seed).mul(3).requires_grad_(), draw(size, DIM, seed=200 + seed) * 5


def objective(**switches) -> LGD:
    return LGD(text_bank(), **{"teacher_temperature": SOFT, "momentum": 0.9, **switches})


def losses_of(result: dict) -> dict[str, Tensor]:
    return {name: value for name, value in result.items() if name != "assigned"}


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student, retain_graph=True)[0]


# Plain statements of the equations in docs/concepts/method.md, in float64.


def unit(x) -> np.ndarray:
    x = np.asarray(x.detach() if isinstance(x, Tensor) else x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def plain_loss(student, teacher, bank, *, student_temperature=0.2, teacher_temperature=SOFT, positive=False) -> float:
    s, t, bank = unit(student), unit(teacher), np.asarray(bank, dtype=np.float64)
    ours, target = s @ bank.T, t @ bank.T
    if positive:
        ours = np.concatenate([(s * t).sum(1, keepdims=True), ours], axis=1)
        target = np.concatenate([np.ones((len(t), 1)), target], axis=1)
    return float(-(softmax(target / teacher_temperature) * np.log(softmax(ours / student_temperature))).sum(1).mean())


def plain_update(teacher, text, bank, seen, *, momentum=0.9, threshold=0.0) -> tuple[np.ndarray, np.ndarray]:
    t, text = unit(teacher), np.asarray(text, dtype=np.float64)
    bank, seen = np.array(bank, dtype=np.float64), np.array(seen)
    name = (t @ text.T).argmax(1)
    sure = softmax(t @ text.T / SOFT).max(1) >= threshold
    for k in range(len(text)):
        mine = t[(name == k) & sure]
        if len(mine):
            bank[k] = momentum * bank[k] + (1 - momentum) * mine.mean(0) if seen[k] else mine.mean(0)
            seen[k] = True
    return bank, seen


# The released code


def test_reference_preset_repeats_the_released_codes_steps():
    golden = {
        key: torch.from_numpy(value) for key, value in np.load(ROOT / "tests/golden/lgd_reference_steps.npz").items()
    }
    student_temperature, teacher_temperature, momentum = golden["params"].tolist()
    lgd = LGD(
        golden["text_bank"],
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        momentum=momentum,
    ).train()
    lgd.visual_bank.copy_(golden["visual_bank_init"])
    assert len(golden["loss"]) == 6
    for step in range(6):
        student, teacher = golden["student_raw"][step].clone().requires_grad_(), golden["teacher_raw"][step]
        result = lgd(student, teacher)
        result["loss"].backward()
        lgd.update(teacher)
        for key in ("loss", "loss_text", "loss_visual"):
            torch.testing.assert_close(
                result[key].double(), golden[key][step], rtol=0, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
            )
        torch.testing.assert_close(student.grad, golden["student_raw_grad"][step], rtol=0, atol=1e-5)
        torch.testing.assert_close(lgd.visual_bank, golden["visual_bank_after"][step], rtol=0, atol=1e-5)
        assert torch.equal(lgd.seen, golden["seen_after"][step].bool())


def test_presets_are_the_released_script_the_papers_equations_and_these_sharper():
    assert PRESETS["reference"] == LGDConfig(
        0.5, 0.2, 0.01, momentum=0.999, positive=True, renormalize=False, update="after"
    )
    assert LGD.configure("paper", positive=True) == PRESETS["reference"]
    assert LGD.configure("paper", momentum=0.5).momentum == 0.5
    assert LGD.configure("paper", student_temperature=0.05) == PRESETS["sharp"]
    assert PRESETS["paper"].momentum == 0.999, "a preset must not change with what is built from it"


# The paper


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_losses_and_bank_are_those_of_a_plain_statement(preset):
    lgd = objective(preset=preset)
    bank, seen = lgd.visual_bank.numpy(), lgd.seen.numpy()
    for step in range(4):
        student, teacher = batch(step)
        text = plain_loss(student, teacher, text_bank())
        visual = plain_loss(student, teacher, bank, positive=preset == "reference")
        result = lgd(student, teacher)
        assert result["loss_text"].item() == pytest.approx(text, abs=1e-5)
        assert result["loss_visual"].item() == pytest.approx(visual, abs=1e-5)
        assert result["loss"].item() == pytest.approx((text + visual) / 2, abs=1e-5)
        lgd.update(teacher)
        bank, seen = plain_update(teacher, text_bank(), bank, seen)
        np.testing.assert_allclose(lgd.visual_bank.numpy(), bank, atol=1e-6)
        assert (lgd.seen.numpy() == seen).all()
    assert seen.sum() > NAMES / 2, "the batches must reach most names, or nothing was compared"


def test_loss_has_no_regard_for_the_embeddings_lengths():
    lgd, (student, teacher) = objective(), batch()
    scaled = lgd(student * 100, teacher * 0.01)["loss"]
    torch.testing.assert_close(lgd(student, teacher)["loss"], scaled, rtol=1e-5, atol=1e-6)


def test_no_gap_when_student_equals_teacher():
    lgd = objective(student_temperature=SOFT, alpha=0.0)
    _, teacher = batch()
    student = teacher.clone().requires_grad_()
    result = lgd(student, teacher)
    p = softmax(unit(teacher) @ text_bank().numpy().T / SOFT)
    assert result["loss"].item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-5)
    assert gradient(result["loss"], student).abs().max() < 1e-6
    other, _ = batch()
    assert gradient(lgd(other, teacher)["loss"], other).abs().max() > 1e-3
    assert lgd(other, teacher)["loss"] > result["loss"]


# Switches


def test_alpha_weighs_the_two_losses():
    student, teacher = batch()
    for alpha in (0.0, 0.3, 1.0):
        result = objective(alpha=alpha)(student, teacher)
        torch.testing.assert_close(result["loss"], alpha * result["loss_visual"] + (1 - alpha) * result["loss_text"])
    only_text, only_visual = objective(alpha=0.0)(student, teacher), objective(alpha=1.0)(student, teacher)
    assert torch.equal(only_text["loss"], only_text["loss_text"])
    assert torch.equal(only_visual["loss"], only_visual["loss_visual"])
    assert not torch.equal(only_text["loss"], only_visual["loss"])


@pytest.mark.parametrize(
    ("switches", "text", "visual"),
    [
        ({}, (0.2, SOFT), (0.2, SOFT)),
        ({"student_temperature": 0.5, "teacher_temperature": 0.3}, (0.5, 0.3), (0.5, 0.3)),
        ({"visual_student_temperature": 0.4}, (0.2, SOFT), (0.4, SOFT)),
        ({"visual_teacher_temperature": 0.7}, (0.2, SOFT), (0.2, 0.7)),
        (
            {"visual_student_temperature": 0.9, "visual_teacher_temperature": 0.6, "teacher_temperature": 0.3},
            (0.2, 0.3),
            (0.9, 0.6),
        ),
    ],
)
@pytest.mark.parametrize("positive", [True, False])
def test_each_bank_has_its_own_temperatures(switches, text, visual, positive):
    lgd, (student, teacher) = objective(positive=positive, **switches), batch()
    result = lgd(student, teacher)
    expected = plain_loss(student, teacher, text_bank(), student_temperature=text[0], teacher_temperature=text[1])
    assert result["loss_text"].item() == pytest.approx(expected, abs=1e-5)
    options = {"student_temperature": visual[0], "teacher_temperature": visual[1], "positive": positive}
    assert result["loss_visual"].item() == pytest.approx(
        plain_loss(student, teacher, lgd.visual_bank, **options), abs=1e-5
    )


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_renormalized_rows_have_unit_length(assignment):
    plain, unit_rows = (objective(renormalize=r, assignment=assignment) for r in (False, True))
    for step in range(3):
        for lgd in (plain, unit_rows):
            lgd.update(batch(step)[1])
        torch.testing.assert_close(unit_rows.visual_bank.norm(dim=1), torch.ones(NAMES))
    assert plain.visual_bank.norm(dim=1).min() < 0.9, "means of unit vectors are shorter than them"
    first = objective(renormalize=True, assignment=assignment)
    first.update(batch(0)[1])
    mean = objective(renormalize=False, assignment=assignment)
    mean.update(batch(0)[1])
    torch.testing.assert_close(first.visual_bank, normalize(mean.visual_bank, dim=1))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("temperature", [0.01, SOFT])
def test_unseen_names_are_masked(positive, temperature):
    lgd = objective(mask_unseen=True, positive=positive, teacher_temperature=temperature)
    student, teacher = batch()
    lgd.update(teacher[:3])
    seen = lgd.seen
    assert 0 < seen.sum() < NAMES
    before = lgd(student, teacher)
    expected = plain_loss(student, teacher, lgd.visual_bank[seen], teacher_temperature=temperature, positive=positive)
    assert before["loss_visual"].item() == pytest.approx(expected, abs=1e-5)
    slope = gradient(before["loss"], student)
    assert slope.isfinite().all()
    lgd.visual_bank[~seen] = teacher[0] * 100  # as loud as a row can be
    after = lgd(student, teacher)
    assert torch.equal(after["loss"], before["loss"])
    assert torch.equal(gradient(after["loss"], student), slope)
    lgd.visual_bank[seen] *= 0.5
    assert not torch.equal(lgd(student, teacher)["loss"], before["loss"])


@pytest.mark.parametrize("positive", [True, False])
def test_before_anything_is_seen_the_mask_leaves_all_rows(positive):
    student, teacher = batch()
    masked, free = (
        objective(mask_unseen=mask, positive=positive, teacher_temperature=0.01)(student, teacher)
        for mask in (True, False)
    )
    assert masked["loss"].isfinite()
    assert torch.equal(masked["loss"], free["loss"])
    assert gradient(masked["loss"], student).isfinite().all()


def test_update_after_uses_the_old_bank_and_update_before_the_new_one():
    student, teacher = batch(1)
    after, before = objective(update="after"), objective(update="before")
    after.update(batch(0)[1])
    before(*batch(0))
    old = after.visual_bank.clone()
    new, _ = plain_update(teacher, text_bank(), old.numpy(), after.seen.numpy())
    assert after(student, teacher)["loss_visual"].item() == pytest.approx(
        plain_loss(student, teacher, old, positive=True), abs=1e-5
    )
    assert before(student, teacher)["loss_visual"].item() == pytest.approx(
        plain_loss(student, teacher, new, positive=True), abs=1e-5
    )
    assert torch.equal(after.visual_bank, old)
    after.update(teacher)
    before.update(teacher)  # done already: a second step would move the bank twice
    np.testing.assert_allclose(after.visual_bank.numpy(), new, atol=1e-6)
    assert torch.equal(before.visual_bank, after.visual_bank)


def test_scoring_in_eval_mode_leaves_the_bank_alone():
    lgd = objective(update="before").eval()
    start = lgd.visual_bank.clone()
    lgd(*batch())
    assert torch.equal(lgd.visual_bank, start)
    assert not lgd.seen.any()
    lgd.train()(*batch())
    assert not torch.equal(lgd.visual_bank, start)


def test_soft_assignment_takes_softmax_weighted_means():
    lgd = objective(assignment="soft", momentum=0.75)
    first, second = batch(0)[1], batch(1)[1]

    def weighted(teacher: Tensor) -> np.ndarray:
        weights = softmax(unit(teacher) @ text_bank().numpy().T / SOFT)
        return (weights.T @ unit(teacher)) / weights.sum(0)[:, None]

    lgd.update(first)
    np.testing.assert_allclose(lgd.visual_bank.numpy(), weighted(first), atol=1e-5)
    assert lgd.seen.all()
    lgd.update(second)
    np.testing.assert_allclose(lgd.visual_bank.numpy(), 0.75 * weighted(first) + 0.25 * weighted(second), atol=1e-5)


def test_soft_weights_too_small_to_average_with_do_not_count():
    """At temperature 0.01 a similarity gap of 0.9 leaves a weight of 8e-40: below float32's normal numbers, not 0."""
    bank = torch.eye(3)
    teacher = torch.tensor([[0.9, math.sqrt(1 - 0.81), 0.0]])
    lgd = LGD(bank, assignment="soft", teacher_temperature=0.01)
    start = lgd.visual_bank.clone()
    lgd.update(teacher)
    assert 0 < math.exp(-90) < torch.finfo(torch.float32).tiny
    assert lgd.seen.tolist() == [True, True, False]
    torch.testing.assert_close(lgd.visual_bank[:2], teacher.expand(2, -1), rtol=1e-4, atol=1e-6)
    assert torch.equal(lgd.visual_bank[2], start[2])


def test_threshold_leaves_unsure_images_out():
    _, teacher = batch(size=40)
    sure = softmax(unit(teacher) @ text_bank().numpy().T / SOFT).max(1)
    threshold = float(np.median(sure))
    lgd, everyone, sure_only = objective(threshold=threshold), objective(), objective()
    lgd.update(teacher)
    everyone.update(teacher)
    sure_only.update(teacher[torch.from_numpy(sure >= threshold)])
    torch.testing.assert_close(lgd.visual_bank, sure_only.visual_bank)
    assert not torch.allclose(lgd.visual_bank, everyone.visual_bank)
    nobody = objective(threshold=1.0)
    start = nobody.visual_bank.clone()
    nobody.update(teacher)
    assert not nobody.seen.any()
    assert torch.equal(nobody.visual_bank, start)


def test_momentum_0_is_the_last_batchs_mean_and_momentum_1_the_first_sighting():
    forgetful, loyal = objective(momentum=0.0), objective(momentum=1.0)
    first, second = batch(0)[1], batch(1)[1]
    for lgd in (forgetful, loyal):
        lgd.update(first)
    after_first = loyal.visual_bank.clone()
    seen_first = loyal.seen.clone()
    for lgd in (forgetful, loyal):
        lgd.update(second)
    fresh = objective()
    fresh.update(second)
    both = fresh.seen & seen_first
    assert both.any()
    torch.testing.assert_close(forgetful.visual_bank[fresh.seen], fresh.visual_bank[fresh.seen])
    assert torch.equal(forgetful.visual_bank[~fresh.seen], after_first[~fresh.seen])
    assert torch.equal(loyal.visual_bank[seen_first], after_first[seen_first])


# State


def test_a_name_never_seen_keeps_its_random_row():
    lgd = objective()
    start = lgd.visual_bank.clone()
    towards_2 = text_bank()[2].expand(4, -1) + 0.01 * draw(4, DIM, seed=3)
    for _ in range(3):
        lgd.update(towards_2)
    others = torch.arange(NAMES) != 2
    assert lgd.seen.tolist() == [k == 2 for k in range(NAMES)]
    assert torch.equal(lgd.visual_bank[others], start[others])
    torch.testing.assert_close(lgd.visual_bank[2], normalize(towards_2, dim=1).mean(0))


def test_random_start_is_unit_rows_equal_for_equal_seeds():
    one, same, other = objective(seed=3), objective(seed=3), objective(seed=4)
    torch.manual_seed(99)
    assert torch.equal(one.visual_bank, same.visual_bank)
    assert torch.equal(one.visual_bank, objective(seed=3).visual_bank), "the global generator must have no say"
    assert not torch.equal(one.visual_bank, other.visual_bank)
    torch.testing.assert_close(one.visual_bank.norm(dim=1), torch.ones(NAMES))


def test_the_callers_bank_is_copied():
    bank = text_bank()
    lgd = LGD(bank)
    bank.zero_()
    assert torch.equal(lgd.text_bank, text_bank())


def test_state_dict_carries_the_banks():
    lgd, other = objective(), objective(seed=5)
    lgd.update(batch()[1])
    other.load_state_dict(lgd.state_dict())
    assert set(lgd.state_dict()) == {"text_bank", "visual_bank", "seen"}
    assert torch.equal(other.visual_bank, lgd.visual_bank)
    assert torch.equal(other.seen, lgd.seen)
    for twin in (lgd, other):
        twin.update(batch(1)[1])
    assert torch.equal(other.visual_bank, lgd.visual_bank), "what follows a resumed step must be the same"


def test_only_the_student_gets_a_gradient():
    lgd, (student, teacher) = objective(), batch()
    teacher.requires_grad_()
    lgd(student, teacher)["loss"].backward()
    lgd.update(teacher)
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    assert list(lgd.parameters()) == []
    assert not lgd.visual_bank.requires_grad
    assert not lgd.text_bank.requires_grad


@pytest.mark.parametrize("switches", [{}, {"mask_unseen": True}, {"assignment": "soft"}])
def test_backward_after_the_update_gives_the_losses_own_gradient(switches):
    lgd, (student, teacher) = objective(alpha=1.0, **switches), batch()
    lgd.update(batch(1)[1])
    result = lgd(student, teacher)
    expected = gradient(result["loss"], student)
    lgd.update(teacher)
    result["loss"].backward()
    assert torch.equal(student.grad, expected)
    assert not torch.equal(gradient(lgd(student, teacher)["loss"], student), expected), "the bank has moved"


@pytest.mark.parametrize("switches", [{}, {"threshold": 0.4}, {"assignment": "soft"}])
def test_what_the_loss_found_out_changes_nothing_in_the_update(switches):
    told, fresh, other = (objective(**switches) for _ in range(3))
    for step in range(3):
        student, teacher = batch(step)
        results = [lgd(student, teacher) for lgd in (told, fresh, other)]
        told.update(teacher, assigned=results[0]["assigned"])
        fresh.update(teacher)
        other.update(batch(step + 1)[1])
        assert torch.equal(told.visual_bank, fresh.visual_bank)
    assert not torch.equal(told.visual_bank, other.visual_bank)


@pytest.mark.parametrize("switches", [{}, {"threshold": 0.4}, {"assignment": "soft"}])
def test_a_batch_in_several_passes_moves_the_bank_as_in_one(switches):
    whole, parted = objective(**switches), objective(**switches)
    student, teacher = batch(size=10)
    assigned = [parted(student[part], teacher[part])["assigned"] for part in (slice(0, 4), slice(4, 10))]
    parted.update(teacher, assigned=join_assigned(assigned))
    whole.update(teacher, assigned=whole(student, teacher)["assigned"])
    assert torch.equal(parted.visual_bank, whole.visual_bank)
    assert torch.equal(parted.seen, whole.seen)


def test_without_an_assignment_of_every_pass_there_is_none():
    known = objective()(*batch())["assigned"]
    assert join_assigned([]) is None
    assert join_assigned([None, None]) is None
    assert join_assigned([known, None]) is None
    assert join_assigned([known]) is known


def test_an_assignment_of_another_batch_is_refused():
    lgd = objective()
    assigned = lgd(*batch(size=4))["assigned"]
    with pytest.raises(LGDError, match="4 assignments were given for 9 teacher embeddings"):
        lgd.update(batch()[1], assigned=assigned)


def test_a_teacher_changed_in_place_between_loss_and_update_is_noticed():
    changed, fresh = objective(), objective()
    student, teacher = batch()
    changed(student, teacher)
    teacher.neg_()
    changed.update(teacher)
    fresh.update(teacher)
    assert torch.equal(changed.visual_bank, fresh.visual_bank)


def test_inference_tensors_are_taken():
    noted, plain = objective(), objective()
    student, teacher = batch()
    with torch.inference_mode():
        frozen = teacher.clone()
    for lgd, one in ((noted, frozen), (plain, teacher)):
        result = lgd(student, one)
        result["loss"].backward()
        lgd.update(one, assigned=result["assigned"])
    assert torch.equal(noted.visual_bank, plain.visual_bank)


def products(lgd: LGD, teacher: Tensor, assigned: Assigned | None = None) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        lgd.update(teacher, assigned=assigned)
    return sum(event.name in ("aten::addmm_", "aten::mm") for event in profile.events())


@pytest.mark.parametrize("compile", [False, True])
def test_an_update_after_the_loss_multiplies_no_matrices(compile):
    torch.compiler.reset()
    lgd, (student, teacher) = objective(), batch()
    if compile:
        lgd.compile(backend="eager", fullgraph=True)
    assert products(lgd, teacher, lgd(student, teacher)["assigned"]) == 0
    assert products(lgd, teacher) == 1, "an update on its own has to find the names"


@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_teacher_rows_that_are_not_finite_stay_out_of_the_bank(assignment, poison):
    student, teacher = batch()
    sound = teacher[torch.arange(BATCH) != 4]
    teacher[4, 2] = poison
    for told in (True, False):
        lgd, expected = objective(assignment=assignment), objective(assignment=assignment)
        lgd.update(teacher, assigned=lgd(student, teacher)["assigned"] if told else None)
        expected.update(sound)
        torch.testing.assert_close(lgd.visual_bank, expected.visual_bank)
        assert torch.equal(lgd.seen, expected.seen)


def test_a_copy_of_a_compiled_objective_has_its_own_bank():
    torch.compiler.reset()
    lgd, (student, teacher) = objective(), batch()
    lgd.compile(backend="eager")
    lgd(student, teacher * student)  # a teacher with a graph behind it, of which nothing may be kept
    twin = pickle.loads(pickle.dumps(copy.deepcopy(lgd)))
    before = lgd(student, teacher)["loss"]
    twin.visual_bank.neg_()
    assert torch.equal(lgd(student, teacher)["loss"], before)
    assert not torch.equal(twin(student, teacher)["loss"], before)


def test_a_batch_of_one():
    lgd, (student, teacher) = objective(), batch(size=1)
    result = lgd(student, teacher)
    expected = plain_loss(student, teacher, text_bank()) + plain_loss(student, teacher, lgd.visual_bank, positive=True)
    assert result["loss"].item() == pytest.approx(expected / 2, abs=1e-5)
    lgd.update(teacher)
    assert lgd.seen.sum() == 1
    torch.testing.assert_close(lgd.visual_bank[lgd.seen], normalize(teacher, dim=1))


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("switches", [{}, {"mask_unseen": True}, {"assignment": "soft", "update": "before"}])
def test_half_precision_embeddings_are_computed_in_float32(dtype, switches):
    half, full = (objective(teacher_temperature=0.01, **switches) for _ in range(2))
    for lgd in (half, full):
        lgd.update(batch(1)[1])
    student, teacher = (x.detach().to(dtype) for x in batch())
    rounded = [x.float().requires_grad_() for x in (student, teacher)]
    student.requires_grad_()
    mine, expected = losses_of(half(student, teacher)), losses_of(full(*rounded))
    assert {value.dtype for value in mine.values()} == {torch.float32}
    for key, value in expected.items():
        assert value.isfinite()
        assert torch.equal(mine[key], value)
    mine["loss"].backward()
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad, gradient(expected["loss"], rounded[0]).to(dtype))
    half.update(teacher)
    full.update(rounded[1])
    assert half.visual_bank.dtype == torch.float32
    assert torch.equal(half.visual_bank, full.visual_bank)
    exact = objective(teacher_temperature=0.01, **switches)
    exact.update(batch(1)[1])
    assert mine["loss"].item() == pytest.approx(exact(*batch())["loss"].item(), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    inside, outside = (objective(teacher_temperature=0.01) for _ in range(2))
    student, teacher = batch()
    with torch.autocast("cpu", dtype=dtype):
        result = inside(student, teacher)
        inside.update(teacher)
    expected = outside(student, teacher)
    outside.update(teacher)
    assert result["loss"].dtype == torch.float32
    assert torch.equal(result["loss"], expected["loss"])
    assert torch.equal(inside.visual_bank, outside.visual_bank)


def test_float16_embeddings_at_the_end_of_their_range_stay_finite():
    lgd = objective(teacher_temperature=0.01)
    student = torch.full((2, DIM), 6e4, dtype=torch.float16, requires_grad=True)
    result = lgd(student, torch.full((2, DIM), -6e4, dtype=torch.float16))
    result["loss"].backward()
    assert result["loss"].isfinite()
    assert student.grad.isfinite().all()


def test_zero_embeddings_stay_finite():
    lgd, (student, teacher) = objective(mask_unseen=True), batch()
    with torch.no_grad():
        student[0] = 0
    teacher[1] = 0
    result = lgd(student, teacher)
    result["loss"].backward()
    lgd.update(teacher)
    assert student.grad.isfinite().all()
    assert lgd.visual_bank.isfinite().all()


# Cost


def operations(names: int, switches: dict) -> list[str]:
    lgd = LGD(text_bank(names), teacher_temperature=SOFT, **switches)
    student, teacher = batch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        lgd.update(teacher, assigned=lgd(student, teacher)["assigned"])
        lgd.update(teacher)
    return [event.name for event in profile.events()]


@pytest.mark.parametrize(
    "switches",
    [{}, {"mask_unseen": True, "renormalize": True}, {"assignment": "soft"}, {"threshold": 0.5}, {"update": "before"}],
)
def test_a_step_copies_nothing_to_the_host_and_loops_over_nothing(switches):
    few, many = operations(5, switches), operations(500, switches)
    assert "aten::linalg_vector_norm" in few, "the profile must see the operations"
    assert not {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"} & {*few, *many}
    assert len(many) == len(few), "more names must not take more operations"


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"mask_unseen": True, "threshold": 0.3, "renormalize": True},
        {"assignment": "soft"},
        {"assignment": "soft", "update": "before"},
    ],
)
def test_no_value_is_read_on_the_host(switches):
    """Fake tensors have none: whatever asks for one, or for a shape that hangs on one, raises."""
    lgd, (student, teacher) = objective(**switches), batch()
    with FakeTensorMode() as mode:
        for name, buffer in [*lgd.named_buffers()]:
            setattr(lgd, name, mode.from_tensor(buffer))
        fake = mode.from_tensor(student)
        result = lgd(fake, mode.from_tensor(teacher))
        result["loss"].backward()
        lgd.update(mode.from_tensor(teacher))
        lgd.update(mode.from_tensor(teacher), assigned=lgd(fake, mode.from_tensor(teacher))["assigned"])
    assert fake.grad.shape == student.shape


@pytest.mark.parametrize(
    "switches", [{}, {"mask_unseen": True, "threshold": 0.3, "renormalize": True, "positive": False}]
)
def test_compiled_whole_it_gives_the_same_numbers(switches):
    torch.compiler.reset()
    plain, compiled = objective(**switches), objective(**switches)
    loss = torch.compile(compiled, backend="eager", fullgraph=True)
    update = torch.compile(compiled.update, backend="eager", fullgraph=True)
    for step in range(3):
        student, teacher = batch(step)
        mine, expected = loss(student, teacher), plain(student, teacher)
        for key, value in losses_of(expected).items():
            torch.testing.assert_close(mine[key], value)
        torch.testing.assert_close(gradient(mine["loss"], student), gradient(expected["loss"], student))
        update(teacher)
        plain.update(teacher)
        torch.testing.assert_close(compiled.visual_bank, plain.visual_bank)
        assert torch.equal(compiled.seen, plain.seen)
    assert plain.seen.any()


# Ranks

RANK_CASES: list[dict] = [{}, {"update": "before", "renormalize": True}, {"assignment": "soft"}, {"threshold": 0.3}]


def train_on_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    banks = {}
    for case, switches in enumerate(RANK_CASES):
        lgd = objective(**switches)
        for step in range(4):
            student, teacher = batch(step)
            mine = (
                slice(0, 6) if rank == 0 else slice(6, None)
            )  # shares of unequal size, and names that only one rank has
            lgd(student[mine], teacher[mine])
            lgd.update(teacher[mine])
        banks[case] = (lgd.visual_bank, lgd.seen)
    torch.save(banks, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_keep_the_bank_of_one_process(tmp_path):
    mp.spawn(train_on_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for case, switches in enumerate(RANK_CASES):
        alone = objective(**switches)
        for step in range(4):
            alone(*batch(step))
            alone.update(batch(step)[1])
        assert torch.equal(first[case][0], second[case][0])
        assert torch.equal(first[case][1], alone.seen)
        torch.testing.assert_close(first[case][0], alone.visual_bank, rtol=0, atol=1e-6)
        assert alone.seen.sum() > 2


# Bad input


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, DIM + 1), (4, DIM), rf"student embeddings have shape \[4, {DIM + 1}\].*\[B, {DIM}\]"),
        ((4, DIM), (4, DIM - 1), rf"teacher embeddings have shape \[4, {DIM - 1}\]"),
        ((4, DIM, 1), (4, DIM), r"student embeddings have shape \[4, 12, 1\]"),
        ((DIM,), (4, DIM), r"student embeddings have shape \[12\]"),
        ((4, DIM), (3, DIM), "4 student embeddings stand beside 3 of the teacher"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(student, teacher, message):
    with pytest.raises(LGDError, match=message):
        objective()(torch.ones(student), torch.ones(teacher))


@pytest.mark.parametrize("update", ["after", "before"])
@pytest.mark.parametrize("shape", [(4, DIM + 1), (DIM,), (4, DIM, 1)])
def test_an_update_that_does_not_fit_is_refused(update, shape):
    with pytest.raises(LGDError, match=rf"teacher embeddings have shape .*\[B, {DIM}\]"):
        objective(update=update).update(torch.ones(shape))


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (text_bank() * 2, "lengths 2.000 to 2.000; they must be unit vectors"),
        (torch.zeros(3, 4), "lengths 0.000 to 0.000"),
        (text_bank() * float("nan"), "must be unit vectors"),
        (text_bank()[:1], rf"shape \[1, {DIM}\].*at least two names"),
        (text_bank()[0], rf"shape \[{DIM}\]"),
        (text_bank()[None], r"shape \[1, 7, 12\]"),
    ],
)
def test_a_text_bank_that_is_none_is_refused(bank, message):
    with pytest.raises(LGDError, match=message):
        LGD(bank)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"alpha": 2}, r"objective\.alpha = 2 is outside \[0, 1\]"),
        ({"alpha": -0.1}, r"objective\.alpha = -0\.1"),
        ({"alpha": math.nan}, r"objective\.alpha = nan"),
        ({"momentum": 1.5}, r"objective\.momentum = 1\.5"),
        ({"threshold": -1}, r"objective\.threshold = -1"),
        ({"student_temperature": 0}, r"objective\.student_temperature = 0 must be above 0"),
        ({"teacher_temperature": -0.01}, r"objective\.teacher_temperature = -0\.01"),
        ({"teacher_temperature": math.nan}, r"objective\.teacher_temperature = nan"),
        ({"visual_student_temperature": 0.0}, r"objective\.visual_student_temperature = 0\.0"),
        ({"visual_teacher_temperature": 0.0}, r"objective\.visual_teacher_temperature = 0\.0"),
        ({"assignment": "firm"}, "objective.assignment = 'firm' is unknown; choose hard or soft"),
        ({"update": "never"}, "objective.update = 'never' is unknown; choose after or before"),
        ({"tau": 1}, "objective has no switch 'tau'; it has alpha, "),
        ({"preset": "papers"}, "objective.preset 'papers' is unknown; choose one of reference, paper"),
    ],
)
def test_unknown_switches_and_values_are_refused(switches, message):
    with pytest.raises(LGDError, match=message):
        LGD(text_bank(), **switches)
