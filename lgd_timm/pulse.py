"""What ranks tell each other at every step, without waiting: whether one of them has to stop, and which samples were bad.

The sums of a step are on their way while it is taken, and heard at the next one. So every rank hears the same at the same step:
they stop together, and name and count the bad samples of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .shards.ranks import Ranks

Bad = Sequence[tuple[str, str]]  # (key, reason)


class Heard(NamedTuple):
    """Of all ranks: whether to stop, and samples that could not be read."""

    stop: bool = False
    bad: Bad = ()


class _Sent(NamedTuple):
    """What is on its way."""

    sums: Tensor
    work: Any
    bad: Bad


class Pulse:
    """One process hears itself at once, several hear each other one step later."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent: _Sent | None = None

    def beat(self, *, stop: bool = False, bad: Bad = ()) -> Heard:
        """Say what is new, and hear what all said a step before. Every rank has to call this equally often."""
        if self._ranks.world_size == 1:
            return Heard(stop, tuple(bad))
        heard = self.rest()
        sums = torch.tensor([stop, len(bad)], dtype=torch.int64)
        self._sent = _Sent(sums, dist.all_reduce(sums, group=self._ranks.group, async_op=True), tuple(bad))
        return heard

    def rest(self) -> Heard:
        """What is still to be heard, for the end of a walk."""
        sent, self._sent = self._sent, None
        if sent is None:
            return Heard()
        sent.work.wait()
        stop, count = sent.sums.tolist()
        if not count:
            return Heard(bool(stop))
        everyone = self._ranks.gather({self._ranks.rank: sent.bad})
        return Heard(bool(stop), tuple(entry for bad in everyone.values() for entry in bad))
