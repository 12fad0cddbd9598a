"""A disk that is full.

One clear error from every command that writes, nothing half-written, and the command goes on when there is room.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lgd_timm import cli
from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.data import open_shards
from lgd_timm.utils.checkpoint import all_checkpoints
from tests.helpers.runs import assert_bit_equal, last_checkpoint, merge, run
from tests.helpers.small_disk import small_disk

Dict = dict[str, Any]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB."""
    with small_disk(tmp_path / "disk", size="32m") as folder:
        yield folder


def fill(disk: Path, *, leave: int) -> Path:
    """A file that takes all room but some bytes."""
    filler = disk / "filler"
    filler.write_bytes(bytes(32 * 2**20 - leave - used(disk)))
    return filler


def used(disk: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in disk.rglob("*") if path.is_file())


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> None:
    """The command ends with status 2 and one line of error, which says that the disk is full."""
    assert cli.main([str(word) for word in words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lgd-timm: error")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0] or "the disk is full" in errors[0]


def test_shards(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)):
        (images / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(images / f"{number % 3}" / f"{number}.png")
    filler = fill(disk, leave=100_000)
    words = ("shards", "write", images, disk / "out", "--samples-per-shard", 50)
    fails(capsys, *words)
    assert names(disk) == {"filler"}
    filler.unlink()
    assert cli.main([str(word) for word in words]) == 0
    assert len(open_shards(disk / "out", split="train")) == 300


def test_sidecars_of_a_teacher(
    disk: Path, recipe_dict: Dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lesson = {
        "teacher": recipe_dict["teacher"],
        "views": recipe_dict["views"],
        "shards": recipe_dict["data"]["shards"],
        "device": "cpu",
    }
    (tmp_path / "teach.yaml").write_text(yaml.safe_dump(lesson))
    filler = fill(disk, leave=40_000)  # for one sidecar and a half
    words = ("teach", tmp_path / "teach.yaml", "--out", disk / "taught")
    fails(capsys, *words)
    left = names(disk / "taught")
    assert len([name for name in left if name.endswith(".tar")]) == 1
    assert "_info.json" not in left
    assert not [name for name in left if Path(name).name.startswith(".")]
    filler.unlink()
    assert cli.main([str(word) for word in words]) == 0
    assert cli.main(["teach", str(tmp_path / "teach.yaml"), "--out", str(tmp_path / "elsewhere")]) == 0
    taught, elsewhere = (sorted(folder.glob("*.tar")) for folder in (disk / "taught", tmp_path / "elsewhere"))
    assert [path.read_bytes() for path in taught] == [path.read_bytes() for path in elsewhere]


def test_checkpoints(disk: Path, recipe_dict: Dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = merge(
        recipe_dict, {"run": {"checkpoint_minutes": 0.0, "keep_checkpoints": 1}, "data": {"val_split": None}}
    )
    run(recipe, tmp_path / "whole")
    one = used(all_checkpoints(tmp_path / "whole" / "checkpoints")[-1])
    filler = fill(disk, leave=one + one // 2)  # room for the first, and half of the second
    (tmp_path / "recipe.yaml").write_text(recipe_from_dict(recipe).to_yaml())
    fails(capsys, "distill", tmp_path / "recipe.yaml", "--output", disk / "run")
    assert [path.name for path in all_checkpoints(disk / "run" / "checkpoints")] == ["step-00000001"]
    assert not list((disk / "run" / "checkpoints").glob(".*"))
    filler.unlink()
    run(recipe, disk / "run", resume=True)
    assert_bit_equal(last_checkpoint(disk / "run"), last_checkpoint(tmp_path / "whole"))


def test_what_is_published(disk: Path, recipe_dict: Dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe_dict, tmp_path / "run")
    fill(disk, leave=64 * 1024)
    fails(capsys, "save", tmp_path / "run", disk / "published")
    assert names(disk) == {"filler"}
