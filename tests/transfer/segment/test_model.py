"""Backbone and decoder.

The weights are the backbone's, each head learns, and a whole picture gets an answer of its own size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import lgd_timm  # noqa: F401 - registers the students
from lgd_timm.errors import LGDError
from lgd_timm.transfer.backbone import PyramidBackbone, find_backbone
from lgd_timm.transfer.segment.dataset import SegmentationBatch
from lgd_timm.transfer.segment.model import Segmenter, _classes, create
from tests.helpers.segment_data import recipe_of

HEADS: dict[str, dict[str, Any]] = {
    "fpn": {"kind": "fpn", "dropout": 0.0},
    "deeplabv3plus": {"kind": "deeplabv3plus", "dropout": 0.0},
    "deeplabv3plus at stride 8": {"kind": "deeplabv3plus", "output_stride": 8},
    "unet": {"kind": "unet"},
}
CLASSES = ("a", "b", "c")


def segmenter(head: str = "fpn", **backbone: Any) -> tuple[Segmenter, PyramidBackbone]:
    recipe = recipe_of(Path("nowhere"), head=HEADS[head], backbone=backbone)
    source = find_backbone(recipe.backbone)
    torch.manual_seed(0)
    return create(recipe, backbone=source, classes=CLASSES), source


def batch(*, ignored: float = 0.0) -> SegmentationBatch:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 64, 64), generator=draw, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=draw) < ignored] = 255
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=draw, dtype=torch.uint8)
    return SegmentationBatch(images, labels, ["a", "b"])


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("lgd_mobilenetv2", 32),
        ("lgd_resnet18", 32),
        ("lgd_mobilenetv2", 16),
        ("lgd_resnet18", 8),
        ("lgd_efficientnet_b0", 16),
    ],
)
def test_the_encoder_has_the_backbones_weights(name: str, stride: int) -> None:
    """Its features are timm's own, of the same published weights and dilated alike, to the bit."""
    head = {"kind": "unet"} if stride == 32 else {"kind": "deeplabv3plus", "output_stride": stride}
    recipe = recipe_of(Path("nowhere"), head=head, backbone={"model": name, "pretrained": True, "norms": "frozen"})
    source = find_backbone(recipe.backbone)
    model = create(recipe, backbone=source, classes=CLASSES).eval()
    options = {} if stride == 32 else {"output_stride": stride}
    stock = timm.create_model(name, pretrained=True, features_only=True, **options).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.encoder(images)[1:], stock(images)
    assert [64 // found.shape[-1] for found in ours] == [min(reduction, stride) for reduction in (2, 4, 8, 16, 32)]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    published = timm.get_pretrained_cfg(name)
    assert published is not None
    assert (*source.mean, *source.std) == pytest.approx((*published.mean, *published.std))


def test_names_that_timm_flattens_find_their_weights() -> None:
    """features_only calls ConvNeXt's `stages.0` `stages_0`."""
    model, source = segmenter(model="test_convnext", levels=[0, 1, 2, 3])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = source.model.eval().forward_intermediates(images, intermediates_only=True)
        found = model.eval().encoder(images)[2:]  # after the picture and a stride 2 that it does not have
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))


def test_weights_that_do_not_fit_are_refused() -> None:
    recipe = recipe_of(Path("nowhere"))
    source = find_backbone(recipe.backbone)
    del source.model.layer3
    with pytest.raises(LGDError, match=r"weights of test_resnet do not fit its features \(.*Missing key.*layer3"):
        create(recipe, backbone=source, classes=CLASSES)
    source = find_backbone(recipe.backbone)
    source.model.layer3.register_buffer("surplus", torch.zeros(1))
    with pytest.raises(LGDError, match=r"Unexpected key.*surplus"):
        create(recipe, backbone=source, classes=CLASSES)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_and_so_does_the_backbone(head: str) -> None:
    model, _ = segmenter(head)
    model.train()
    losses = model(batch(ignored=0.3))
    assert list(losses) == ["cross_entropy"]
    assert losses["cross_entropy"].isfinite()
    losses["cross_entropy"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    first = next(gradient for name, gradient in gradients.items() if name.startswith("net.encoder."))
    assert first is not None
    assert first.abs().sum() > 0


@pytest.mark.parametrize("head", HEADS)
def test_pictures_of_any_size_have_an_answer_of_that_size(head: str) -> None:
    model, _ = segmenter(head)
    model.eval()
    with torch.no_grad():
        assert model.logits(torch.zeros(2, 3, 45, 70, dtype=torch.uint8)).shape == (2, 3, 45, 70)
        for short_side in (None, 33, 90):
            seen = model.predict(torch.zeros(3, 45, 70, dtype=torch.uint8), short_side=short_side)
            assert (seen.shape, seen.dtype) == ((45, 70), torch.int64)


def test_pixels_are_normalised_with_the_backbones_statistics() -> None:
    model, source = segmenter(model="lgd_mobilenetv2", pretrained=True)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source.mean, source.std))
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model.logits(images), model.net((images / 255 - mean) / std), atol=1e-5)
    assert not {"mean", "std"} & set(model.state_dict())  # metrics.json has them


def test_the_loss_is_the_mean_over_all_pixels_with_ignored_ones_as_zero() -> None:
    model, _ = segmenter()
    model.eval()  # no batch statistics, no dropout
    some = batch(ignored=0.5)
    kept = some.labels != 255
    with torch.no_grad():
        per_pixel = F.cross_entropy(
            model.logits(some.images), some.labels.long().where(kept, torch.zeros(1).long()), reduction="none"
        )
        assert torch.allclose(model(some)["cross_entropy"], (per_pixel * kept).sum() / kept.numel())


def test_a_batch_without_labels_is_no_nan() -> None:
    model, _ = segmenter()
    model.train()
    nothing = batch(ignored=1.1)
    assert (nothing.labels == 255).all()
    loss = model(nothing)["cross_entropy"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters() if parameter.grad is not None)


def norms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@pytest.mark.parametrize(("kept", "changed"), [("frozen", False), ("trained", True)])
def test_batch_statistics_of_the_backbone_are_kept_or_learned(kept: str, changed: bool) -> None:
    model, _ = segmenter("unet", model="lgd_mobilenetv2", pretrained=True, norms=kept)
    model.eval().train()
    before = [norm.running_mean.clone() for norm in norms(model.encoder) if norm.running_mean is not None]
    model(batch())
    after = [norm.running_mean for norm in norms(model.encoder) if norm.running_mean is not None]
    assert before
    assert all(torch.equal(a, b) != changed for a, b in zip(before, after, strict=True))
    assert all(norm.training for norm in norms(model.net.decoder))
    assert not any(norm.training for norm in norms(model.eval()))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (
            {"levels": [2, 3, 4]},
            r"levels = \[2, 3, 4\], but a segmenter takes strides \[4, 8, 16, 32\]: of this model, \[1, 2, 3, 4\]",
        ),
        ({"model": "test_convnext"}, r"of this model, \[0, 1, 2, 3\]\. Set these"),
        ({"model": "test_vit"}, r"test_vit has features of strides \[16, 16, .*\]; segmenting needs \[4, 8, 16, 32\]"),
    ],
)
def test_levels_that_decoders_can_not_take_are_refused(backbone: dict[str, Any], message: str) -> None:
    with pytest.raises(LGDError, match=message):
        segmenter(**backbone)


def test_a_backbone_that_can_not_be_dilated_is_refused() -> None:
    with pytest.raises(
        LGDError, match=r"head\.kind deeplabv3plus can't be put on fastvit_t8 \(.*output_stride.*\)\. Take another head"
    ):
        segmenter("deeplabv3plus", model="fastvit_t8", levels=[0, 1, 2, 3])


@pytest.mark.parametrize("classes", [3, 16, 40])
def test_classes_that_are_resized_in_parts_are_the_same(classes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits: Tensor = torch.randn(2, classes, 9, 13, generator=draw)
    whole = F.interpolate(logits, size=(30, 31), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(_classes(logits, size=(30, 31)), whole)
    assert torch.equal(_classes(logits, size=(9, 13)), logits.argmax(1))
