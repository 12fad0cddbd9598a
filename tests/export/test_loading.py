"""What is exported: each name opens as the model that it says, with its own preprocessing and names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.export.loading import open_export_model
from lgd_timm.hub.weights import local_folder

WEIGHT = "lgd_mobilenetv2.conse_cifar10"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("form", ["{folder}", "local-dir:{folder}", "lgd_mobilenetv2", WEIGHT])
@torch.no_grad()
def test_a_published_student_opens_under_each_of_its_names(form: str) -> None:
    folder = local_folder(WEIGHT)
    exported, published = (
        open_export_model(form.format(folder=folder)),
        timm.create_model(WEIGHT, pretrained=True).eval(),
    )
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(exported.network(images), published(images))
    assert (exported.architecture, exported.size, exported.classes, exported.label_names) == (
        "mobilenetv2_100",
        48,
        10,
        CIFAR10,
    )
    assert (exported.mean, exported.std, exported.crop_pct) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0)
    assert not exported.network.training
    assert {tensor.dtype for tensor in exported.network.parameters()} == {torch.float32}
    assert exported.folder == (None if form.startswith("local-dir:") else folder)  # which is any timm folder
    assert exported.untrusted is False


def test_a_run_opens_as_what_it_published(run_folder: Path) -> None:
    exported = open_export_model(str(run_folder))
    assert (exported.architecture, exported.label_names, exported.folder) == (
        "test_resnet",
        ("blue", "green", "red"),
        run_folder / "published",
    )


def test_a_timm_model_before_training_has_its_own_preprocessing() -> None:
    exported, config = (
        open_export_model("test_resnet", pretrained=False),
        timm.data.resolve_model_data_config(timm.create_model("test_resnet")),
    )
    assert (exported.size, exported.interpolation, exported.crop_pct) == (
        config["input_size"][1],
        config["interpolation"],
        config["crop_pct"],
    )
    assert (exported.label_names, exported.classes, exported.folder) == ((), 1000, None)


def test_the_metadata_are_strings_that_say_it_all() -> None:
    facts = open_export_model(WEIGHT).metadata()
    assert (facts.pop("architecture"), facts.pop("interpolation")) == ("mobilenetv2_100", "bicubic")
    rest = {key: json.loads(value) for key, value in facts.items()}
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert rest == {"size": 48, "crop_pct": 1.0, "label_names": list(CIFAR10), **statistics}


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_run_that_published_nothing_is_sent_to_save(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("published")))
    with pytest.raises(
        WeightsError, match=f"is a run that has published nothing yet. Save it first: lgd-timm save {run} FOLDER"
    ):
        open_export_model(str(run))


def test_a_student_has_weights_already(published_folder: Path) -> None:
    with pytest.raises(LGDError, match=r"is a student with weights of its own\. Leave out --random-weights"):
        open_export_model(str(published_folder), pretrained=False)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LGDError, match="'nothing' is no published folder, no run folder, no checkpoint file and no model of timm"
    ):
        open_export_model("nothing")
    with pytest.raises(LGDError, match=r"model = 'weights\.pth' names a pickle"):
        open_export_model("weights.pth")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        LGDError, match=r"model.safetensors' is a file, which does not say what it is of. Name its folder"
    ):
        open_export_model(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LGDError, match=f"local-dir:{tmp_path}' lacks config.json, model.safetensors"):
        open_export_model(str(tmp_path))


def test_a_model_of_grey_pictures_is_refused(tmp_path: Path) -> None:
    timm.models.save_for_hf(timm.create_model("test_resnet", in_chans=1), str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [1, 32, 32]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LGDError, match="takes 1 channels, and only models of colour pictures are exported"):
        open_export_model(f"local-dir:{tmp_path}")
