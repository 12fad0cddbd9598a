"""What ranks tell each other at every step, without waiting: whether one of them has to stop, and which samples were bad.

The sums of a step are on their way while it is taken, and heard at the next one. So every rank hears the same at the same step:
they stop together, and name and count the bad samples of all.
"""

from __future__ import annotations

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

Bad = Sequence[tuple[str, str]]  # (key, reason)


class StepMessages(NamedTuple):
    """Of all ranks: whether to stop, and samples that could not be read."""

    stop: bool = False
    bad: Bad = ()


class _Sent(NamedTuple):
    """What is on its way."""

    sums: Tensor
    work: Any
    bad: Bad


class StepSync:
    """One process hears itself at once, several hear each other one step later."""

    def __init__(self, rank_and_world_size: Ranks) -> None:
        self._ranks = rank_and_world_size
        self._sent: _Sent | None = None

    def exchange(self, *, stop: bool = False, bad: Bad = ()) -> StepMessages:
        """Say what is new, and hear what all said a step before. Every rank has to call this equally often."""
        if self._ranks.world_size == 1:
            return StepMessages(stop, tuple(bad))
        heard = self.flush()
        sums = torch.tensor([stop, len(bad)], dtype=torch.int64)
        self._sent = _Sent(sums, dist.all_reduce(sums, group=self._ranks.group, async_op=True), tuple(bad))
        return heard

    def flush(self) -> StepMessages:
        """What is still to be heard, for the end of a walk."""
        sent, self._sent = self._sent, None
        if sent is None:
            return StepMessages()
        sent.work.wait()
        stop, count = sent.sums.tolist()
        if not count:
            return StepMessages(bool(stop))
        everyone = self._ranks.gather({self._ranks.rank: sent.bad})
        return StepMessages(bool(stop), tuple(entry for bad in everyone.values() for entry in bad))


T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who this process is among how many."""

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> Ranks:
        """The ranks of torch.distributed, where it was initialised; every rank has to call this."""
        if not torch.distributed.is_initialized():
            return cls()
        # gloo on any device: messages are small, but who is done first waits for others' work, for longer than NCCL's ten minutes
        group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Every world-th item, so that shares differ by one at most and rank 0 has the largest."""
        return items[self.rank :: self.world_size]

    def gather(self, mine: Mapping[int, T]) -> dict[int, T]:
        """Everyone's entries by rising number, the same on each rank. Waits until all have come here."""
        parts: list[Any] = [mine]
        if self.group is not None:
            parts = [None] * self.world_size
            torch.distributed.all_gather_object(parts, mine, group=self.group)
        return dict(sorted(entry for part in parts for entry in part.items()))

    def wait(self) -> None:
        """Until all have come here."""
        self.gather({})


SCHEME = "lgd"


PAUSE = 0.02  # seconds


def init_distributed(device: str) -> str:
    """Join the other ranks, if torchrun or Slurm started several. Returns this rank's device. Raises: LGDError where some stay away."""
    place: dict[str, Any] = init_distributed_device_so(device, dist_url=f"{SCHEME}://")
    return str(place["device"])


def agree_on_session(store: Store, *, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that these ranks share and that no earlier ones had, whatever those left in the store.

    Each of the others signs in under a name that is new, and waits for an answer to just this name. The first rank answers
    whoever signs in, those who are gone too, until all have taken its answer. Raises: LGDError when that takes too long.
    """
    mine, start = uuid.uuid4().hex, time.monotonic()
    if rank:
        store.set(f"signed/{rank}", mine)
        try:
            store.wait([f"answer/{mine}"], timeout)
        except RuntimeError as error:  # torch's for a wait that ended and for a store that is gone
            raise LGDError(
                f"rank {rank} of {world_size} was not met by rank 0 ({error}). Look for the error of rank 0."
            ) from error
        name = store.get(f"answer/{mine}").decode()
        store.set(f"taken/{name}/{rank}", "")
        return name
    answered: set[str] = set()
    others = range(1, world_size)
    while not store.check([f"taken/{mine}/{other}" for other in others]):
        for other in others:
            if store.check([f"signed/{other}"]) and (name := store.get(f"signed/{other}").decode()) not in answered:
                store.set(f"answer/{name}", mine)
                answered.add(name)
        if time.monotonic() - start > timeout.total_seconds():
            away = [str(other) for other in others if not store.check([f"taken/{mine}/{other}"])]
            raise LGDError(
                f"ranks {', '.join(away)} of {world_size} did not come within {timeout}. Look for their errors."
            )
        time.sleep(PAUSE)
    return mine


def _handler(url: str, timeout: timedelta = default_pg_timeout, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """torch's own meeting by environment variables, under a name of this start."""
    store, rank, world_size = next(rendezvous("env" + url.removeprefix(SCHEME), timeout=timeout, **options))
    yield (
        PrefixStore(agree_on_session(store, rank=rank, world_size=world_size, timeout=timeout), store),
        rank,
        world_size,
    )


register_rendezvous_handler(SCHEME, _handler)


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and how many there are; one without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def concat_all_gather(rows: Tensor) -> Tensor:
    """Rows [B, D] of every rank, in the ranks' order: [ranks * B, D], equal on every rank. Without a gradient."""
    count = rank_and_world_size()[1]
    if count == 1:
        return rows
    everyone = rows.new_empty(count * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone
