"""Five real pictures are learned by heart: labels, loss and score fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm.transfer.recipe import read_transfer
from lgd_timm.transfer.run import transfer
from lgd_timm.transfer.segment import SegmentRecipe
from tests.helpers import ROOT


@pytest.mark.slow  # 30 seconds of a core each
@pytest.mark.timeout(600)
@pytest.mark.parametrize("head", ["{kind: fpn, dropout: 0.0}", "{kind: deeplabv3plus, dropout: 0.0}", "{kind: unet}"])
def test_every_head_learns_real_pictures_by_heart(tmp_path: Path, head: str) -> None:
    """Scored whole, at the labels' own size, where training saw crops of 128 pixels."""
    if not (ROOT / "data/transfer/pets").is_dir():
        pytest.skip("python recipes/prepare/samples.py fetches the pictures")
    overrides = {
        "head": head,
        "data.root": str(ROOT / "data/transfer/pets"),
        "data.short_side": "128",
        "data.crop": "[128, 128]",
    }
    recipe = read_transfer(
        SegmentRecipe,
        ROOT / "recipes/transfer/segment_samples.yaml",
        overrides={**overrides, "schedule.epochs": "40", "run.device": "cpu"},
    )
    scores = transfer("segment", recipe, out=tmp_path / "run")["scores"]
    assert scores["mIoU"] > 95
    assert scores["pixel_accuracy"] > 98
