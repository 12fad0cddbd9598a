#!/usr/bin/env python3
"""Makes recipes/cifar10_small, the real data that the repository carries: a stratified part of CIFAR-10, taught once.

python recipes/prepare/cifar10.py && python recipes/prepare/quickstart_data.py

train: 4,000 images without labels, with 2 views' ConSE embeddings      val: 1,000 labelled images, with 1 plain view's
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from lgd_timm.config.reader import read_recipe, read_teach_recipe
from lgd_timm.data import open_shards
from lgd_timm.data.index import ShardSet
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.data.writer import write_shards
from lgd_timm.teachers import Stored
from lgd_timm.teachers.text_bank import encode_vocabulary, save_bank, text_bank_name
from lgd_timm.training.teach import teach_recipe

RECIPES = Path(__file__).resolve().parents[1]
OUT = RECIPES / "cifar10_small"


def main() -> None:
    if OUT.exists():
        sys.exit(f"{OUT} exists; remove it first.")
    with tempfile.TemporaryDirectory() as scratch:
        for split, per_class in (("train", 400), ("val", 100)):
            shards = open_shards("data/cifar10", split=split)
            folder = Path(scratch) / split
            pick(shards, folder, per_class=per_class, labels=split == "val")
            write_shards(folder, OUT, split=split, samples_per_shard=2000)
    for split, views in (("train", {"views.augmentation": "light", "views.count": 2}), ("val", {})):
        recipe = read_teach_recipe(
            RECIPES / "teach_conse_cifar10.yaml", overrides={"shards": str(OUT), "split": split, **views}
        )
        stored = teach_recipe(recipe)
        vocabulary = load_vocabulary(read_recipe(RECIPES / "cifar10_conse_mobilenetv2.yaml").vocabulary.source)
        assert not isinstance(recipe.teacher, Stored)
        text = recipe.teacher.text()
        save_bank(
            stored.root / "text" / text_bank_name(text.fingerprint, vocabulary), encode_vocabulary(text, vocabulary)
        )
        print(stored.root)


def pick(shards: ShardSet, out: Path, *, per_class: int, labels: bool) -> None:
    """The first `per_class` images of each class, as files; without `labels` their names say nothing of the class."""
    seen: Counter[int] = Counter()
    for shard in range(len(shards.filenames)):
        tar = IndexedTar(shards.path(shard))
        for key in tar.keys:
            label = int(tar.read(key, "cls"))
            if seen[label] < per_class:
                seen[label] += 1
                path = out / (shards.class_names[label] if labels else "") / f"{key.rpartition('-')[2]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.read(key, "png"))
    assert set(seen.values()) == {per_class}, seen


if __name__ == "__main__":
    main()
