"""The training loop: what a run leaves, how it resumes, and what it refuses. Random teachers: wiring, not accuracy."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.config.reader import read_recipe, recipe_from_dict
from lgd_timm.data import open_shards
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, RecipeError, ShardError, TeacherError, WeightsError
from lgd_timm.evaluate.zero_shot_model import evaluate_zero_shot
from lgd_timm.publish.check import check_folder
from lgd_timm.teachers import ImageTeacher, OpenCLIP
from lgd_timm.training import build as building
from lgd_timm.training.build import build
from lgd_timm.training.distill import save_run
from lgd_timm.training.step import StepResult, TrainStep
from lgd_timm.utils.checkpoint import all_checkpoints
from lgd_timm.utils.distributed import Ranks
from tests.helpers.hub_fixtures import make_folder, read_timeless
from tests.helpers.runs import assert_bit_equal, damage_first_image, last_checkpoint, losses, merge, run

Dict = dict[str, Any]

# One process of a distributed run: writes down the first loss of its rank, and is the command line otherwise.
ONE_RANK = """
import json, pathlib, sys
import torch
from lgd_timm import cli
from lgd_timm.training import state
from lgd_timm.training.step import TrainStep

seen = {"loss": [], "bank": [], "scores": []}
take, zero_shot = TrainStep.take, state.zero_shot

def recorded(self, batch):
    result, run = take(self, batch), self.run
    seen["loss"].append(result.losses["loss"].item())
    seen["bank"].append(run.task.objective.visual_bank.flatten().view(torch.int32).tolist())
    pathlib.Path(sys.argv[1], f"rank{run.ranks.rank}.json").write_text(json.dumps(seen))
    return result

def scored(*arguments, ranks, **options):
    result = zero_shot(*arguments, ranks=ranks, **options)
    if ranks.world_size > 1:
        seen["scores"].append([result.top1, result.samples])
    return result

TrainStep.take, state.zero_shot = recorded, scored
sys.exit(cli.main(sys.argv[2:]))
"""


class Stopped(Exception):
    """What a test stops a run with."""


def run_until(step: int, recipe: Mapping[str, Any], out: Path) -> None:
    """A run that is stopped in the middle of a step."""
    take = TrainStep.take

    def stopping(self: TrainStep, batch: Any) -> StepResult:
        if self.run.step == step:
            raise Stopped
        return take(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "take", stopping)
        with pytest.raises(Stopped):
            run(recipe, out)


@pytest.fixture
def stored(recipe_dict: Dict, taught_folder: Path) -> Dict:
    """The recipe with the same teacher's stored embeddings instead."""
    recipe = merge(recipe_dict, {"data": {"shards": str(taught_folder)}})
    del recipe["views"]
    return {**recipe, "teacher": {"kind": "stored", "embeddings": str(next(taught_folder.glob("*-light-*")))}}


# ------------------------------------------------------------------------------------------------------- what it leaves


def test_an_online_run_leaves_its_recipe_log_checkpoints_and_published_folder(
    recipe_dict: Dict, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    folder = run(recipe_dict, out)
    assert folder == out / "published"
    assert recipe_from_dict(recipe_dict).to_yaml() == (out / "recipe.yaml").read_text()
    recipe_dict["vocabulary"]["templates"] = ["{}"]  # names and templates travel spelled out, wherever they came from
    recipe_dict["data"]["val_vocabulary"] = recipe_dict["vocabulary"]["source"]
    assert recipe_from_dict(recipe_dict).to_yaml() == (folder / "recipe.yaml").read_text()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 10))
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)
    assert [(line["epoch"], line["step"]) for line in lines if "zero_shot_top1" in line] == [
        (1, 3),
        (2, 6),
    ]  # the last is published
    kept = [path.name for path in all_checkpoints(out / "checkpoints")]
    assert kept[-2:] == ["step-00000006", "step-00000009"]  # and the best, if that is another
    assert len(kept) <= 3
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["zero_shot"]["samples"] == metrics["teacher_zero_shot"]["samples"] == 12
    assert metrics["shards"] == open_shards(recipe_dict["data"]["shards"], split="train").fingerprint


def test_the_loss_falls(recipe_dict: Dict, tmp_path: Path) -> None:
    run(recipe_dict, tmp_path / "run", data={"val_split": None})
    curve = losses(tmp_path / "run")
    assert sum(curve[-3:]) < 0.5 * sum(curve[:3])


def test_no_pickle_is_left_anywhere(run_folder: Path) -> None:
    kinds = {path.suffix for path in run_folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard"}
    assert kinds == {".safetensors", ".json", ".jsonl", ".yaml", ".md", ".png"}


def test_the_last_batch_of_an_epoch_that_is_not_whole_is_left_out(recipe_dict: Dict, tmp_path: Path) -> None:
    run(recipe_dict, tmp_path / "run", data={"batch_size": 20, "val_split": None})
    assert len(losses(tmp_path / "run")) == 3 * (48 // 20)


def test_checkpoints_and_evaluations_come_as_often_as_asked(recipe_dict: Dict, tmp_path: Path) -> None:
    run(recipe_dict, tmp_path / "run", run={"checkpoint_every": 2, "evaluate_every": 5, "log_every": 4})
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert [path.name for path in all_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-00000006",
        "step-00000009",
    ]


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("step", "workers"), [(5, 2), (3, 0), (1, 0)], ids=["within an epoch", "at its end", "before any checkpoint"]
)
def test_a_stopped_run_ends_bit_equal_to_one_that_was_not(
    recipe_dict: Dict, tmp_path: Path, step: int, workers: int
) -> None:
    recipe = merge(recipe_dict, {"run": {"ema_decay": 0.9}})
    run(recipe, tmp_path / "whole")
    run_until(step, recipe, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "published").exists()
    run(recipe, tmp_path / "stopped", resume=True, data={"workers": workers})
    assert_bit_equal(last_checkpoint(tmp_path / "stopped"), last_checkpoint(tmp_path / "whole"))
    ours, theirs = (read_timeless(tmp_path / which / "published") for which in ("stopped", "whole"))
    for name in ("model.safetensors", "lgd.safetensors", "metrics.json", "training.png"):
        assert ours[name] == theirs[name], name


def test_a_run_with_dropout_resumes_bit_equal_too(recipe_dict: Dict, tmp_path: Path) -> None:
    """The state of the random numbers goes into the checkpoint, and reading data does not move it."""
    recipe = merge(recipe_dict, {"student": {"drop_rate": 0.5, "drop_path_rate": 0.2}})
    run(recipe, tmp_path / "whole")
    run_until(5, recipe, tmp_path / "stopped")
    run(recipe, tmp_path / "stopped", resume=True)
    assert_bit_equal(last_checkpoint(tmp_path / "stopped"), last_checkpoint(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"optimizer": {"lr": 0.5}}, "optimizer"),
        ({"objective": {"alpha": 0.9}}, "objective"),
        ({"schedule": {"epochs": 4}}, "schedule"),
        ({"student": {"projector": "mlp"}}, "student"),
        ({"run": {"seed": 1}}, "seed"),
        ({"run": {"amp": "bfloat16"}}, "amp"),
        ({"run": {"ema_decay": 0.9}}, "ema_decay"),
        ({"data": {"batch_size": 24}}, "batch_size"),
        ({"data": {"train_split": "val", "batch_size": 4}}, "batch_size, shards"),
        ({"vocabulary": {"source": ["blue", "green", "crimson"]}}, "names"),
        ({"views": {"seed": 1}}, "views"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_is_not_resumed_with_another_recipe(
    recipe_dict: Dict, tmp_path: Path, online_run: Path, changes: Dict, differs: str
) -> None:
    out = Path(shutil.copytree(online_run, tmp_path / "run"))
    before = (out / "recipe.yaml").read_text()
    with pytest.raises(
        WeightsError, match=rf"was written by another run: {differs} differ\. Use the same recipe and data"
    ):
        run(recipe_dict, out, resume=True, **changes)
    assert (out / "recipe.yaml").read_text() == before


@pytest.fixture(scope="module")
def online_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Dict) -> Path:
    """A run that was stopped after its first epoch. Read only."""
    out = tmp_path_factory.mktemp("online") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_TIMM_CACHE", str(out.parent / "cache"))
        run_until(3, tiny_recipe, out)
    return out


def test_how_the_machine_works_may_change_on_resuming(recipe_dict: Dict, tmp_path: Path, online_run: Path) -> None:
    """The test above compares with this recipe: without changes it does resume, and so it does with these."""
    out = Path(shutil.copytree(online_run, tmp_path / "run"))
    run(recipe_dict, out, resume=True, data={"workers": 1, "max_bad": 0.5}, run={"log_every": 2, "checkpoint_every": 3})
    assert [path.name for path in all_checkpoints(out / "checkpoints")] == ["step-00000003", "step-00000009"]


def test_resuming_a_finished_run_changes_nothing(
    recipe_dict: Dict, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "__init__", None)
    before = (run_folder / "log.jsonl").read_bytes()
    assert run(recipe_dict, run_folder, resume=True) == run_folder / "published"
    assert (run_folder / "log.jsonl").read_bytes() == before


def test_resuming_where_nothing_is_starts_a_run(recipe_dict: Dict, tmp_path: Path) -> None:
    assert run(recipe_dict, tmp_path / "run", resume=True, schedule={"epochs": 1}).is_dir()


def test_an_output_folder_that_is_not_empty_is_refused_and_left_alone(recipe_dict: Dict, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match=r"run is not empty. Go on with --resume, or choose another --output"):
        run(recipe_dict, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_folder_can_be_saved_from_the_last_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    again = save_run(run_folder, out=tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in (run_folder / "published").iterdir()
    }
    with pytest.raises(WeightsError, match="holds no checkpoint"):
        save_run(tmp_path / "again", out=tmp_path / "third")


# ------------------------------------------------------------------------------------------------------------- teachers


def test_stored_embeddings_give_the_losses_of_the_online_teacher(
    recipe_dict: Dict, stored: Dict, tmp_path: Path
) -> None:
    """As many stored views as epochs, so that both see the same pixels; the embeddings differ by float16's rounding."""
    run(recipe_dict, tmp_path / "online", data={"val_split": None})
    run(stored, tmp_path / "stored", data={"val_split": None})
    online, offline = torch.tensor(losses(tmp_path / "online")), torch.tensor(losses(tmp_path / "stored"))
    torch.testing.assert_close(offline[0], online[0], rtol=2e-3, atol=0)
    torch.testing.assert_close(
        offline, online, rtol=2e-2, atol=0
    )  # the teacher's temperature of 0.01 makes much of little
    assert not torch.equal(offline, online)


class Float16(ImageTeacher):
    """A teacher whose embeddings are rounded as storing rounds them."""

    def __init__(self, teacher: ImageTeacher) -> None:
        super().__init__(teacher.preprocess)
        self.teacher = teacher
        self.name, self.embed_dim, self.fingerprint = teacher.name, teacher.embed_dim, teacher.fingerprint

    def forward(self, images: Tensor) -> Tensor:
        return normalize(self.teacher(images), dim=1).half().float()


def test_stored_embeddings_give_the_losses_of_the_rounded_online_teacher_step_for_step(
    recipe_dict: Dict, stored: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above allows is float16's rounding and nothing else.

    An online teacher that rounds gives the stored run.
    """
    run(stored, tmp_path / "stored", data={"val_split": None})
    exact = OpenCLIP.image
    monkeypatch.setattr(OpenCLIP, "image", lambda spec: Float16(exact(spec)))
    run(recipe_dict, tmp_path / "online", data={"val_split": None})
    assert losses(tmp_path / "stored") == losses(tmp_path / "online")
    assert_bit_equal(last_checkpoint(tmp_path / "stored"), last_checkpoint(tmp_path / "online"))


def test_a_run_is_the_same_whether_the_names_were_cached_or_not(stored: Dict, tmp_path: Path) -> None:
    for name in ("cold", "warm"):
        run(stored, tmp_path / name, schedule={"epochs": 1}, data={"val_split": None})
    assert_bit_equal(last_checkpoint(tmp_path / "warm"), last_checkpoint(tmp_path / "cold"))


def test_a_run_on_stored_embeddings_builds_no_teacher(
    stored: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: OpenCLIP) -> None:
        raise AssertionError("a teacher was built")

    monkeypatch.setattr(OpenCLIP, "image", forbidden)
    run(stored, tmp_path / "first", schedule={"epochs": 1})  # the text tower alone, once for these names
    monkeypatch.setattr(OpenCLIP, "text", forbidden)
    run(stored, tmp_path / "second", schedule={"epochs": 1})
    with pytest.raises(AssertionError, match="a teacher was built"):
        run(stored, tmp_path / "third", vocabulary={"source": ["cat", "dog", "bird"]})


def test_stored_embeddings_of_other_views_or_shards_are_refused(
    stored: Dict, shard_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=r"holds Views.*Use the stored views, or run lgd-timm teach"):
        run(stored, tmp_path / "run", views={"size": 48, "augmentation": "light"})
    with pytest.raises(TeacherError, match=r"holds no embeddings of split 'val'"):
        run(stored, tmp_path / "run", data={"train_split": "val", "batch_size": 4})
    write_shards(shard_folder.parent / "val", tmp_path / "other", split="train")
    with pytest.raises(TeacherError, match="was made from other shards"):
        run(stored, tmp_path / "run", data={"shards": str(tmp_path / "other"), "batch_size": 4, "val_split": None})
    assert not (tmp_path / "run").exists()


def test_the_teacher_is_not_trained_and_not_saved(recipe_dict: Dict, tmp_path: Path) -> None:
    built = build(recipe_from_dict(recipe_dict), tmp_path)
    assert built.teaching.image is not None
    before = {key: value.clone() for key, value in built.teaching.image.state_dict().items()}
    batch = next(built.batches())
    TrainStep(built).take(batch)
    assert_bit_equal(dict(built.teaching.image.state_dict()), before)
    trained = {id(p) for group in built.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in built.task.student.parameters()}


# ----------------------------------------------------------------------------------------------------- how it optimises


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_timm_optimizers_work_by_name(recipe_dict: Dict, tmp_path: Path, name: str) -> None:
    recipe = merge(recipe_dict, {"optimizer": {"name": name, "clip_grad": 1.0}, "data": {"val_split": None}})
    before = build(recipe_from_dict(recipe), tmp_path).task.student.state_dict()
    run(recipe, tmp_path / "run", schedule={"epochs": 1})
    after = last_checkpoint(tmp_path / "run")
    assert not torch.equal(after["student/projector.weight"], before["projector.weight"])
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_an_unknown_optimizer_is_refused(recipe_dict: Dict, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"optimizer.name 'sdg' is unknown to timm"):
        run(recipe_dict, tmp_path / "run", optimizer={"name": "sdg"})
    assert not (tmp_path / "run").exists()


def test_clipping_bounds_the_step(recipe_dict: Dict, tmp_path: Path) -> None:
    """One step of plain momentum SGD without decay moves the weights by lr times the clipped gradient."""
    recipe = merge(recipe_dict, {"optimizer": {"name": "momentum", "lr": 0.5, "weight_decay": 0.0, "clip_grad": 1e-2}})
    built = build(recipe_from_dict(recipe), tmp_path)
    before = [p.detach().clone() for p in built.task.student.parameters()]
    TrainStep(built).take(next(built.batches()))
    moved = torch.cat(
        [(p.detach() - q).flatten() for p, q in zip(built.task.student.parameters(), before, strict=True)]
    )
    assert moved.double().norm().item() == pytest.approx(0.5 * 1e-2, rel=1e-3)


def test_the_learning_rate_warms_up_and_falls(recipe_dict: Dict, tmp_path: Path) -> None:
    run(recipe_dict, tmp_path / "run", schedule={"warmup_epochs": 1}, data={"val_split": None})
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rates[0] == 0
    assert rates[:3] == sorted(rates[:3])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert max(rates) <= 0.05


def test_the_learning_rate_follows_the_batch_size(recipe_dict: Dict, tmp_path: Path) -> None:
    built = build(
        recipe_from_dict(merge(recipe_dict, {"optimizer": {"lr": None, "lr_base": 0.8, "lr_base_size": 256}})), tmp_path
    )
    assert built.optimizer.param_groups[0]["lr"] == pytest.approx(0.8 * 16 / 256)


@pytest.mark.parametrize("everywhere", [True, False])
def test_weight_decay_on_biases_and_norms_is_a_choice(recipe_dict: Dict, tmp_path: Path, everywhere: bool) -> None:
    recipe = merge(recipe_dict, {"optimizer": {"weight_decay": 0.1, "weight_decay_all": everywhere}})
    built = build(recipe_from_dict(recipe), tmp_path)
    decay = {id(p): group["weight_decay"] for group in built.optimizer.param_groups for p in group["params"]}
    vectors = {decay[id(p)] for p in built.task.student.parameters() if p.ndim == 1}
    matrices = {decay[id(p)] for p in built.task.student.parameters() if p.ndim > 1}
    assert (matrices, vectors) == ({0.1}, {0.1 if everywhere else 0.0})


def test_the_average_is_published_when_there_is_one(recipe_dict: Dict, tmp_path: Path) -> None:
    folder = run(recipe_dict, tmp_path / "run", run={"ema_decay": 0.5})
    saved, published = last_checkpoint(tmp_path / "run"), load_file(folder / "model.safetensors")
    key = next(key for key in published if key.endswith("weight") and published[key].ndim == 4)
    averaged, plain = saved[f"ema/backbone.{key}"], saved[f"student/backbone.{key}"]
    assert torch.equal(published[key], averaged.half())
    assert not torch.equal(published[key], plain.half())


def test_a_student_may_start_from_any_timm_folder(recipe_dict: Dict, tmp_path: Path) -> None:
    """What is published names the stock architecture, and is called after the folder."""
    folder = make_folder(tmp_path / "start.from_here")
    model = {"model": f"local-dir:{folder}", "pretrained": True}
    published = run(recipe_dict, tmp_path / "run", student=model, schedule={"epochs": 1}, optimizer={"lr": 0.0})
    assert json.loads((published / "config.json").read_text())["architecture"] == "test_resnet"
    assert "# start.tiny" in (published / "README.md").read_text()
    check_folder(published)
    ours, theirs = load_file(published / "model.safetensors"), load_file(folder / "model.safetensors")
    assert torch.equal(ours["conv1.0.weight"], theirs["conv1.0.weight"].half()), "it did not start from these weights"


def test_the_average_moves_by_its_decay(recipe_dict: Dict, tmp_path: Path) -> None:
    built = build(recipe_from_dict(merge(recipe_dict, {"run": {"ema_decay": 0.75}})), tmp_path)
    batch = next(built.batches())
    TrainStep(built).take(batch)  # timm's average begins as a copy
    before = built.task.student.projector.weight.detach().clone()
    assert torch.equal(built.task.ema_student.projector.weight, before)
    built.step = 2
    TrainStep(built).take(batch)
    after = built.task.student.projector.weight.detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(built.task.ema_student.projector.weight.detach(), 0.75 * before + 0.25 * after)


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_changes_the_losses_by_its_rounding_only(recipe_dict: Dict, tmp_path: Path, amp: str) -> None:
    changes = {"schedule": {"epochs": 1}, "data": {"val_split": None}}
    run(recipe_dict, tmp_path / "exact", **changes)
    run(recipe_dict, tmp_path / "mixed", **changes, run={"amp": amp})
    exact, mixed = losses(tmp_path / "exact")[0], losses(tmp_path / "mixed")[0]
    assert mixed == pytest.approx(exact, rel=0.02)
    assert mixed != exact


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(recipe_dict: Dict, tmp_path: Path) -> None:
    changes = {"schedule": {"epochs": 1}, "data": {"val_split": None}}
    run(recipe_dict, tmp_path / "plain", **changes)
    run(recipe_dict, tmp_path / "compiled", **changes, run={"compile": True, "ema_decay": 0.9})
    torch.testing.assert_close(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-3, atol=1e-4)
    plain, compiled = (last_checkpoint(tmp_path / name) for name in ("plain", "compiled"))
    assert plain.keys() <= compiled.keys()  # no `_orig_mod.`
    assert {key.partition("/")[0] for key in compiled.keys() - plain.keys()} == {"ema"}


# ------------------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"schedule": {"warmup_epochs": 3}},
            RecipeError,
            "schedule.warmup_epochs = 3 must be below schedule.epochs = 3",
        ),
        ({"data": {"batch_size": 49}}, ShardError, "48 samples are too few for one global batch of 49 x 1 ranks"),
        ({"data": {"train_split": "trian"}}, ShardError, "has no split 'trian'; it has train, val"),
        ({"data": {"shards": "/nowhere"}}, ShardError, "/nowhere holds no _info.json"),
        ({"student": {"model": "test_restnet"}}, LGDError, "student.model 'test_restnet' is unknown to timm"),
        ({"teacher": {"model": "RN-50"}}, TeacherError, "teacher.model 'RN-50' is unknown to open_clip"),
        ({"vocabulary": {"source": ["one"]}}, LGDError, "fewer than two names"),
        ({"vocabulary": {"source": "names.txt"}}, LGDError, "names.txt can't be read"),
        ({"views": None}, RecipeError, "lacks `views` (size, augmentation), which an online teacher needs"),
        ({"run": {"device": "tpu"}}, LGDError, "device 'tpu' can't be used here"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_written(
    recipe_dict: Dict, tmp_path: Path, changes: Dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        run(recipe_dict, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_evaluation_without_labels_says_so(recipe_dict: Dict, image_folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shards(image_folder, shards, split="train")
    write_shards(image_folder, shards, split="val", labels=False)
    with pytest.raises(ShardError, match=r"shards \(val\) has images without a label; evaluation needs field cls"):
        run(recipe_dict, tmp_path / "run", data={"shards": str(shards)})


def test_a_loss_that_is_not_finite_ends_the_run(recipe_dict: Dict, tmp_path: Path) -> None:
    with pytest.raises(LGDError, match=r"a gradient is not finite, like .*Lower optimizer.lr, set optimizer.clip_grad"):
        run(recipe_dict, tmp_path / "run", optimizer={"lr": 1e9}, run={"max_skipped": 2}, data={"val_split": None})
    with pytest.raises(LGDError, match="the model's answers are not finite"):  # where the evaluation comes first
        run(recipe_dict, tmp_path / "evaluated", optimizer={"lr": 1e9}, run={"max_skipped": 2})
    assert not (tmp_path / "run" / "published").exists()


def test_bad_samples_are_named_and_end_the_run_above_the_limit(
    recipe_dict: Dict, shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    name = damage_first_image(shards)
    with pytest.raises(
        ShardError, match=rf"1 of 48 samples can't be read; data.max_bad = 0 allows 0. First: {re.escape(name)}: "
    ):
        run(recipe_dict, tmp_path / "strict", data={"shards": str(shards)})
    with caplog.at_level(logging.WARNING):
        run(recipe_dict, tmp_path / "lenient", data={"shards": str(shards), "max_bad": 0.05})
    assert [line.split(":")[0] for line in caplog.messages if line.startswith("skipped")] == [
        f"skipped {name}"
    ]  # once, not each epoch


# ---------------------------------------------------------------------------------------------------------- distributed


def test_two_processes_learn_what_one_learns(recipe_dict: Dict, tmp_path: Path) -> None:
    """With a loss that is a mean over images (no batch norm), two ranks' mean and gradient are one process's."""
    recipe = merge(recipe_dict, {"student": {"model": "test_convnext"}})
    one = run(recipe, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(recipe_from_dict(recipe).to_yaml())
    (tmp_path / "rank.py").write_text(ONE_RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [tmp_path / "rank.py", tmp_path, "distill", tmp_path / "recipe.yaml", "--output", tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two" / "published"
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())

    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [sum(pair) / 2 for pair in zip(*(rank["loss"] for rank in ranks), strict=True)] == pytest.approx(
        losses(tmp_path / "one"), abs=1e-3
    )
    assert ranks[0]["loss"][0] != ranks[1]["loss"][0]  # each saw its own half
    assert ranks[0]["bank"] == ranks[1]["bank"]  # to the bit, after each step
    scores = [
        line["zero_shot_top1"]
        for line in map(json.loads, (tmp_path / "one" / "log.jsonl").read_text().splitlines())
        if "epoch" in line
    ]
    assert (
        ranks[0]["scores"] == ranks[1]["scores"] == [[score, 12] for score in scores]
    )  # each image once, whoever read it
    ours, theirs = last_checkpoint(tmp_path / "two"), last_checkpoint(tmp_path / "one")
    for key, tensor in theirs.items():
        if not key.startswith("optimizer"):
            torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_a_batch_that_does_not_divide_by_the_ranks_is_refused(
    recipe_dict: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building.Ranks, "join", lambda: Ranks(0, 3))
    with pytest.raises(RecipeError, match=r"data.batch_size = 16 is global and must divide by 3 ranks"):
        run(recipe_dict, tmp_path / "run")


# ------------------------------------------------------------------------------------------------- other names to score


def test_a_student_is_scored_on_the_splits_own_names_whatever_it_was_distilled_for(
    stored: Dict, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("blue\ngreen\nred\n")
    folder = run(stored, tmp_path / "run", vocabulary={"source": ["warm", "cold"]}, data={"val_vocabulary": str(names)})
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["warm", "cold"]
    metrics = json.loads((folder / "metrics.json").read_text())
    for who in ("zero_shot", "teacher_zero_shot"):
        assert metrics[who]["names"] == ["blue", "green", "red"]  # said, because they are not the student's
        assert set(metrics[who]["per_class"]) == {"blue", "green", "red"}
        assert metrics[who]["chance"] == pytest.approx(100 / 3)
    again = evaluate_zero_shot(str(folder), data=stored["data"]["shards"], device="cpu")
    assert again == evaluate_zero_shot(
        str(folder), data=stored["data"]["shards"], vocabulary=["blue", "green", "red"], device="cpu"
    )
    for who, score in (("zero_shot", again["student"]), ("teacher_zero_shot", again["teacher"])):
        assert score is not None
        assert {**score.to_dict(), "names": ["blue", "green", "red"]} == metrics[who]
    published = read_recipe(folder / "recipe.yaml")
    assert (published.vocabulary.source, published.data.val_vocabulary) == (["warm", "cold"], ["blue", "green", "red"])
    assert "asked about the 3 names of that split, which are not the 2" in (folder / "README.md").read_text()


def test_names_in_another_order_than_the_labels_are_scored_by_name(
    stored: Dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(stored, tmp_path / "run", vocabulary={"source": ["red", "green", "blue"]})
    assert "in another order" in caplog.text
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["zero_shot"]["per_class"]) == metrics["zero_shot"]["names"] == ["blue", "green", "red"]
    again = evaluate_zero_shot(str(folder), data=stored["data"]["shards"], device="cpu")
    assert again["student"] is not None
    assert {**again["student"].to_dict(), "names": ["blue", "green", "red"]} == metrics["zero_shot"]


def test_a_loss_with_labels_refuses_names_in_another_order(stored: Dict, tmp_path: Path) -> None:
    del stored["objective"]["preset"]
    with pytest.raises(RecipeError, match=r"in another order.*Supervised.*in the labels' order"):
        run(stored, tmp_path / "run", vocabulary={"source": ["red", "green", "blue"]}, objective={"kind": "supervised"})
    assert not (tmp_path / "run").exists()


def test_naming_the_names_that_are_learned_changes_nothing(stored: Dict, run_folder: Path, tmp_path: Path) -> None:
    """Neither metrics nor card speak of other names, and a published recipe names them, so that it can be run for
    others.
    """
    folder = run(stored, tmp_path / "run", data={"val_vocabulary": ["blue", "green", "red"]})
    assert read_timeless(folder) == read_timeless(run_folder / "published")
    assert read_recipe(run_folder / "published" / "recipe.yaml").data.val_vocabulary == ["blue", "green", "red"]


def test_names_that_no_split_is_scored_on_do_not_travel(recipe_dict: Dict, tmp_path: Path) -> None:
    data = {"val_split": None, "val_vocabulary": "/only/here.txt"}
    folder = run(recipe_dict, tmp_path / "run", data=data, schedule={"epochs": 1})
    assert read_recipe(folder / "recipe.yaml").data.val_vocabulary is None


def test_the_names_that_are_scored_do_not_change_what_is_learned(stored: Dict, tmp_path: Path) -> None:
    changes = {"vocabulary": {"source": ["warm", "cold"]}, "schedule": {"epochs": 2}}
    run(stored, tmp_path / "scored", **changes, data={"val_vocabulary": ["blue", "green", "red"]})
    run(stored, tmp_path / "unscored", **changes, data={"val_split": None})
    assert_bit_equal(last_checkpoint(tmp_path / "scored"), last_checkpoint(tmp_path / "unscored"))


def test_each_tar_is_walked_once_however_often_it_is_evaluated(
    recipe_dict: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []
    walk = IndexedTar.__init__

    def counting(self: IndexedTar, path: Path) -> None:
        walked.append(path.name)
        walk(self, path)

    monkeypatch.setattr(IndexedTar, "__init__", counting)
    run(recipe_dict, tmp_path / "run")  # student after epochs 1 and 2 and at the end, and the teacher
    assert sorted(walked) == sorted(path.name for path in Path(recipe_dict["data"]["shards"]).glob("*.tar"))


@pytest.mark.parametrize("data", [{}, {"val_vocabulary": ["red", "green", "blue", "pink"]}], ids=["learned", "scored"])
def test_names_that_the_labels_do_not_have_are_refused_before_the_first_step(
    recipe_dict: Dict, tmp_path: Path, data: Dict
) -> None:
    message = (
        r"'val' has 3 classes, its vocabulary 4 names.*"
        r"Set data\.val_vocabulary to the names of its labels.*--data\.val_split null"
    )
    with pytest.raises(RecipeError, match=message):
        run(recipe_dict, tmp_path / "run", vocabulary={"source": ["red", "green", "blue", "pink"]}, data=data)
    assert not (tmp_path / "run").exists()
