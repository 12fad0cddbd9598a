"""segmentation_models_pytorch: its `tu-` encoders take our names, with weights that were verified."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import lgd_timm
from tests.helpers import ROOT


@pytest.mark.parametrize("name", ["lgd_resnet18", "lgd_mobilenetv2", "lgd_efficientnet_b0"])
def test_smp_takes_our_names_with_their_weights(name: str) -> None:
    model = smp.Unet(f"tu-{name}", encoder_weights=True, classes=3).eval()
    stock = timm.create_model(name, pretrained=True, features_only=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert model(images).shape == (1, 3, 64, 64)
        assert all(torch.equal(a, b) for a, b in zip(model.encoder(images)[1:], stock(images), strict=True))


def test_smps_preprocessing_is_the_students() -> None:
    params = smp.encoders.get_preprocessing_params("tu-lgd_mobilenetv2")
    published = timm.get_pretrained_cfg("lgd_mobilenetv2")
    assert published is not None
    assert (params["mean"], params["std"]) == (list(published.mean), list(published.std))


def test_weights_that_are_wrong_do_not_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lgd_mobilenetv2.conse_cifar10"
    folder.mkdir()
    source = ROOT / "hub" / folder.name
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    monkeypatch.setenv("LGD_TIMM_HUB", str(tmp_path))
    with pytest.raises(lgd_timm.errors.LGDError, match=r"model\.safetensors"):
        smp.Unet("tu-lgd_mobilenetv2", encoder_weights=True)
