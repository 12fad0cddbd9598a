"""Work that is shared out over the processes that torchrun started, or done by this one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

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
