"""Extract a frozen model's pooled features of a split, and a student's embeddings; cache them on the disk.

A cache file in `settings.cache_folder()/features` is named after all that determines its content: weights and
architecture, preprocessing, images, views. The device does not count, though rounding differs between devices.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import BadSamples, ShardDataset
from ..data.loader import loader
from ..data.samplers import SequentialSampler
from ..data.stored_embeddings import find_stored
from ..errors import LGDError, ShardError, WeightsError
from ..settings import cache_folder
from ..students.model import Student
from ..teachers.base import module_fingerprint
from ..utils.files import fingerprint
from ..utils.summed_tensors import Damaged, load_summed, save_summed
from ..utils.typed_json import JSONError, parse_json
from .models import Backbone
from .zero_shot import progress

log = logging.getLogger(__name__)

VERSION = 1  # of the cache files; raise it when the same fingerprint would name another content


@dataclass(frozen=True)
class Features:
    """Features of a split: one row for each image that could be read, in the order of the shards.

    Attributes:
        features: float32 [N, F], pooled, before the classifier.
        labels: int64 [N], -1 where an image has none.
        keys: of the N images.
        embeddings: float32 [N, D] of a student, in its teacher's space, before L2 normalisation; else None.
        bad: (key, reason) of the images that could not be read.
        name: of the images, for messages.
    """

    features: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    embeddings: Tensor | None = None
    bad: tuple[tuple[str, str], ...] = ()
    name: str = "features"

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: Tensor) -> Features:
        """Select rows, int64 [M]."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        keys = tuple(self.keys[row] for row in rows.tolist())
        return replace(self, features=self.features[rows], labels=self.labels[rows], keys=keys, embeddings=embeddings)

    def only(self, keys: Collection[str]) -> Features:
        """Select the images with these keys, in the order of the rows; unknown keys (of bad images) are ignored."""
        wanted = set(keys)
        return self.at(torch.tensor([row for row, key in enumerate(self.keys) if key in wanted], dtype=torch.int64))

    def check_labels(self) -> None:
        """Check that each image has a label. Raises: ShardError where one has none, or there is no image."""
        if not len(self) or self.labels.min() < 0:
            raise ShardError(
                f"{self.name} has images without a label, or no image; this evaluation needs field cls of each."
            )


def class_count(*splits: Features) -> int:
    """Count the classes of splits: the largest label plus 1. Raises: ShardError, as `Features.check_labels`."""
    for split in splits:
        split.check_labels()
    return 1 + max(int(split.labels.max()) for split in splits)


def features_fingerprint(network: Backbone | Student, dataset: ShardDataset) -> str:
    """Name what `extract` would give with 16 hexadecimal digits."""
    preprocess, views = network.preprocess, replace(dataset.views, count=1, seed=0)  # unaugmented views draw nothing
    facts = (
        preprocess.size,
        preprocess.mean.flatten().tolist(),
        preprocess.std.flatten().tolist(),
        preprocess.interpolation,
    )
    weights = module_fingerprint(network, repr(network))  # with the layers, as the same weights may serve other ones
    return fingerprint(VERSION, weights, facts, dataset.shards.fingerprint, dataset.shards.split, views.fingerprint)


def extract(
    network: Backbone | Student,
    dataset: ShardDataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad: float = 0.001,
    cache: bool = True,
) -> Features:
    """Extract the features of every image of a dataset, or read them from the cache.

    Args:
        network: gives features; it is moved to `device` and set to eval mode.
        dataset: unaugmented images. Shards without sha256 sums, as timm writes them, are never cached, since nothing
            tells whether they have changed.
        batch_size: images a step.
        workers: processes that load images; 0: this one.
        device: where the network runs.
        max_bad: share of the images that may be unreadable.
        cache: read and write the cache.

    Returns:
        The features on the CPU.

    Raises:
        LGDError: views are augmented, or the model's features are not pooled.
        ShardError: too many images can't be read.
    """
    if dataset.views.augmentation != "none":
        raise LGDError(
            f"Features are those of unaugmented views, not of views.augmentation {dataset.views.augmentation!r}."
        )
    name = f"{dataset.shards.root} ({dataset.shards.split})"
    path = cache_folder() / "features" / f"{features_fingerprint(network, dataset)}.safetensors"
    cache = cache and bool(dataset.shards.sha256)
    if cache and (cached := _cached(path)) is not None:
        found = replace(cached, name=name)
        BadSamples(max_bad, size=len(dataset)).add(found.bad)
        _check_finite(found.features, network)
        return found
    features = _extract(
        network,
        dataset,
        name=name,
        batch_size=batch_size,
        workers=workers,
        device=torch.device(device),
        max_bad=max_bad,
    )
    local = isinstance(dataset.shards.root, Path)
    if cache and (local or not features.bad):  # an image that a server failed to give may come the next time
        try:
            _write(path, features)
        except (OSError, WeightsError) as error:  # what is kept for the next time only is no reason to lose the work
            log.warning(
                "%s can't be written (%s), so features are extracted anew next time. Set LGD_TIMM_CACHE.", path, error
            )
    return features


@torch.no_grad()
def _extract(
    network: Backbone | Student,
    dataset: ShardDataset,
    *,
    name: str,
    batch_size: int,
    workers: int,
    device: torch.device,
    max_bad: float,
) -> Features:
    network.to(device).to(memory_format=torch.channels_last).eval()  # on a CPU convolutions take half the time so
    bad = BadSamples(max_bad, size=len(dataset))
    rows: list[Tensor] = []
    embeddings: list[Tensor] = []
    labels: list[Tensor] = []
    keys: list[str] = []
    batches = loader(dataset, SequentialSampler(range(len(dataset)), batch_size), workers=workers)
    for batch in progress(batches, f"features of {dataset.shards.split}", len(dataset)):
        bad.add(batch.bad)
        if not batch.keys:
            continue
        features = network.features(batch.to(device).images)
        if features.ndim != 2:
            raise LGDError(
                f"The model gives features of shape {list(features.shape)}, not pooled ones [B, F]. Choose a pooling "
                "model."
            )
        rows.append(features.float().cpu())
        _check_finite(rows[-1], network)
        if isinstance(network, Student):
            embeddings.append(network.projector(features).float().cpu())
        labels.append(batch.labels)
        keys.extend(batch.keys)
    if not rows:
        raise ShardError(f"{name} has no image that can be read. Check the shards.")
    return Features(
        torch.cat(rows),
        torch.cat(labels),
        tuple(keys),
        torch.cat(embeddings) if embeddings else None,
        tuple(bad.reasons.items()),
        name,
    )


def _check_finite(features: Tensor, network: Backbone | Student) -> None:
    """Refuse features that no score can be made of. Raises: WeightsError."""
    if features.isfinite().all():
        return
    wrong = [key for key, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    because = f"its weights hold values that are not finite, in {', '.join(wrong[:3])}" if wrong else "they overflow"
    raise WeightsError(
        f"The model's features are not finite (NaN or infinite): {because}. Its training diverged, or the file is "
        "damaged: take an earlier checkpoint."
    )


def _write(path: Path, features: Features) -> None:
    names = {"keys": features.keys, "bad": features.bad}
    tensors = {"features": features.features, "labels": features.labels, "names": _bytes(json.dumps(names))}
    if features.embeddings is not None:
        tensors["embeddings"] = features.embeddings
    save_summed(path, tensors)


class _Names(TypedDict):
    keys: list[str]
    bad: list[tuple[str, str]]


def _cached(path: Path) -> Features | None:
    """Read a cache file that may be there; None where it is not, or is damaged and has to be made again."""
    if not os.path.isfile(path):
        return None
    try:
        tensors = load_summed(path)
        names = parse_json(bytes(tensors["names"].numpy()), _Names)
        return Features(
            tensors["features"],
            tensors["labels"],
            tuple(names["keys"]),
            tensors.get("embeddings"),
            tuple(names["bad"]),
        )
    except (Damaged, KeyError, JSONError) as error:
        log.warning("%s is damaged, or of an earlier version (%s): features are extracted anew", path, error)
        return None


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def stored_features(features: Features, dataset: ShardDataset, *, teacher: str | None) -> Features | None:
    """Read a teacher's stored embeddings of the same images; no image is opened.

    Args:
        features: of the images.
        dataset: that they are of.
        teacher: the teacher's fingerprint; None: it is not known.

    Returns:
        The same labels and keys, with the embeddings of unaugmented views, float32 [N, D] of length 1, as `features`
        and `embeddings`. None where no embeddings are stored.

    Raises:
        ShardError: an image has no stored embedding.
    """
    stored = None if teacher is None else find_stored(dataset.shards, views=None, teacher=teacher)
    if stored is None:
        return None
    file_of = {key: filename for filename in dataset.shards.filenames for key in stored.tar(filename).keys}
    missing = [key for key in features.keys if key not in file_of]
    if missing:
        raise ShardError(
            f"{stored.root} holds no embedding of {len(missing)} images, first {missing[0]!r}. Run lgd-timm teach "
            "again."
        )
    embeddings = torch.from_numpy(np.stack([stored.read(file_of[key], key, 0) for key in features.keys])).float()
    return replace(features, features=embeddings, embeddings=embeddings)
