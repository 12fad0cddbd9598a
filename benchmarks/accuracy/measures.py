"""Measure a published student: zero-shot of the whole test split, k-NN and a linear probe with one shard's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lgd_timm.config.recipe import Recipe
from lgd_timm.data import ShardSet, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.in_memory import in_memory
from lgd_timm.evaluate.feature_splits import FeatureSplits
from lgd_timm.evaluate.knn import knn
from lgd_timm.evaluate.linear_probe import linear_probe
from lgd_timm.evaluate.models import find_model
from lgd_timm.evaluate.zero_shot_model import evaluate_zero_shot
from lgd_timm.publish.metrics import read_metrics


def measure(published: Path, recipe: Recipe, *, elsewhere: Sequence[Path] = ()) -> dict[str, Any]:
    """Measure top-1 in percent. Probe and neighbours know the labels of the first training shard, a tenth of all.

    Args:
        published: folder of the student.
        recipe: what it was distilled by.
        elsewhere: folders of other labelled images (split val, and names.txt) to be scored on zero-shot.
    """
    model = find_model(str(published))
    data, metrics = recipe.data, read_metrics(published)
    splits = {data.train_split: first_shard(open_shards(data.shards, split=data.train_split))}
    assert data.val_split is not None
    splits[data.val_split] = open_shards(data.shards, split=data.val_split)
    datasets = {
        split: in_memory(ShardDataset(shards, views=model.views, allow_empty=True)) for split, shards in splits.items()
    }
    features = FeatureSplits(model, data.shards, data.train_split, data.val_split, datasets, cache=False)
    return {
        "zero_shot": metrics["zero_shot"]["top1"],
        "teacher_zero_shot": metrics["teacher_zero_shot"]["top1"],
        "knn": knn(features.train, features.test, k=min(20, len(features.train))).top1,
        "linear_probe": linear_probe(features.train, features.test).top1,
        "probe_labels": len(features.train),
        **{key: value for folder in elsewhere for key, value in zero_shot_elsewhere(published, folder).items()},
    }


def zero_shot_elsewhere(published: Path, folder: Path) -> dict[str, float]:
    """Top-1 on images of another source, by their own names, and the mean over classes, which may differ in size."""
    scores = evaluate_zero_shot(str(published), data=folder, vocabulary=str(folder / "names.txt"), device="cpu")
    student = scores["student"]
    assert student is not None
    per_class = list(student.per_class.values())
    return {folder.name: student.top1, f"{folder.name}_class_mean": sum(per_class) / len(per_class)}


def first_shard(shards: ShardSet) -> ShardSet:
    return replace(shards, filenames=shards.filenames[:1], lengths=shards.lengths[:1], sha256=shards.sha256[:1])
