"""Views kept in memory are those that would be rendered, each rendered once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lgd_timm.config.recipe import DataRecipe
from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import Batch, ShardDataset
from lgd_timm.data.in_memory import in_memory
from lgd_timm.errors import RecipeError, ShardError

VIEWS = Views(size=16, augmentation="mocov2", count=2)
ITEMS = [(5, 0), (40, 1), (5, 1), (5, 0)]


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and (one.keys, one.bad) == (other.keys, other.bad)
    )


def test_they_are_those_that_would_be_rendered(shard_folder: Path) -> None:
    plain = ShardDataset(open_shards(shard_folder, split="train"), views=VIEWS)
    kept = in_memory(plain)
    assert len(kept) == len(plain)
    for _ in range(2):
        assert same(kept.__getitems__(ITEMS), plain.__getitems__(ITEMS))


def test_each_is_rendered_once_for_all_datasets_of_equal_content(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    render = Views.crop_and_resize
    monkeypatch.setattr(Views, "crop_and_resize", lambda self, *rest: rendered.append(self) or render(self, *rest))
    views = Views(size=17, augmentation="mocov2", count=2)  # of no other test
    for _ in range(2):
        in_memory(ShardDataset(open_shards(shard_folder, split="train"), views=views)).__getitems__(ITEMS)
    assert len(rendered) == 3
    in_memory(
        ShardDataset(
            open_shards(shard_folder, split="train"), views=Views(size=17, augmentation="mocov2", count=2, seed=1)
        )
    ).__getitems__(ITEMS)
    assert len(rendered) == 6, "other views are other pixels"


def test_a_bad_sample_is_left_out_and_named_each_time(shard_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "colours"
    shutil.copytree(shard_folder, broken)
    tar = sorted(broken.glob("*train*.tar"))[0]
    content = tar.read_bytes()
    position = content.index(b"\xff\xd8\xff")  # the first JPEG
    tar.write_bytes(content[:position] + b"\0" * 64 + content[position + 64 :])
    plain = ShardDataset(open_shards(broken, split="train"), views=VIEWS)
    items = [(position, 0) for position in range(16)]
    expected = plain.__getitems__(items)
    assert len(expected.bad) == 1, "one image of the shard was damaged"
    kept = in_memory(plain)
    for _ in range(2):
        assert same(kept.__getitems__(items), expected)
    bad = [item for item in items if plain.__getitems__([item, (20, 0)]).bad]
    with pytest.raises(ShardError, match="All 1 samples of a batch are bad"):
        kept.__getitems__(bad)
    assert kept.allow_empty is False


def test_colours_left_to_a_device_and_workers_are_refused(shard_folder: Path) -> None:
    with pytest.raises(ShardError, match=r"run\.photometry worker"):
        in_memory(ShardDataset(open_shards(shard_folder, split="train"), views=VIEWS, photometry="device"))
    with pytest.raises(RecipeError, match=r"Set data\.workers 0"):
        DataRecipe(in_memory=True, workers=1)
