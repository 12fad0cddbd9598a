"""A subset is a pure function of (seed, keys)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lgd_timm.cli.main import main
from lgd_timm.data import open_shards
from lgd_timm.data.index import ShardSet
from lgd_timm.data.subset import draw, draw_labels, keys_by_class, labelled_keys
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import ShardError

KEYS = [f"class/{i:04d}" for i in range(1000)]

# Written down on the day of the first subsets: who changes this changes what "1 % of ImageNet" is.
DRAWN = ["class/0454", "class/0685", "class/0746"]


def drawn(shards: ShardSet, *, per_class: int, seed: int = 0) -> dict[str, list[str]]:
    """Class -> keys, as a file of it says."""
    subset = draw_labels(*labelled_keys(shards), per_class=per_class, seed=seed, class_names=shards.class_names)
    return {name: list(keys) for name, keys in subset.classes.items()}


def test_a_draw_depends_on_seed_and_keys_alone() -> None:
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    assert draw(shuffled, 50, seed=1) == draw(KEYS, 50, seed=1) == sorted(draw(KEYS, 50, seed=1))
    assert draw(KEYS, 50, seed=1) != draw(KEYS, 50, seed=2)
    assert draw(KEYS, 3) == DRAWN


def test_a_smaller_draw_lies_within_a_larger_one() -> None:
    assert set(draw(KEYS, 13)) < set(draw(KEYS, 128)) < set(draw(KEYS, 1000)) == set(KEYS)


def test_each_key_is_as_likely_as_any_other() -> None:
    counts = dict.fromkeys(KEYS[:20], 0)
    for seed in range(1000):
        for key in draw(KEYS[:20], 5, seed=seed):
            counts[key] += 1
    assert all(190 < count < 310 for count in counts.values())  # 250 expected, standard deviation 14


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ShardError, match=rf"{count} of 1000 images were asked for. Ask for 1 to 1000"):
        draw(KEYS, count)


def test_keys_by_class_are_those_of_the_folders(train_shards: ShardSet) -> None:
    classes = keys_by_class(train_shards)
    assert list(classes) == [0, 1, 2]
    for label, name in enumerate(train_shards.class_names):
        assert sorted(classes[label]) == [f"{name}_-{i:03d}" for i in range(16)]


def test_a_subset_does_not_depend_on_how_the_shards_were_cut(
    train_shards: ShardSet, image_folder: Path, tmp_path: Path
) -> None:
    other = write_shards(image_folder, tmp_path / "other", samples_per_shard=5, seed=3)
    subset = drawn(train_shards, per_class=4)
    assert subset == drawn(other, per_class=4)
    assert {name: len(keys) for name, keys in subset.items()} == {"blue": 4, "green": 4, "red": 4}


def test_the_command_writes_it(shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "subset.json"
    assert main(["shards", "subset", str(shard_folder), str(out), "--per-class", "2", "--seed", "5"]) == 0
    assert json.loads(out.read_text()) == drawn(open_shards(shard_folder, split="train"), per_class=2, seed=5)
    assert "6 images, 2 of each class" in capsys.readouterr().out


def test_too_few_images_and_no_labels_are_said(
    shard_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "subset", str(shard_folder), str(tmp_path / "a.json"), "--per-class", "17"]) == 2
    assert "class 'blue'" in (said := capsys.readouterr().err)
    assert "17 of 16 images were asked for" in said
    write_shards(image_folder, tmp_path / "plain", labels=False)
    assert main(["shards", "subset", str(tmp_path / "plain"), str(tmp_path / "a.json"), "--per-class", "1"]) == 2
    assert "has no label (field cls)" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_a_damaged_shard_is_refused(image_folder: Path, tmp_path: Path) -> None:
    shards = write_shards(image_folder, tmp_path / "cut")
    data = shards.path(0).read_bytes()
    shards.path(0).write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match="is damaged"):
        drawn(shards, per_class=1)
