"""How processes that torchrun started find each other, after a restart too.

torchrun starts its workers again beside the same store, in which the addresses of those before still stand (seen with torch 2.14;
pytorch/pytorch#135712). A rank that comes early reads one of these and fails to connect, which ends the run that should have
gone on. So ranks first agree on a name of this start, and then meet under it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from timm.utils.distributed import init_distributed_device_so
from torch.distributed import PrefixStore, Store
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from .errors import LGDError

SCHEME = "lgd"
PAUSE = 0.02  # seconds


def meet(device: str) -> str:
    """Join the other ranks, if torchrun or Slurm started several. Returns this rank's device. Raises: LGDError where some stay away."""
    place: dict[str, Any] = init_distributed_device_so(device, dist_url=f"{SCHEME}://")
    return str(place["device"])


def agree(store: Store, *, rank: int, world_size: int, timeout: timedelta) -> str:
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
            raise LGDError(f"rank {rank} of {world_size} was not met by rank 0 ({error}). Look for the error of rank 0.") from error
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
            raise LGDError(f"ranks {', '.join(away)} of {world_size} did not come within {timeout}. Look for their errors.")
        time.sleep(PAUSE)
    return mine


def _handler(url: str, timeout: timedelta = default_pg_timeout, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """torch's own meeting by environment variables, under a name of this start."""
    store, rank, world_size = next(rendezvous("env" + url.removeprefix(SCHEME), timeout=timeout, **options))
    yield PrefixStore(agree(store, rank=rank, world_size=world_size, timeout=timeout), store), rank, world_size


register_rendezvous_handler(SCHEME, _handler)
