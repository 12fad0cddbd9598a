"""A whole run, tiny: what it leaves, that it goes on to the bit where it stopped, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lgd_timm.cli.main import main
from lgd_timm.errors import LGDError, MissingExtra, RecipeError, WeightsError
from lgd_timm.training import engine
from lgd_timm.training.step import TrainStep
from lgd_timm.transfer.recipe import read_transfer
from lgd_timm.transfer.run import open_run, predict, transfer
from lgd_timm.transfer.segment import SegmentRecipe, prepare
from lgd_timm.transfer.segment.model import Segmenter
from lgd_timm.transfer.segment.visualize import colour
from lgd_timm.utils.distributed import Ranks
from tests.helpers import ROOT
from tests.helpers.segment_data import NAMES, make_ade20k, make_cityscapes, make_folder, recipe_of

RECIPES = ROOT / "recipes" / "transfer"
HEADS = ("fpn", "deeplabv3plus", "unet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("segment"))


@pytest.mark.parametrize("head", HEADS)
def test_a_run_leaves_a_model_that_opens_again(root: Path, tmp_path: Path, head: str) -> None:
    metrics = transfer("segment", recipe_of(root, head={"kind": head}), out=tmp_path / "run")
    assert list(metrics["scores"]) == ["mIoU", "pixel_accuracy", "mean_accuracy"]
    assert metrics["classes"] == list(NAMES)
    assert metrics["steps"] == 6
    iou = json.loads((tmp_path / "run" / "iou.json").read_text())
    assert list(iou) == list(NAMES)
    assert metrics["scores"]["mIoU"] == pytest.approx(
        np.mean([value for value in iou.values() if value is not None]), abs=0.01
    )
    run = open_run(tmp_path / "run")
    assert isinstance(run.model, Segmenter)
    assert not run.model.training
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(tensor, saved[key]) for key, tensor in run.model.state_dict().items())


@pytest.mark.parametrize(("layout", "make", "splits"), [
    ("cityscapes", make_cityscapes, ("train", "val")),
    ("ade20k", make_ade20k, ("training", "validation")),
])  # fmt: skip
def test_the_large_data_sets_layouts_go_through(
    tmp_path: Path, layout: str, make: Any, splits: tuple[str, str]
) -> None:
    data = {"layout": layout, "train_split": splits[0], "val_split": splits[1], "short_side": 32}
    metrics = transfer("segment", recipe_of(make(tmp_path / "data"), data=data), out=tmp_path / "run")
    assert len(metrics["classes"]) == {"cityscapes": 19, "ade20k": 4}[layout]
    assert 0 <= metrics["scores"]["mIoU"] <= 100


def test_a_stopped_run_ends_with_the_same_weights(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, batch statistics and all that is drawn for the pictures included; it stops in the middle of the first
    epoch.
    """
    recipe = recipe_of(root, head={"kind": "deeplabv3plus"})
    transfer("segment", recipe, out=tmp_path / "whole")
    take, kill = TrainStep.take, 2

    def dies(self: TrainStep, batch: Any) -> Any:
        if self.run.step == kill:
            raise KeyboardInterrupt
        return take(self, batch)

    monkeypatch.setattr(TrainStep, "take", dies)
    monkeypatch.setattr(engine._Saver, "due", property(lambda self: True))
    with pytest.raises(KeyboardInterrupt):
        transfer("segment", recipe, out=tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    transfer("segment", recipe, out=tmp_path / "stopped", resume=True)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["scores"] for name in ("whole", "stopped")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("changed", [{"crop": [64, 64]}, {"flip": False}, {"batch_size": 3}])
def test_other_data_settings_are_another_run(root: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    recipe = recipe_of(root, schedule={"epochs": 1})
    transfer("segment", recipe, out=tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    other = replace(
        recipe, data=replace(recipe.data, **{key: tuple(v) if isinstance(v, list) else v for key, v in changed.items()})
    )
    with pytest.raises(WeightsError, match=r"was written by another run: .*data"):
        transfer("segment", other, out=tmp_path / "run", resume=True)


def test_data_that_moved_are_the_same_run(root: Path, tmp_path: Path) -> None:
    recipe = recipe_of(root)
    jobs = [
        prepare(
            replace(recipe, data=replace(recipe.data, root=place)),
            out=tmp_path,
            device=torch.device("cpu"),
            ranks=Ranks(),
        )
        for place in (str(root), str(make_folder(tmp_path / "copy")), str(make_folder(tmp_path / "more", count=7)))
    ]
    assert jobs[0].identity == jobs[1].identity != jobs[2].identity
    assert not (tmp_path / "run").exists()


def test_the_first_weights_come_from_the_seed(root: Path, tmp_path: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        job = prepare(recipe_of(root, run={"seed": seed}), out=tmp_path, device=torch.device("cpu"), ranks=Ranks())
        return job.model.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for part in ("net.encoder.model.conv1.0.weight", "net.decoder.p5.weight"):
        assert not torch.equal(first[part], other[part])


def test_nothing_is_evaluated_without_a_split_for_it(root: Path, tmp_path: Path) -> None:
    metrics = transfer("segment", recipe_of(root, data={"val_split": None}), out=tmp_path / "run")
    assert metrics["scores"] == {}
    assert not (tmp_path / "run" / "iou.json").exists()


def test_faults_are_found_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="gives a rank one picture, and deeplabv3plus normalises over two or more"):
        transfer(
            "segment", recipe_of(root, head={"kind": "deeplabv3plus"}, data={"batch_size": 1}), out=tmp_path / "run"
        )
    with pytest.raises(LGDError, match="images/test is not there"):
        transfer("segment", recipe_of(root, data={"val_split": "test"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("library", ["segmentation_models_pytorch", "torchmetrics"])
def test_a_library_that_is_missing_is_named_with_its_extra(
    root: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"'{library}' can't be imported .* pip install 'lgd_timm\[segment\]'"):
        transfer("segment", recipe_of(root), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_seen_is_drawn(root: Path, tmp_path: Path) -> None:
    transfer("segment", recipe_of(root), out=tmp_path / "run")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.full((50, 90, 3), 128, dtype=np.uint8)).save(photos / "grey.jpg")
    (file,) = predict(tmp_path / "run", photos, out=tmp_path / "drawn", device="cpu")
    drawn = np.asarray(Image.open(file))
    assert drawn.shape == (50, 90, 3)
    run = open_run(tmp_path / "run")
    assert isinstance(run.model, Segmenter)
    with torch.no_grad():
        seen = run.model.predict(torch.full((3, 50, 90), 128, dtype=torch.uint8), short_side=None)
    expected = 0.45 * 128 + 0.55 * np.array([colour(int(index)) for index in seen[40:, 60:].flatten()])
    assert np.abs(drawn[40:, 60:].reshape(-1, 3) - expected).max() < 4  # away from the legend


def test_colours_of_classes_differ() -> None:
    colours = np.array([colour(index) for index in range(150)], dtype=int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(150, dtype=int)
    assert apart.min() > 0
    assert np.diag(apart, 1).min() > 60  # neighbours in the list


def test_the_command_line_trains_and_tells(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(recipe_of(root).to_yaml())
    main(["transfer", "segment", str(file), "--output", str(tmp_path / "run"), "--schedule.epochs", "1",
          "--head", "{kind: unet}"])  # fmt: skip
    text = capsys.readouterr().out
    assert "test_resnet: mIoU " in text
    assert "pixel_accuracy" in text


@pytest.mark.parametrize("name", ["segment_cityscapes", "segment_ade20k", "segment_samples"])
def test_recipes_that_we_ship_are_whole(name: str) -> None:
    recipe = read_transfer(SegmentRecipe, RECIPES / f"{name}.yaml")
    assert recipe.name == name
    assert (
        read_transfer(SegmentRecipe, RECIPES / f"{name}.yaml", overrides={"head": {"kind": "unet"}}).head.kind == "unet"
    )


def test_a_head_that_is_not_known_is_named(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"head\.kind = 'pspnet'; choose one of fpn, deeplabv3plus, unet"):
        recipe_of(root, head={"kind": "pspnet"})
