"""Libraries that take our backbones, by name or folder, in the few lines that docs/guides/transfer.md shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lgd_timm  # registers the students
from lgd_timm.hub.weights import local_folder

NAMES = timm.list_models("lgd_*", pretrained=True)


def pictures(size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def pyramid(name: str) -> Any:
    return timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 2, 3, 4)).eval()


def test_there_are_names_to_test() -> None:
    assert {name.partition(".")[0] for name in NAMES} == set(lgd_timm.students.STUDENTS)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_transformers_takes_the_folder_as_a_classifier(name: str) -> None:
    from transformers import AutoModelForImageClassification

    folder = local_folder(name)
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ours = timm.create_model(name, pretrained=True).eval()
    torch.testing.assert_close(model(pictures()).logits, ours(pictures()), rtol=1e-5, atol=1e-5)
    assert list(model.config.id2label.values()) == list(ours.pretrained_cfg["label_names"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_transformers_gives_the_folders_feature_maps(name: str) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(local_folder(name), dtype=torch.float32).eval()
    hidden = model(pictures(), output_hidden_states=True).hidden_states
    for ours, theirs in zip(pyramid(name)(pictures()), hidden[1:], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_transformers_takes_the_name_as_a_backbone(name: str) -> None:
    from transformers import TimmBackbone

    backbone = TimmBackbone.from_pretrained(name, out_indices=[1, 2, 3, 4]).eval()
    maps = pyramid(name)
    assert list(backbone.channels) == maps.feature_info.channels()
    backbone._backbone.load_state_dict(maps.state_dict())  # transformers 5.24 has just reset the batch statistics
    for ours, theirs in zip(maps(pictures()), backbone(pictures()).feature_maps, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("lgd_resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("lgd_mobilenetv2", ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
        ("lgd_efficientnet_b0", ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
    ],
)
@torch.no_grad()
def test_torchvision_extracts_features_by_the_names_of_modules(name: str, nodes: list[str]) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(timm.create_model(name, pretrained=True).eval(), nodes)
    for ours, theirs in zip(pyramid(name)(pictures()), extractor(pictures()).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_lightning_trains_it_as_any_module(tmp_path: Path) -> None:
    import pytorch_lightning as lightning

    class Tuner(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = timm.create_model("lgd_mobilenetv2", pretrained=True, num_classes=3)

        def training_step(self, batch: Any, _: int) -> Any:
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    tuner = Tuner()
    before = {key: value.clone() for key, value in tuner.model.state_dict().items()}
    stem = pyramid("lgd_mobilenetv2").state_dict()["conv_stem.weight"]
    assert torch.equal(before["conv_stem.weight"], stem)
    loader = DataLoader(TensorDataset(pictures().repeat(4, 1, 1, 1), torch.arange(8) % 3), batch_size=4)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(tuner, loader)
    assert not torch.equal(tuner.model.state_dict()["conv_stem.weight"], stem)


def test_fastai_builds_a_learner_of_it(tmp_path: Path) -> None:
    vision = pytest.importorskip(
        "fastai.vision.all", reason="fastai is installed for Python below 3.13 only (setup.cfg)"
    )
    draw = np.random.default_rng(0)
    for label in ("dark", "light"):
        (tmp_path / label).mkdir()
        for number in range(8):
            pixels = draw.integers(0, 100, (48, 48, 3)) + (150 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / label / f"{number}.png")
    loaders = vision.ImageDataLoaders.from_folder(
        tmp_path, valid_pct=0.25, seed=0, bs=4, item_tfms=vision.Resize(48), num_workers=0
    )
    learner = vision.vision_learner(loaders, "lgd_mobilenetv2", metrics=vision.accuracy)
    body = {key.removeprefix("model."): value.clone() for key, value in learner.model[0].state_dict().items()}
    ours = pyramid("lgd_mobilenetv2")
    assert torch.equal(body["conv_stem.weight"], ours.state_dict()["conv_stem.weight"])
    (normalize,) = (step for step in learner.dls.after_batch.fs if isinstance(step, vision.Normalize))
    assert normalize.mean.flatten().tolist() == pytest.approx(list(ours.pretrained_cfg["mean"]), abs=1e-3)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1, freeze_epochs=0, base_lr=1e-3)
    trained = learner.model[0].state_dict()
    assert not torch.equal(trained["model.conv_stem.weight"], body["conv_stem.weight"])
    assert all(value.isfinite().all() for value in trained.values())
