"""Teachers for the rows that need one, and row `teach`: `lgd-timm teach` over its teacher alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from lgd_timm.data import Views
from lgd_timm.data.index import ShardSet
from lgd_timm.data.preprocess import Preprocess
from lgd_timm.data.stored_embeddings import StoredEmbeddings
from lgd_timm.data.vocabulary import Vocabulary, load_vocabulary
from lgd_timm.teachers import ImageTeacher, OpenCLIP
from lgd_timm.teachers.text_bank import save_bank, text_bank_name
from lgd_timm.training.teach import teach

from ..settings import Settings
from .pairs import Row, Side, measure, seconds
from .photographs import photographs

DIM = 1024  # of CLIP RN50
NAMES = [f"name {i}" for i in range(1000)]
ONLINE = {"kind": "open_clip", "model": "RN50", "pretrained": "random"}


class StandIn(ImageTeacher):
    """Embeddings of the right shape in no time: what is stored is read equally fast whoever taught it."""

    def __init__(self) -> None:
        super().__init__(Preprocess(size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
        self.name, self.embed_dim, self.fingerprint = "stand_in", DIM, "0" * 16
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.projection = nn.Linear(3 * 8 * 8, DIM)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.projection(adaptive_avg_pool2d(inputs, 8).flatten(1))


def online_teacher(device: torch.device) -> ImageTeacher:
    """An RN50 tower with random weights; in half precision on an accelerator, as the recipes have it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        precision = "fp16" if device.type == "cuda" else "fp32"
        return OpenCLIP(ONLINE["model"], ONLINE["pretrained"], precision=precision).image().to(device)


def stored_teaching(shards: ShardSet, views: Views, *, workers: int) -> StoredEmbeddings:
    """Embeddings of the views and a bank of 1,000 names, beside the shards."""
    stored = teach(StandIn().freeze(), shards, spec=ONLINE, text_fingerprint="stand_in", views=views, workers=workers)
    path = stored.root / "text" / text_bank_name("stand_in", names())
    if not path.exists():
        save_bank(path, bank(len(NAMES)))
    return stored


def names() -> Vocabulary:
    return load_vocabulary(NAMES, templates="none")


def bank(size: int) -> Tensor:
    """Random unit rows."""
    return normalize(torch.randn(size, DIM, generator=torch.Generator().manual_seed(0)), dim=1)


def rows(settings: Settings) -> Iterator[Row]:
    """Row `teach`. Each round teaches into an empty folder.

    Reading, rendering, workers' start, writing and checking are included.
    """
    shards = photographs(settings.photographs)
    if settings.device.type == "cpu":  # one shard of them is enough to do
        shards = replace(shards, filenames=shards.filenames[:1], lengths=shards.lengths[:1], sha256=shards.sha256[:1])
    views, batch = Views(size=settings.size, count=2), settings.batch_size
    teacher = online_teacher(settings.device).to(memory_format=torch.channels_last)  # as `teach` has it
    images = torch.randint(0, 256, (batch, 3, views.size, views.size), dtype=torch.uint8, device=settings.device)
    total = len(shards) * views.count

    def taught() -> float:
        with tempfile.TemporaryDirectory() as folder:
            into = partial(
                teach, teacher, shards, views=views, out=Path(folder) / "out", spec=ONLINE, text_fingerprint="stand_in"
            )
            return total / seconds(
                lambda: into(batch_size=batch, workers=settings.workers, device=settings.device), device=settings.device
            )

    def bare() -> float:
        return batch / seconds(lambda: teacher(images), calls=max(1, total // batch), device=settings.device)

    name = f"teach: RN50, {len(shards)} images x 2 views, {settings.where}"
    yield measure(
        name,
        Side("teach", taught),
        Side("teacher's forward alone", bare),
        unit="images/s",
        rounds=settings.rounds,
    )
