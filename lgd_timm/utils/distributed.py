"""Everything about ranks: start them, share work out, gather results, and exchange short messages at every step."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from ..errors import LGDError
from .signals import NAMES

SCHEME = "lgd"  # of the rendezvous's URL
POLL_SECONDS = 0.02

Bad = Sequence[tuple[str, str]]  # samples that could not be read: (key, reason)
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank, how many ranks there are, and their process group for short messages."""

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> Ranks:
        """Make the ranks of torch.distributed, or one rank where it was not initialised.

        Every rank has to call this.
        """
        if not dist.is_initialized():
            return cls()
        # gloo on any device, as messages are small; and a rank may wait longer for others than NCCL's ten minutes.
        group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and reports."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Return this rank's share: every `world_size`-th item.

        Shares differ by one at most; rank 0 has the largest.
        """
        return items[self.rank :: self.world_size]

    def gather(self, mine: Mapping[int, T]) -> dict[int, T]:
        """Merge the dictionaries of all ranks, sorted by key, equal on each rank. Waits for all ranks."""
        parts: list[Any] = [mine]
        if self.group is not None:
            parts = [None] * self.world_size
            dist.all_gather_object(parts, mine, group=self.group)
        return dict(sorted(entry for part in parts for entry in part.items()))

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        self.gather({})


class StepMessages(NamedTuple):
    """The messages of all ranks: the signal by which one was told to stop (0: none), and samples that can't be read."""

    stop: int = 0
    bad: Bad = ()


class _Sent(NamedTuple):
    """An all-reduce that is on its way: sums int64 [3]: ranks that got each signal, and bad samples."""

    sums: Tensor
    work: Any
    bad: Bad


class StepSync:
    """Exchange messages between ranks at every step, without waiting for them.

    The all-reduce of a step runs while the step is taken, and its result is read at the next step. So all ranks get the
    same messages at the same step: they stop together, and each names and counts the bad samples of all. One process
    gets its own messages at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent: _Sent | None = None

    def exchange(self, *, stop: int = 0, bad: Bad = ()) -> StepMessages:
        """Send this rank's messages, and return what all ranks sent a step before.

        Every rank has to call this equally often.
        """
        if self._ranks.world_size == 1:
            return StepMessages(stop, tuple(bad))
        received = self.flush()
        sums = torch.tensor([*(stop == number for number in NAMES), len(bad)], dtype=torch.int64)
        self._sent = _Sent(sums, dist.all_reduce(sums, group=self._ranks.group, async_op=True), tuple(bad))
        return received

    def flush(self) -> StepMessages:
        """Return what all ranks sent last, if it was not returned yet. Every rank has to call this."""
        sent, self._sent = self._sent, None
        if sent is None:
            return StepMessages()
        sent.work.wait()
        *stops, count = sent.sums.tolist()
        stop = next((int(number) for number, ranks in zip(NAMES, stops, strict=True) if ranks), 0)
        if not count:
            return StepMessages(stop)
        everyone = self._ranks.gather({self._ranks.rank: sent.bad})
        return StepMessages(stop, tuple(entry for bad in everyone.values() for entry in bad))


def init_distributed(device: str) -> str:
    """Initialise torch.distributed, if torchrun or Slurm started several processes.

    Returns:
        This rank's device.

    Raises:
        LGDError: some ranks did not start, or Slurm does not say where they meet.
    """
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1:
        # SLURM_NTASKS speaks of the allocation; a script that was started once within it is one process
        if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) < 2:
            return device
        if "MASTER_ADDR" not in os.environ:
            raise LGDError(
                "Slurm started several tasks, and MASTER_ADDR does not say where they meet. Start one task a node with "
                "torchrun (docs/guides/clusters.md), or one process: srun --ntasks 1."
            )
    found: dict[str, Any] = init_distributed_device_so(device, dist_url=f"{SCHEME}://")
    return str(found["device"])


def agree_on_session(store: Store, *, rank: int, world_size: int, timeout: timedelta) -> str:
    """Agree on a name that these ranks share and no earlier ones had, whatever those left in the store.

    Each rank but the first writes a new name of its own and waits for an answer to exactly this name. Rank 0 answers
    every name that it finds, those of processes that have ended too, until all ranks have taken its answer.

    Raises:
        LGDError: it took longer than `timeout`.
    """
    mine, start = uuid.uuid4().hex, time.monotonic()
    if rank:
        store.set(f"signed/{rank}", mine)
        try:
            store.wait([f"answer/{mine}"], timeout)
        except RuntimeError as error:  # torch's for a wait that timed out and for a store that is gone
            raise LGDError(
                f"rank {rank} of {world_size} was not met by rank 0 ({error}). Look for the error of rank 0."
            ) from error
        session = store.get(f"answer/{mine}").decode()
        store.set(f"taken/{session}/{rank}", "")
        return session
    answered: set[str] = set()
    others = range(1, world_size)
    while not store.check([f"taken/{mine}/{other}" for other in others]):
        for other in others:
            if store.check([f"signed/{other}"]) and (name := store.get(f"signed/{other}").decode()) not in answered:
                store.set(f"answer/{name}", mine)
                answered.add(name)
        if time.monotonic() - start > timeout.total_seconds():
            missing = [str(other) for other in others if not store.check([f"taken/{mine}/{other}"])]
            raise LGDError(
                f"ranks {', '.join(missing)} of {world_size} did not come within {timeout}. Look for their errors."
            )
        time.sleep(POLL_SECONDS)
    return mine


def _rendezvous(url: str, timeout: timedelta = default_pg_timeout, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """torch's rendezvous by environment variables, its keys prefixed with this start's session."""
    store, rank, world_size = next(rendezvous("env" + url.removeprefix(SCHEME), timeout=timeout, **options))
    session = agree_on_session(store, rank=rank, world_size=world_size, timeout=timeout)
    yield PrefixStore(session, store), rank, world_size


register_rendezvous_handler(SCHEME, _rendezvous)


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks: (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def concat_all_gather(rows: Tensor) -> Tensor:
    """Concatenate the rows [B, D] of all ranks to [ranks * B, D], equal on each rank, without a gradient."""
    count = rank_and_world_size()[1]
    if count == 1:
        return rows
    everyone = rows.new_empty(count * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone
