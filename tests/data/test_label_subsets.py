"""Subsets of the labels: balanced, nested, the same whatever the order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lgd_timm.data import Views
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.index import ShardSet
from lgd_timm.data.subset import labelled_keys, positions
from lgd_timm.errors import ShardError
from lgd_timm.evaluate import draw_labels, read_subset

KEYS = [f"key{i}" for i in range(300)]
LABELS = torch.tensor([0] * 200 + [1] * 99 + [2])


def test_each_class_gives_its_share_and_at_least_one() -> None:
    subset = draw_labels(KEYS, LABELS, fraction=0.1)
    assert {name: len(keys) for name, keys in subset.classes.items()} == {"0": 20, "1": 10, "2": 1}
    assert len(subset) == 31
    assert subset.rule == "10 % of each class, seed 0"
    label_of = dict(zip(KEYS, LABELS.tolist(), strict=True))
    assert all(label_of[key] == int(name) for name, keys in subset.classes.items() for key in keys)
    assert len(draw_labels(KEYS[:299], LABELS[:299], per_class=7)) == 14


def test_order_does_not_matter_and_the_seed_does() -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    shuffled = draw_labels([KEYS[i] for i in order], LABELS[order], fraction=0.1)
    subset = draw_labels(KEYS, LABELS, fraction=0.1)
    assert shuffled == subset
    assert shuffled.fingerprint == subset.fingerprint
    assert draw_labels(KEYS, LABELS, fraction=0.1, seed=1).fingerprint != subset.fingerprint


def test_a_smaller_one_lies_within_a_larger() -> None:
    one, ten = (draw_labels(KEYS, LABELS, fraction=fraction).keys for fraction in (0.01, 0.1))
    assert one < ten < draw_labels(KEYS, LABELS, fraction=1.0).keys


def test_it_is_written_and_read(tmp_path: Path) -> None:
    subset = draw_labels(KEYS, LABELS, fraction=0.1)
    subset.write(tmp_path / "ten.json")
    again = read_subset(tmp_path / "ten.json")
    assert (again.keys, again.fingerprint, again.rule) == (subset.keys, subset.fingerprint, "the keys of ten.json")


def test_positions_are_where_the_images_stand(train_shards: ShardSet, tmp_path: Path) -> None:
    draw_labels(*labelled_keys(train_shards), per_class=5).write(tmp_path / "five.json")  # the command's file
    subset = read_subset(tmp_path / "five.json")
    places = positions(train_shards, subset)
    assert len(places) == 15
    assert places == sorted(places)
    batch = ShardDataset(train_shards, views=Views(size=32, augmentation="none")).__getitems__(
        [(place, 0) for place in places]
    )
    assert set(batch.keys) == subset.keys
    assert torch.bincount(batch.labels).tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give one of them"),
        ({"fraction": 0.1, "per_class": 1}, "Give one of them"),
        ({"fraction": 0.0}, "above 0, at most 1"),
        ({"fraction": 1.1}, "above 0, at most 1"),
        ({"per_class": 2}, "class 2: 2 of 1 images were asked for"),
        ({"per_class": 0}, "class 0: 0 of 200 images"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        draw_labels(KEYS, LABELS, **options)  # type: ignore[arg-type]


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(ShardError, match="images without a label"):
        draw_labels(KEYS, LABELS - 1, fraction=0.1)


@pytest.mark.parametrize("content", [None, "[", "[]", "{}", '{"a": "bc"}', '{"a": [1]}'])
def test_other_files_are_refused(content: str | None, tmp_path: Path, train_shards: ShardSet) -> None:
    if content is not None:
        (tmp_path / "subset.json").write_text(content)
    with pytest.raises(ShardError, match=r"subset\.json can't be read as a subset"):
        read_subset(tmp_path / "subset.json")
    (tmp_path / "strange.json").write_text('{"a": ["stranger"]}')
    with pytest.raises(ShardError, match=r"\(train\) lacks 1 of the subset's 1 keys, first 'stranger'"):
        positions(train_shards, read_subset(tmp_path / "strange.json"))
