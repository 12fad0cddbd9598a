"""The loop and folders that all transfer tasks share, on a task of dots: what a run leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lgd_timm.checkpoint import all_checkpoints, best_checkpoint
from lgd_timm.cli import main
from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.evaluate import models
from lgd_timm.shards.ranks import Ranks
from lgd_timm.stop import STATUS, Stopped
from lgd_timm.transfer import loop, runs
from lgd_timm.transfer.backbone import Backbone, Pyramid, find_backbone
from lgd_timm.transfer.job import Item, Job
from lgd_timm.transfer.recipe import BackboneRecipe, TransferOptimizer, TransferRecipe, TransferRun, TransferSchedule, read_transfer

CPU = torch.device("cpu")
FILES = ["checkpoints", "log.jsonl", "metrics.json", "model.safetensors", "recipe.yaml"]  # TensorBoard's beside them


@dataclass(frozen=True)
class DotsRecipe(TransferRecipe):
    head: dict[str, Any] = field(default_factory=lambda: {"dropout": 0.5})


@dataclass(frozen=True)
class DotsBatch:
    keys: list[str]
    pixels: Tensor
    targets: Tensor

    @classmethod
    def of(cls, samples: list[tuple[str, Tensor, float]]) -> DotsBatch:
        keys, pixels, targets = zip(*samples, strict=True)
        return cls(list(keys), torch.stack(pixels), torch.tensor(targets))

    def to(self, device: torch.device) -> DotsBatch:
        return DotsBatch(self.keys, self.pixels.to(device), self.targets.to(device))


class Dots:
    """Pictures of noise, as bright as their index; what is added depends on the epoch."""

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self.seen: list[Item] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: Item) -> tuple[str, Tensor, float]:
        self.seen.append(item)
        index, epoch = item
        draw = torch.Generator().manual_seed(1000 * epoch + index)
        return f"dot{index}", torch.rand(3, 32, 32, generator=draw) + index, float(index)


class DotsModel(nn.Module):
    """Brightness, by regression, with dropout and a buffer that moves: all that a resumed run has to get right."""

    def __init__(self, backbone: Backbone, *, dropout: float) -> None:
        super().__init__()
        self.pyramid = Pyramid(backbone, levels=[1], frozen_norms=False)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.pyramid.channels[0], 1))

    def forward(self, batch: DotsBatch) -> dict[str, Tensor]:
        (maps,) = self.pyramid(batch.pixels)
        difference = self.head(maps.mean((2, 3)))[:, 0] - batch.targets
        return {"squared": difference.square().mean(), "absolute": 0.1 * difference.abs().mean()}


class DotsTask:
    """As `lgd_timm.transfer.detect` is one. `scores` are given out one by one, at each evaluation."""

    RECIPE = DotsRecipe

    def __init__(self) -> None:
        self.pictures = Dots()
        self.scores: Iterator[float] = iter(range(1, 1000))
        self.changes: dict[str, Any] = {}  # of the job

    def create(self, recipe: DotsRecipe, *, backbone: Backbone, classes: Any) -> DotsModel:
        return DotsModel(backbone, dropout=recipe.head["dropout"])

    def prepare(self, recipe: DotsRecipe, *, out: Path, device: torch.device, ranks: Ranks) -> Job:
        source = find_backbone(recipe.backbone, seed=recipe.run.seed)
        torch.manual_seed(recipe.run.seed)
        model = self.create(recipe, backbone=source, classes=())
        made: dict[str, Any] = {
            "classes": ("dot",),
            "pictures": self.pictures,
            "batch_size": 2,
            "facts": {"dots": 1},
            "scores": self._scores,
        }
        made |= {"recipe": recipe, "model": model, "backbone": model.pyramid, "source": source, "collate": DotsBatch.of}
        return Job(**{**made, "out": out, "device": device, "ranks": ranks, **self.changes})

    def draw(self, model: nn.Module, picture: Image.Image, *, classes: Any, recipe: Any, device: torch.device) -> Image.Image:
        assert not model.training
        return picture.transpose(Image.Transpose.ROTATE_180)

    def _scores(self) -> Mapping[str, float]:
        return {"brightness": float(next(self.scores)), "other": 0.0}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> DotsTask:
    """It takes the place of detection."""
    made = DotsTask()
    monkeypatch.setattr(runs, "find_task", lambda _: made)
    monkeypatch.setattr("lgd_timm.transfer.tasks.find_task", lambda _: made)
    return made


def recipe(**changes: Any) -> DotsRecipe:
    """3 epochs of 3 steps, with momentum, warm-up and a milestone."""
    made = DotsRecipe(
        name="dots",
        backbone=BackboneRecipe("test_efficientnet", pretrained=False, levels=[1], norms="trained"),
        optimizer=TransferOptimizer(lr=0.01),
        schedule=TransferSchedule(epochs=3, milestones=[2], warmup_steps=2),
        run=TransferRun(device="cpu", workers=0, log_every=1, keep_checkpoints=100),
    )
    for part, values in changes.items():
        made = replace(made, **{part: replace(getattr(made, part), **values)})
    return made


def run(out: Path, *, resume: bool = False, **changes: Any) -> dict[str, Any]:
    return runs.transfer("detect", recipe(**changes), out=out, resume=resume)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def log(out: Path) -> list[dict[str, Any]]:
    """Lines of the log, without what the clock says."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def steps(out: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in all_checkpoints(out / "checkpoints")]


def struck(monkeypatch: pytest.MonkeyPatch, *, step: int, strike: Callable[[], Any]) -> None:
    """Something happens in the middle of a step."""
    take = loop._step

    def taken(job: Job, *arguments: Any) -> Any:
        if job.step == step:
            strike()
        return take(job, *arguments)

    monkeypatch.setattr(loop, "_step", taken)


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
    """Steps 0 and 1 warm up, from a thousandth; after two of three epochs a tenth is left. timm counts milestones from one."""
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
    every = {"run": {"checkpoint_minutes": 0.0, "evaluate_every": 100}}
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
    run(tmp_path / "two", run={"workers": 2})
    assert_equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_seeds_change_everything(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "first")
    run(tmp_path / "second", run={"seed": 1})
    assert not torch.equal(weights(tmp_path / "first")["head.1.weight"], weights(tmp_path / "second")["head.1.weight"])


def test_a_notice_saves_and_the_run_goes_on(task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        struck(patch, step=4, strike=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 5 of 9, and saved in .*stopped\. Go on with --resume"):
            run(tmp_path / "stopped")
    assert steps(tmp_path / "stopped") == [3, 5]
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    run(tmp_path / "stopped", resume=True)
    assert_equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert [line["loss"] for line in log(tmp_path / "stopped") if "loss" in line] == [
        line["loss"] for line in log(tmp_path / "whole") if "loss" in line
    ]


def test_a_run_that_was_killed_before_its_scores_gets_them(task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task, "_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", run={"evaluate_every": 100})
    assert steps(tmp_path / "run")[-1] == 9
    task.pictures.seen.clear()
    assert run(tmp_path / "run", resume=True, run={"evaluate_every": 100})["scores"]["brightness"] == 1
    assert task.pictures.seen == []


def test_a_finished_run_is_not_run_again(task: DotsTask, tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    task.pictures.seen.clear()
    assert run(tmp_path / "run", resume=True) == first
    assert task.pictures.seen == []


def test_the_last_and_the_best_checkpoints_stay(task: DotsTask, tmp_path: Path) -> None:
    task.scores = iter([5.0, 50.0, 20.0, 30.0, 10.0])
    run(tmp_path / "run", schedule={"epochs": 5}, run={"keep_checkpoints": 1})
    assert steps(tmp_path / "run") == [6, 15]
    best = best_checkpoint(tmp_path / "run" / "checkpoints")
    assert best is not None
    assert json.loads((best / "score.json").read_text()) == {"brightness": 50.0}


def test_checkpoints_and_scores_come_as_often_as_asked(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run", schedule={"epochs": 5}, run={"checkpoint_every": 2, "evaluate_every": 3})
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
    before, after = (load_file(tmp_path / "run" / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (3, 6))
    assert_equal(before, after)
    assert [line["step"] for line in log(tmp_path / "run") if "loss" in line] == [1, 2, 3, 7, 8, 9]
    with pytest.raises(LGDError, match=r"step 6: a gradient is not finite, like those of the 2 steps before.*dot\d"):
        run(tmp_path / "other", run={"max_skipped": 2})


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
        run(tmp_path / "run", resume=True, optimizer={"lr": 0.5}, run={"seed": 3})
    task.changes = {"facts": {"dots": 2}}
    with pytest.raises(WeightsError, match="another run: dots differ"):
        run(tmp_path / "run", resume=True)
    task.changes = {}
    run(tmp_path / "run", resume=True, run={"workers": 1, "log_every": 7, "checkpoint_minutes": 1.0})  # which change nothing


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a long warm-up": ({"schedule": {"warmup_steps": 9}}, r"warmup_steps = 9 must be below the run's 9 steps \(3 epochs of 3\)"),
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
    alone = [set(batch) for batch in loop._Order(task.prepare(recipe(), out=tmp_path, device=CPU, ranks=Ranks()))]
    shares = [list(loop._Order(job)) for job in jobs]
    assert [set(first) | set(second) for first, second in zip(*shares, strict=True)] == alone
    assert all(len(part) == 1 for share in shares for part in share)


def test_frozen_norms_need_statistics() -> None:
    with pytest.raises(RecipeError, match=r"Set backbone.norms trained"):
        BackboneRecipe(pretrained=False)


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Image.new("RGB", (8, 8), colour)
    pixels.putpixel((0, 0), (0, 0, 255))
    pixels.save(path)
    return path


def test_predictions_are_drawn_into_copies(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    for name in ("b.jpg", "a.png", "C.JPEG"):
        picture(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    drawn = runs.predict(tmp_path / "run", tmp_path / "pictures", out=tmp_path / "drawn", device="cpu")
    assert [path.name for path in drawn] == ["C.png", "a.png", "b.png"] == sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert Image.open(tmp_path / "drawn" / "a.png").getpixel((7, 7)) == (0, 0, 255)
    one = runs.predict(tmp_path / "run", tmp_path / "pictures" / "a.png", out=tmp_path / "one", device="cpu")
    assert one == [tmp_path / "one" / "a.png"]


def test_a_model_comes_back_as_it_was(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    opened = runs.open_run(tmp_path / "run")
    assert not opened.model.training
    assert opened.classes == ("dot",)
    assert_equal(dict(opened.model.state_dict()), weights(tmp_path / "run"))


def test_what_is_no_run(task: DotsTask, tmp_path: Path) -> None:
    pictures = picture(tmp_path / "pictures" / "a.png")
    out = tmp_path / "drawn"
    with pytest.raises(WeightsError, match=r"nowhere lacks metrics.json, model.safetensors, recipe.yaml\. Give the folder of a finished"):
        runs.predict(tmp_path / "nowhere", pictures, out=out, device="cpu")
    run(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    for broken in ("[1]", "{}", "{", metrics.replace("test_efficientnet", "resnet1"), metrics.replace('"detect"', '"dream"')):
        (tmp_path / "run" / "metrics.json").write_text(broken)
        with pytest.raises(WeightsError, match=r"metrics.json is not what lgd-timm transfer wrote"):
            runs.predict(tmp_path / "run", pictures, out=out, device="cpu")
    (tmp_path / "run" / "metrics.json").write_text(metrics.replace("test_efficientnet", "test_resnet"))
    with pytest.raises(WeightsError, match=r"model.safetensors does not fit the run's recipe"):
        runs.predict(tmp_path / "run", pictures, out=out, device="cpu")
    (tmp_path / "run" / "metrics.json").write_text(metrics)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match=r"model.safetensors does not fit"):
        runs.predict(tmp_path / "run", pictures, out=out, device="cpu")
    assert not out.exists()


def test_what_are_no_pictures(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(LGDError, match=f"{place} holds no pictures"):
            runs.predict(tmp_path / "run", tmp_path / place, out=tmp_path / "drawn", device="cpu")
    picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "b.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(LGDError, match=r"b\.png can't be read as a picture"):
        runs.predict(tmp_path / "run", tmp_path / "pictures", out=tmp_path / "drawn", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "pictures", "run"]  # nothing half-written
    with pytest.raises(LGDError, match=r"pictures is not empty. Choose another folder"):
        runs.predict(tmp_path / "run", tmp_path / "pictures" / "a.png", out=tmp_path / "pictures", device="cpu")


def test_pictures_of_one_name_do_not_replace_each_other(task: DotsTask, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        picture(tmp_path / "pictures" / name)
    with pytest.raises(LGDError, match="names differ by their endings alone"):
        runs.predict(tmp_path / "run", tmp_path / "pictures", out=tmp_path / "drawn", device="cpu")


def test_a_comparison_says_what_could_not_be_reached(
    task: DotsTask, tmp_path: Path, published_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's weights are on the Hub, which no test may ask."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = {"model": str(published_folder), "pretrained": True}
    scores = runs.compare("detect", recipe(backbone=given), out=tmp_path / "all")
    assert list(scores) == ["lgd", "scratch", "stock"]
    assert scores["lgd"]["brightness"] == 3
    assert scores["scratch"]["brightness"] == 6
    assert "The weights of 'test_resnet' can't be had" in scores["stock"]["unreachable"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["lgd", "scratch"]
    read = read_transfer(DotsRecipe, tmp_path / "all" / "scratch" / "recipe.yaml").backbone
    assert (read.model, read.pretrained) == ("test_resnet", False)


def test_a_comparison_with_stock_weights(task: DotsTask, tmp_path: Path, published_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = models.plain_model
    monkeypatch.setattr(models, "plain_model", lambda name, *, pretrained=True, seed=0: plain(name, pretrained=False, seed=seed))
    given = {"model": str(published_folder), "pretrained": True}
    scores = runs.compare("detect", recipe(backbone=given), out=tmp_path / "all")
    assert {name: value["brightness"] for name, value in scores.items()} == {"lgd": 3, "stock": 6, "scratch": 9}


def test_the_command_line(task: DotsTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dots.yaml").write_text(recipe().to_yaml())
    out = str(tmp_path / "run")
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--schedule.epochs", "4", "--print-config"]) == 0
    assert "epochs: 4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--output", out]) == 0
    assert capsys.readouterr().out == f"test_efficientnet: brightness 3.00, other 0.00\nrun: {out}\n"
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--output", out]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["transfer", "predict", out, str(picture(tmp_path / "a.png")), str(tmp_path / "drawn"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'drawn'}: 1 pictures\n"
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--schedule.epoch", "4"]) == 2
    assert "did you mean 'schedule.epochs'" in capsys.readouterr().err


def test_the_command_line_tells_of_a_notice(
    task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dots.yaml").write_text(recipe().to_yaml())
    struck(monkeypatch, step=2, strike=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--output", str(tmp_path / "run")]) == STATUS
    assert "stopped by SIGTERM at step 3 of 9" in capsys.readouterr().err
