"""Measure a published student: zero-shot of the whole test split, k-NN and a linear probe with one shard's labels."""

from __future__ import annotations

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
from lgd_timm.publish.metrics import read_metrics


def measure(published: Path, recipe: Recipe) -> dict[str, Any]:
    """Top-1 in percent. Probe and neighbours know the labels of the first training shard, a tenth of CIFAR-10."""
    model = find_model(str(published))
    data, metrics = recipe.data, read_metrics(published)
    splits = {data.train_split: first_shard(open_shards(data.shards, split=data.train_split))}
    assert data.val_split is not None
    splits[data.val_split] = open_shards(data.shards, split=data.val_split)
    datasets = {
        split: in_memory(ShardDataset(shards, views=model.views, allow_empty=True)) for split, shards in splits.items()
    }
    splits = FeatureSplits(model, data.shards, data.train_split, data.val_split, datasets, cache=False)
    return {
        "zero_shot": metrics["zero_shot"]["top1"],
        "teacher_zero_shot": metrics["teacher_zero_shot"]["top1"],
        "knn": knn(splits.train, splits.test, k=min(20, len(splits.train))).top1,
        "linear_probe": linear_probe(splits.train, splits.test).top1,
        "probe_labels": len(splits.train),
    }


def first_shard(shards: ShardSet) -> ShardSet:
    return replace(shards, filenames=shards.filenames[:1], lengths=shards.lengths[:1], sha256=shards.sha256[:1])
