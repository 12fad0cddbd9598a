"""What the benchmarks ask of a teacher: its stored embeddings of images, and those of bare names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.data import ShardSet
from lgd_timm.data.stored_embeddings import StoredEmbeddings
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.vocabulary import Vocabulary
from lgd_timm.teachers import spec_from_dict
from lgd_timm.teachers.base import TextTeacher
from lgd_timm.teachers.text_bank import text_bank


def read_embeddings(shards: ShardSet, stored: StoredEmbeddings) -> tuple[Tensor, Tensor]:
    """View 0 of every image: unit rows [N, D]; and labels int64 [N], -1 where there is none."""
    rows, labels = [], []
    for shard, name in enumerate(shards.filenames):
        tar = IndexedTar(shards.path(shard))
        rows.extend(stored.read(name, key, 0) for key in tar.keys)
        labels.extend(int(tar.read(key, "cls")) if "cls" in tar.samples[key] else -1 for key in tar.keys)
    return normalize(torch.from_numpy(np.stack(rows)).float(), dim=1), torch.tensor(labels)


def names_bank(text: TextTeacher, names: Sequence[str]) -> Tensor:
    """Embed bare names, without templates: unit rows [C, D]."""
    return text_bank(_bare(names), text_fingerprint=text.fingerprint, text=lambda: text)


def stored_names_bank(stored: StoredEmbeddings, names: Sequence[str]) -> Tensor:
    """Embed bare names as the teacher of stored embeddings does, which is loaded for names alone that no file has."""
    return text_bank(
        _bare(names),
        text_fingerprint=stored.metadata["text_fingerprint"],
        text=spec_from_dict(stored.metadata["teacher"]).text,
        folders=[stored.root / "text"],
    )


def _bare(names: Sequence[str]) -> Vocabulary:
    return Vocabulary(tuple(names), ("{}",))
