"""One step: what it leaves when a gradient is not finite, what passes change, what random numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.training.build import build
from lgd_timm.training.state import Run
from lgd_timm.training.step import Skipped, TrainStep, step_seed

Dict = dict[str, Any]


def made(recipe: Mapping[str, Any], out: Path, **changes: Dict) -> Run:
    run = build(
        recipe_from_dict({**recipe, **{key: {**recipe.get(key, {}), **value} for key, value in changes.items()}}), out
    )
    run.task.train()
    return run


def state(run: Run) -> dict[str, Tensor]:
    """All that a step may change, copied."""
    parts = {"student": run.task.student, "objective": run.task.objective}
    if run.task.has_ema():
        parts["ema"] = run.task.ema_student
    tensors = {
        f"{part}/{key}": value.clone() for part, module in parts.items() for key, value in module.state_dict().items()
    }
    for index, entries in run.optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{key}": value.clone() for key, value in entries.items() if isinstance(value, Tensor)
        }
    return tensors


def changed(run: Run, before: dict[str, Tensor]) -> list[str]:
    after = state(run)
    assert after.keys() == before.keys()
    return [key for key in before if not torch.equal(after[key], before[key])]


def poison(run: Run, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """From now on the loss is `value`, and its gradient not finite."""
    forward = type(run.task.objective).forward
    monkeypatch.setattr(
        type(run.task.objective),
        "forward",
        lambda self, student, target: {**(parts := forward(self, student, target)), "loss": parts["loss"] * value},
    )


OPTIMIZERS = ("sgd", "adamw", "lamb", "lars", "nadamw", "lion", "adopt", "madgrad", "rmsproptf", "adafactor", "muon")


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "lgd"},
        {"kind": "seed", "queue_size": 32},
        {"preset": "lightly_train", "kind": "seed", "queue_size": 32},
    ],
    ids=["lgd", "seed", "filled before the loss"],
)
def test_a_step_whose_gradient_is_not_finite_leaves_everything_as_it_was(
    recipe_dict: Dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    objective: Dict,
    on_device: bool,
) -> None:
    run = made({**recipe_dict, "objective": objective}, tmp_path, run={"ema_decay": 0.5, "device": "cpu"})
    step = TrainStep(run, on_device=on_device)
    first, second = list(islice(run.batches(), 2))
    step.take(first)  # so that there is momentum, and batch statistics that moved
    run.step = 1
    before = state(run)
    with monkeypatch.context() as patch:
        poison(run, patch, value)
        losses, taken = step.take(second)
    assert not taken
    assert not losses["loss"].isfinite()
    assert changed(run, before) == []
    assert step.take(second).taken  # and nothing is poisoned
    step.settle()
    assert (run.skipped.total, run.skipped.in_row) == (1, 0)
    assert any(key.startswith("student/") for key in changed(run, before))
    assert all(tensor.isfinite().all() for tensor in state(run).values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_bad_steps_had_not_been(
    recipe_dict: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The first step and one in between are bad. The device's decision is equal to the bit to the host's."""
    results = []
    for on_device in (False, True):
        run = made(recipe_dict, tmp_path, optimizer={"name": name, "lr": 0.01}, run={"ema_decay": 0.5, "device": "cpu"})
        step, all_batches = TrainStep(run, on_device=on_device), list(run.batches())
        for run.step, batch in enumerate(all_batches[:6]):
            with monkeypatch.context() as patch:
                if run.step in (0, 3):
                    poison(run, patch, float("nan"))
                step.take(batch)
        step.settle()
        assert run.skipped.total == 2
        results.append({**state(run), "groups": torch.tensor(numbers(run))})
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def numbers(run: Run) -> list[float]:
    """What the optimizer counts beside its tensors."""
    containers = [*run.optimizer.param_groups, *run.optimizer.state.values()]
    return [float(value) for values in containers for key, value in values.items() if key in ("step", "k")]


@pytest.mark.parametrize("on_device", [False, True])
def test_a_pixel_storm_does_not_poison_batch_statistics(
    recipe_dict: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    """A forward pass moves batch norm's running mean before anybody has seen a gradient."""
    run = made(recipe_dict, tmp_path)
    batch = next(run.batches())
    monkeypatch.setattr(
        run.task.student, "forward", lambda images, own=run.task.student.forward: own(images) * float("inf")
    )
    before = state(run)
    assert not TrainStep(run, on_device=on_device).take(batch).taken
    assert changed(run, before) == []


def test_too_many_in_a_row_end_the_run_and_name_the_images() -> None:
    skipped = Skipped(allowed=2)
    assert "step 8: a gradient is not finite, so it was left out (of images a, b" in skipped.add(["a", "b"], step=7)
    skipped.ok()
    skipped.add(["c"], step=9)
    skipped.add(["d"], step=10)
    with pytest.raises(
        LGDError, match=r"step 12: a gradient is not finite, like those of the 2 steps before\. Lower .*: e, f\."
    ):
        skipped.add(["e", "f"], step=11)
    assert skipped.total == 4


def test_a_run_that_diverges_ends_soon_and_saves_no_ruin(
    recipe_dict: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lgd_timm.training.distill import distill

    recipe = {
        **recipe_dict,
        "run": {"device": "cpu", "max_skipped": 1},
        "data": {**recipe_dict["data"], "val_split": None},
    }
    built = build(recipe_from_dict(recipe), tmp_path)
    poison(built, monkeypatch, float("nan"))
    with pytest.raises(LGDError, match="step 2: a gradient is not finite, like those of the 1 steps before"):
        distill(recipe_from_dict(recipe), out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("objective", [{"preset": "paper"}, {"kind": "seed", "queue_size": 32}], ids=["lgd", "seed"])
def test_passes_add_up_to_the_batch(recipe_dict: Dict, tmp_path: Path, objective: Dict) -> None:
    """With a student whose loss is a mean over images (no batch norm), four passes are one."""
    recipe = {**recipe_dict, "objective": objective, "student": {"model": "test_convnext"}}
    results = []
    for passes in (1, 4):
        run = made(recipe, tmp_path, run={"accumulate": passes, "device": "cpu"})
        step = TrainStep(run)
        for number, batch in enumerate(islice(run.batches(), 3)):
            run.step = number
            losses, taken = step.take(batch)
            assert taken
        results.append((float(losses["loss"]), state(run)))
    (whole, ours), (parts, theirs) = results
    assert parts == pytest.approx(whole, abs=1e-5)
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    "objective", [{"kind": "clip_kd"}, {"preset": "paper", "update": "before"}], ids=["clip_kd", "bank before loss"]
)
def test_a_loss_that_looks_at_the_batch_takes_no_passes(recipe_dict: Dict, tmp_path: Path, objective: Dict) -> None:
    with pytest.raises(
        RecipeError,
        match=r"looks at a whole batch, or fills its bank before it, so run\.accumulate = 2 would change it",
    ):
        made({**recipe_dict, "objective": objective}, tmp_path, run={"accumulate": 2})


def test_passes_share_a_batch_evenly(recipe_dict: Dict, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"run\.accumulate = 3 passes can't share 16 images of a rank evenly"):
        made(recipe_dict, tmp_path, run={"accumulate": 3})


def test_a_steps_random_numbers_depend_on_seed_step_and_rank() -> None:
    seeds = {step_seed(seed, step=step, rank=rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert step_seed(7, step=3) == step_seed(7, step=3, rank=0)
    torch.manual_seed(max(seeds))  # which takes no number of 64 bits without a sign


def test_a_batch_of_one_pixel_is_refused_by_batch_normalisation_in_one_line(recipe_dict: Dict, tmp_path: Path) -> None:
    run = made(recipe_dict, tmp_path, data={"batch_size": 1}, student={"image_size": 2})
    with pytest.raises(LGDError, match=r"one image a pass, and its features are one pixel\. Raise the batch size"):
        TrainStep(run).take(next(run.batches()))
    larger = made(recipe_dict, tmp_path, data={"batch_size": 2}, student={"image_size": 2})
    assert TrainStep(larger).take(next(larger.batches())).taken
