"""Load batches with worker processes and bring them to a device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Sampler

from .dataset import Batch, Photometry, ShardDataset
from .samplers import Item


def loader(dataset: ShardDataset, sampler: Sampler[list[Item]], *, workers: int = 0) -> DataLoader:
    """A DataLoader of Batches. Workers persist for the whole walk; uint8 crosses the process border."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_be_modest,
        generator=torch.Generator(),  # of its own: the workers' seed must not move the global generator, on which dropout draws
    )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches moved to a device. On CUDA the next one is copied and coloured on a stream of its own while this one is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    side = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            following = batch.to(device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(side)
        following.record_stream(torch.cuda.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead


def _as_is(batch: Any) -> Any:
    return batch


def _be_modest(_: int) -> None:
    """A worker's start."""
    torch.set_num_threads(1)  # workers are the parallelism; more threads would only fight
    if hasattr(
        os, "nice"
    ):  # while the queue is full the step goes first: a core shared evenly would keep all its threads waiting
        os.nice(10)


def place_photometry(place: Photometry | Literal["auto"], device: torch.device) -> Photometry:
    """Where colours are best changed: an accelerator does a batch in the time that a worker needs for an image."""
    if place == "auto":
        return "worker" if device.type == "cpu" else "device"
    return place
