"""The loop that all transfer tasks share, on a task of dots: what a run leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.transfer.job import Item
from lgd_timm.transfer.recipe import BackboneRecipe, read_transfer
from lgd_timm.utils.checkpoint import all_checkpoints, best_checkpoint
from lgd_timm.utils.distributed import Ranks
from lgd_timm.utils.signals import Stopped
from tests.helpers.dots import CPU, Dots, DotsRecipe, DotsTask, assert_equal, log, recipe, run, steps, struck, weights

FILES = ["checkpoints", "log.jsonl", "metrics.json", "model.safetensors", "recipe.yaml"]  # TensorBoard's beside them


def test_a_run_leaves_its_files(task: DotsTask, tmp_path: Path) -> None:
    metrics = run(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name != "tensorboard") == FILES
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scores"] == {"brightness": 3.0, "other": 0.0}
    assert (metrics["task"], metrics["classes"], metrics["images"], metrics["steps"]) == ("detect", ["dot"], 6, 9)
    assert read_transfer(DotsRecipe, tmp_path / "run" / "recipe.yaml") == recipe()
    taken = [line for line in log(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in taken] == list(range(1, 10))
    assert all(line["loss"] == pytest.approx(line["squared"] + line["absolute"]) for line in taken)
    assert [line["brightness"] for line in log(tmp_path / "run") if "brightness" in line] == [1, 2, 3]


def test_every_epoch_shows_each_picture_once_in_another_order(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    seen = task.pictures.seen
    epochs = [[index for index, epoch in seen if epoch == number] for number in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4, 5]] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1
    task.pictures.count, task.pictures.seen = 7, []
    run(tmp_path / "rest")
    assert len(task.pictures.seen) == 18  # the seventh does not fill a batch


def test_rates_warm_up_and_fall_for_all_alike(task: DotsTask, tmp_path: Path) -> None:
    """Steps 0 and 1 warm up, from a thousandth; after two of three epochs a tenth is left. timm counts milestones from
    one.
    """
    job = task.prepare(recipe(), out=tmp_path, device=CPU, ranks=Ranks())
    rates = []
    for job.step in range(9):
        job.set_rates()
        rates.append([group["lr"] for group in job.optimizer.param_groups])
    head = [0.01 * share for share in (0.001, 0.5005, 1, 1, 1, 0.1, 0.1, 0.1, 0.1)]
    assert [rate for _, rate in rates] == pytest.approx(head)
    assert [rate for rate, _ in rates] == pytest.approx([0.1 * rate for rate in head])


def test_a_run_that_goes_on_anywhere_ends_bit_equal(task: DotsTask, tmp_path: Path) -> None:
    """Its checkpoints are cut back to one step, as a killed run would have left them."""
    every = {"machine": {"checkpoint_minutes": 0.0, "evaluate_every": 100}}
    whole = tmp_path / "whole"
    run(whole, **every)
    assert steps(whole) == list(range(1, 10))
    for step in range(1, 10):
        killed = Path(shutil.copytree(whole, tmp_path / f"killed{step}"))
        for name in ("model.safetensors", "metrics.json"):
            (killed / name).unlink()
        for path in all_checkpoints(killed / "checkpoints")[step:]:
            shutil.rmtree(path)
        (killed / "checkpoints" / ".step-half").mkdir()
        task.pictures.seen.clear()
        metrics = run(killed, resume=True, **every)
        assert_equal(weights(killed), weights(whole))
        assert len(task.pictures.seen) == 2 * (9 - step)
        assert metrics["steps"] == 9
        assert metrics["scores"]["brightness"] > 0
        assert not list((killed / "checkpoints").glob(".*"))


def test_workers_change_nothing(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "none")
    run(tmp_path / "two", machine={"workers": 2})
    assert_equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_seeds_change_everything(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "first")
    run(tmp_path / "second", machine={"seed": 1})
    assert not torch.equal(weights(tmp_path / "first")["head.1.weight"], weights(tmp_path / "second")["head.1.weight"])


def test_a_notice_saves_and_the_run_goes_on(task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        struck(patch, step=4, strike=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 5 of 9, and saved in .*stopped\.$"):
            run(tmp_path / "stopped")
    assert steps(tmp_path / "stopped") == [3, 5]
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    run(tmp_path / "stopped", resume=True)
    assert_equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert [line["loss"] for line in log(tmp_path / "stopped") if "loss" in line] == [
        line["loss"] for line in log(tmp_path / "whole") if "loss" in line
    ]


def test_a_run_that_was_killed_before_its_scores_gets_them(
    task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task, "_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", machine={"evaluate_every": 100})
    assert steps(tmp_path / "run")[-1] == 9
    task.pictures.seen.clear()
    assert run(tmp_path / "run", resume=True, machine={"evaluate_every": 100})["scores"]["brightness"] == 1
    assert task.pictures.seen == []


def test_a_finished_run_is_not_run_again(task: DotsTask, tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    task.pictures.seen.clear()
    assert run(tmp_path / "run", resume=True) == first
    assert task.pictures.seen == []


def test_the_last_and_the_best_checkpoints_stay(task: DotsTask, tmp_path: Path) -> None:
    task.scores = iter([5.0, 50.0, 20.0, 30.0, 10.0])
    run(tmp_path / "run", schedule={"epochs": 5}, machine={"keep_checkpoints": 1})
    assert steps(tmp_path / "run") == [6, 15]
    best = best_checkpoint(tmp_path / "run" / "checkpoints")
    assert best is not None
    assert json.loads((best / "score.json").read_text()) == {"brightness": 50.0}


def test_checkpoints_and_scores_come_as_often_as_asked(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run", schedule={"epochs": 5}, machine={"checkpoint_every": 2, "evaluate_every": 3})
    assert steps(tmp_path / "run") == [6, 12, 15]
    assert [line["epoch"] for line in log(tmp_path / "run") if "epoch" in line] == [3, 5]


def test_a_task_without_scores(task: DotsTask, tmp_path: Path) -> None:
    task.changes = {"scores": None}
    assert run(tmp_path / "run")["scores"] == {}


def test_a_step_without_a_finite_gradient_is_left_out(
    task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, statistics and momentum are as if it had not been; too many in a row end the run."""
    show = Dots.__getitem__
    bad = {(index, 1) for index in range(6)}

    def shown(self: Dots, item: Item) -> tuple[str, Tensor, float]:
        key, pixels, target = show(self, item)
        return key, pixels, math.nan if item in bad else target

    monkeypatch.setattr(Dots, "__getitem__", shown)
    run(tmp_path / "run")
    assert caplog.text.count("a gradient is not finite, so it was left out") == 3
    before, after = (
        load_file(tmp_path / "run" / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (3, 6)
    )
    assert_equal(before, after)
    assert [line["step"] for line in log(tmp_path / "run") if "loss" in line] == [1, 2, 3, 7, 8, 9]
    with pytest.raises(LGDError, match=r"step 6: a gradient is not finite, like those of the 2 steps before.*dot\d"):
        run(tmp_path / "other", machine={"max_skipped": 2})


def test_a_used_folder(task: DotsTask, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"run is not empty. Go on with --resume, or choose another --output"):
        run(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_another_run_is_not_gone_on_with(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(WeightsError, match=r"was written by another run: optimizer, run differ\. Use the same recipe"):
        run(tmp_path / "run", resume=True, optimizer={"lr": 0.5}, machine={"seed": 3})
    task.changes = {"data_identity": {"dots": 2}}
    with pytest.raises(WeightsError, match="another run: dots differ"):
        run(tmp_path / "run", resume=True)
    task.changes = {}
    run(
        tmp_path / "run", resume=True, machine={"workers": 1, "log_every": 7, "checkpoint_minutes": 1.0}
    )  # which change nothing


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a long warm-up": (
        {"schedule": {"warmup_steps": 9}},
        r"warmup_steps = 9 must be below the run's 9 steps \(3 epochs of 3\)",
    ),
    "an optimizer": ({"optimizer": {"name": "adamz"}}, "optimizer.name 'adamz' is unknown to timm"),
    "a model": ({"backbone": {"model": "resnet1"}}, "'resnet1' is no published folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_recipe_can_not_mean(task: DotsTask, tmp_path: Path, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(LGDError, match=message):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_batches_that_can_not_be_filled(task: DotsTask, tmp_path: Path) -> None:
    task.changes = {"batch_size": 7}
    with pytest.raises(RecipeError, match=r"6 pictures do not fill a batch of 7. Lower data.batch_size"):
        run(tmp_path / "run")
    task.changes = {"batch_size": 3}
    with pytest.raises(RecipeError, match=r"data.batch_size = 3 is global and must divide by 2 ranks"):
        task.prepare(recipe(), out=tmp_path, device=CPU, ranks=Ranks(0, 2))


def test_ranks_share_each_batch(task: DotsTask, tmp_path: Path) -> None:
    jobs = [task.prepare(recipe(), out=tmp_path, device=CPU, ranks=Ranks(rank, 2)) for rank in range(2)]
    alone = [set(batch) for batch in task.prepare(recipe(), out=tmp_path, device=CPU, ranks=Ranks()).sampler()]
    shares = [list(job.sampler()) for job in jobs]
    assert [set(first) | set(second) for first, second in zip(*shares, strict=True)] == alone
    assert all(len(part) == 1 for share in shares for part in share)


def test_frozen_norms_need_statistics() -> None:
    with pytest.raises(RecipeError, match=r"Set backbone.norms trained"):
        BackboneRecipe(pretrained=False)
