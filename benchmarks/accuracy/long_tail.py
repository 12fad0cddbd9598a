"""`python -m benchmarks.accuracy.long_tail`: a long-tailed draw of labelled shards and of their stored embeddings.

Class k of the training split keeps TAIL^k of its images; the evaluation split is copied as it is. Labels draw the
images and no objective sees them. The draw of CIFAR-10 is what recipes/evidence_cifar10_long_tail.yaml learns from.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import webdataset

from lgd_timm.data import open_shards
from lgd_timm.data.index import INFO, ShardSet, read_info
from lgd_timm.data.stored_embeddings import TEACHER
from lgd_timm.data.subset import draw, keys_by_class
from lgd_timm.data.tar import IndexedTar
from lgd_timm.errors import LGDError
from lgd_timm.utils.files import atomic_folder, sha256_of, write_json

from .refined_targets import TAIL


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.long_tail", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shards", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--embeddings", default="conse_efficientnet_lite0-none-s0-k1-f58c2abd36d1", help="folder in it")
    parser.add_argument("--out", type=Path, default=Path("data/cifar10_long_tail"), help="must not exist")
    arguments = parser.parse_args()
    try:
        print(f"{write(arguments.shards, embeddings=arguments.embeddings, out=arguments.out):,} images")
    except LGDError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def write(shards: Path, *, embeddings: str, out: Path) -> int:
    """Write the draw and its embeddings, in a folder `EMBEDDINGS-long_tail` beside it. Returns: its images.

    Raises:
        LGDError: shards have no labels, or `out` exists.
    """
    if out.exists():
        raise LGDError(f"{out} exists. Remove it, or choose another --out.")
    train = open_shards(shards, split="train")
    chosen = keys_of(train)
    with atomic_folder(out) as temporary:
        sums = _copy(shards, temporary, train, chosen)
        info = read_info(shards)
        info["splits"]["train"] = _entry(info["splits"]["train"], train, chosen, sums)
        write_json(temporary / INFO, info)

        source, target = shards / embeddings, temporary / f"{embeddings}-long_tail"
        target.mkdir()
        taught = read_info(source)
        stored = _copy(source, target, train, chosen)
        taught["splits"]["train"] = _entry(taught["splits"]["train"], train, chosen, stored) | {"taught": sums}
        write_json(target / INFO, taught)
        shutil.copyfile(source / TEACHER, target / TEACHER)
    return len(chosen)


def keys_of(train: ShardSet) -> frozenset[str]:
    """Keys of the images that the draw has."""
    classes = keys_by_class(train)
    drawn = (draw(keys, max(1, round(len(keys) * TAIL**label))) for label, keys in classes.items())
    return frozenset(key for keys in drawn for key in keys)


def _copy(source: Path, target: Path, train: ShardSet, chosen: frozenset[str]) -> list[str]:
    """Copy chosen samples of the training shards, and whole shards of other splits. Returns: sha256 of the first."""
    for path in source.glob("*.tar"):
        if path.name not in train.filenames:
            shutil.copyfile(path, target / path.name)
    for name in train.filenames:
        tar = IndexedTar(source / name)
        with webdataset.TarWriter(str(target / name), mtime=0, user="", group="", encoder=False) as writer:
            for key in filter(chosen.__contains__, tar.keys):
                writer.write({"__key__": key, **{field: tar.read(key, field) for field in tar.samples[key]}})
    return [sha256_of(target / name) for name in train.filenames]


def _entry(entry: Mapping[str, Any], train: ShardSet, chosen: frozenset[str], sums: list[str]) -> dict[str, Any]:
    """The split's entry in `_info.json`, with its new numbers."""
    lengths = [sum(key in chosen for key in IndexedTar(train.path(n)).keys) for n in range(len(train.filenames))]
    counts = {"num_samples": len(chosen), "shard_lengths": lengths, "sha256": sums}
    return {**entry, **{key: value for key, value in counts.items() if key in entry}}


if __name__ == "__main__":
    sys.exit(main())
