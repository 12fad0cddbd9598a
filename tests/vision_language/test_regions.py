"""Boxes of a grid, of the data and of a detector; their features by RoIAlign, computed once an image."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.errors import LGDError
from lgd_timm.hub import verify
from lgd_timm.transfer.detect import RECIPE
from lgd_timm.transfer.run import transfer
from lgd_timm.utils.distributed import Ranks
from lgd_timm.utils.files import sha256_of
from lgd_timm.utils.schema import build
from lgd_timm.vision_language.data.json_lines import JsonLines
from lgd_timm.vision_language.data.sample import Sample
from lgd_timm.vision_language.describe import caption
from lgd_timm.vision_language.features import (
    FILES,
    FeatureTable,
    RegionFeatures,
    open_region_features,
    regions_of,
    stored_features,
)
from lgd_timm.vision_language.folder import open_model
from lgd_timm.vision_language.recipe import DataRegions, DetectorRegions, GridRegions, VisionRecipe
from lgd_timm.vision_language.regions import box_numbers, open_regions
from lgd_timm.vision_language.run import pretrain
from tests.helpers.detect_data import tiny_recipe, write_coco
from tests.helpers.vl_data import recipe, write_scenes

IMAGE = Image.new("RGB", (60, 40))
VISION = VisionRecipe("test_efficientnet", pretrained=False, level=2, image_size=64)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))


def test_a_grid() -> None:
    found = open_regions(GridRegions(2, 3)).find(IMAGE, Sample("a", IMAGE, tags=("dog",)))
    assert found.boxes.tolist()[:4] == [[0, 0, 20, 20], [20, 0, 40, 20], [40, 0, 60, 20], [0, 20, 20, 40]]
    assert (len(found.boxes), found.tags) == (6, ("dog",))


def test_the_datas_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 30, 40], [30, 0, 60, 40]])
    source = open_regions(DataRegions(1))
    assert source.find(IMAGE, Sample("a", IMAGE, boxes=boxes)).boxes.tolist() == boxes[:1].tolist()
    with pytest.raises(LGDError, match="a has no boxes"):
        source.find(IMAGE, Sample("a", IMAGE))


def test_numbers_of_a_box() -> None:
    numbers = box_numbers(torch.tensor([[15.0, 10, 45, 40]]), IMAGE.size)
    assert numbers.tolist() == [[0.25, 0.25, 0.75, 1.0, 0.5, 0.75]]


def test_sources_have_fingerprints() -> None:
    sources = [GridRegions(2, 3), GridRegions(3, 2), DataRegions(6), DataRegions(7)]
    assert len({open_regions(source).fingerprint for source in sources}) == 4
    assert open_regions(GridRegions(2, 3)).fingerprint == open_regions(GridRegions(2, 3)).fingerprint


def extract() -> RegionFeatures:
    return open_region_features(VISION, seed=0)


def test_a_feature_is_of_its_box() -> None:
    """The whole image's equals that of a smaller image with the same content; each half sees its half alone."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 128), dtype=np.uint8)
    image, halves = torch.from_numpy(pixels), torch.tensor([[0.0, 0, 64, 64], [64, 0, 128, 64]])
    (before,) = extract()([image], [halves])
    changed = image.clone()
    changed[:, :, 100:] = 0
    (after,) = extract()([changed], [halves])
    assert before.shape == (2, extract().dim)
    moved = (after - before).norm(dim=1)
    assert moved[1] > 5 * moved[0]


def test_features_are_computed_once_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same images give one row each; a second time nothing is computed."""
    path = write_scenes(tmp_path / "scenes", count=5)
    path.write_text(path.read_text() * 2)
    dataset, source = JsonLines(str(path)).open(), open_regions(DataRegions(2))
    settings: dict[str, Any] = {"regions": source, "batch_size": 3, "device": torch.device("cpu"), "ranks": Ranks()}
    table = stored_features(dataset, extract=extract(), **settings)
    assert len(table) == 10
    assert table._features.shape == (5, 2, extract().dim)
    for index in (0, 4, 7):
        sample = dataset[index]
        alone = regions_of(sample.load(), source.find(sample.load(), sample), extract())
        stored = table[index]
        torch.testing.assert_close(stored.features, alone.features, atol=1e-2, rtol=1e-2)
        assert torch.equal(stored.boxes, alone.boxes)
        assert stored.tags == ("square",)
    monkeypatch.setattr(RegionFeatures, "forward", lambda *_: pytest.fail("computed again"))
    stored_features(dataset, extract=extract(), **settings)


def test_another_backbone_or_size_has_features_of_its_own() -> None:
    prints = {extract().fingerprint, open_region_features(VISION, seed=1).fingerprint}
    prints.add(open_region_features(VisionRecipe("test_efficientnet", pretrained=False, level=2), seed=0).fingerprint)
    assert len(prints) == 3


def test_a_detectors_boxes_go_with_the_model(tmp_path: Path) -> None:
    write_coco(tmp_path)
    transfer(
        "detect", build(RECIPE, tiny_recipe(tmp_path, val=None, val_images=None), where=""), out=tmp_path / "found"
    )
    settings = DetectorRegions(str(tmp_path / "found"), count=4, tag_threshold=0.0)
    found = open_regions(settings).find(IMAGE, Sample("a", IMAGE))
    assert 1 <= len(found.boxes) <= 4
    assert set(found.tags) <= {"red", "green", "blue"}
    scenes = write_scenes(tmp_path / "scenes")
    regions = {"kind": "detector", "run": str(tmp_path / "found"), "count": 4}
    pretrain(recipe(scenes, regions=regions), out=tmp_path / "run")
    (tmp_path / "found" / "model.safetensors").unlink()
    opened = open_model(tmp_path / "run")
    assert open_regions(opened.regions).fingerprint == opened.regions_fingerprint
    opened = open_model(tmp_path / "run")
    again = replace(opened.regions, run=str(tmp_path / "run" / "model" / "detector"))
    assert open_regions(again).fingerprint == opened.regions_fingerprint
    assert len(caption(tmp_path / "run", scenes.parent / "0.png", device="cpu")) == 1
    with pytest.raises(LGDError, match=r"lacks model\.safetensors"):
        open_regions(settings)


def test_boxes_that_are_not_finite_are_refused_as_roialign_crashes_at_them() -> None:
    source = open_regions(DataRegions(2))
    for value in (float("nan"), float("inf")):
        with pytest.raises(LGDError, match="a has boxes that are not finite"):
            source.find(IMAGE, Sample("a", IMAGE, boxes=torch.tensor([[0.0, 0.0, value, 5.0]])))


def features_of_scenes(scenes: Path) -> FeatureTable:
    return stored_features(
        JsonLines(str(scenes)).open(),
        regions=open_regions(GridRegions(1, 2)),
        extract=open_region_features(VISION, seed=0),
        batch_size=2,
        device=torch.device("cpu"),
        ranks=Ranks(),
    )


def test_stored_features_are_hashed_again_only_if_a_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scenes = write_scenes(tmp_path / "scenes", count=3)
    hashed: list[str] = []
    features_of_scenes(scenes)
    time.sleep(2 * verify.MOMENT / 1e9)  # stamps of what was written just now do not count
    monkeypatch.setattr(verify, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    for _ in range(2):
        features_of_scenes(scenes)
    assert sorted(hashed) == sorted(FILES)
    (file,) = (tmp_path / "cache" / "vl").glob("*/features.npy")
    content, before = bytearray(file.read_bytes()), file.stat()
    content[-3] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    features_of_scenes(scenes)
    assert "is damaged, or of an earlier version (features.npy)" in caplog.text


def test_stored_features_that_are_damaged_are_made_again_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = write_scenes(tmp_path / "scenes", count=3)
    first = features_of_scenes(scenes)[0].features.clone()
    (folder,) = (tmp_path / "cache" / "vl").iterdir()
    for name in ("features.npy", "tags.json", "sums.json"):
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 4
        (folder / name).write_bytes(content)
        caplog.clear()
        assert torch.equal(features_of_scenes(scenes)[0].features, first)
        assert "is damaged, or of an earlier version" in caplog.text
    caplog.clear()
    assert torch.equal(features_of_scenes(scenes)[0].features, first)
    assert caplog.text == ""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LGDError, match=r"can't be written .*set LGD_TIMM_CACHE"):
        features_of_scenes(scenes)
