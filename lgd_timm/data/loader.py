"""Load batches with worker processes and bring them to a device."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Sampler

from ..errors import WorkerError
from ..utils.signals import leave_interrupts_to_parent
from .color import opencv
from .dataset import Batch, Photometry, ShardDataset
from .prefetch import fetching_ahead
from .samplers import Item

T = TypeVar("T")


class WorkerDataLoader(DataLoader[T]):
    """A DataLoader that raises WorkerError when one of its workers dies, wherever the main thread is then.

    Its workers ignore Ctrl-C, after which this process may need a last batch of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": leave_interrupts_to_parent, **options})

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch's type is a private class
        with worker_errors():
            iterator = super().__iter__()
            if self.num_workers:
                _translate_worker_signals()
            yield from iterator


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn torch's RuntimeError about a dead worker into an error that says what to do.

    Raises:
        WorkerError: a worker of a DataLoader died.
    """
    try:
        yield
    except RuntimeError as error:
        if "shared memory" in str(error):
            raise WorkerError(
                "Workers can't put a batch into shared memory: /dev/shm is too small. Make it larger (docker run "
                "--shm-size 8g or --ipc=host; an emptyDir of medium Memory in Kubernetes), or lower the workers, to 0."
            ) from error
        if not str(error).startswith("DataLoader worker"):
            raise
        said = " ".join(str(error).split()).rstrip(".")
        raise WorkerError(
            f"{said}. Memory may have run out: lower data.workers or data.batch_size. "
            "A distillation goes on with --resume."
        ) from error


class _TranslatingHandler:
    """torch's SIGCHLD handler, which raises in the main thread when a worker dies, raising WorkerError instead."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with worker_errors():
            self._handler(number, frame)


def _translate_worker_signals() -> None:
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _TranslatingHandler):
        signal.signal(signal.SIGCHLD, _TranslatingHandler(handler))


def loader(dataset: ShardDataset, sampler: Sampler[list[Item]], *, workers: int = 0) -> WorkerDataLoader[Batch]:
    """Load batches with worker processes. What an epoch reads next at an address is fetched meanwhile.

    Args:
        dataset: takes a list of items and gives a Batch.
        sampler: the items of each batch.
        workers: processes that read and decode; 0: this one does.
    """
    if workers:
        opencv()  # imported once, and without threads, before the workers are forked
    return WorkerDataLoader(
        dataset,
        batch_sampler=fetching_ahead(sampler, dataset.shards, dataset.stored),
        collate_fn=_identity,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # else drawing the workers' seed would advance the global generator (dropout)
    )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to a device. On CUDA a second stream copies the next one, and changes its colours, meanwhile."""
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


def _identity(batch: Any) -> Any:
    return batch


def start_worker(_: int) -> None:
    """Prepare a worker process: one thread, a low priority, and deaf to Ctrl-C."""
    leave_interrupts_to_parent()
    torch.set_num_threads(1)  # the workers are the parallelism: more threads would compete for the same cores
    if hasattr(os, "nice"):  # the step goes first: its threads wait for the slowest, which shares a core with a worker
        os.nice(10)


def color_device(photometry: Photometry | Literal["auto"], device: torch.device) -> Photometry:
    """Resolve "auto": colour operations run on an accelerator, which is far faster at them, else in the workers."""
    if photometry == "auto":
        return "worker" if device.type == "cpu" else "device"
    return photometry
