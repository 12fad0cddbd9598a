"""Ranks that meet beside a store in which those before them left their addresses, as torchrun's restarts do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from lgd_timm.errors import LGDError
from lgd_timm.utils.distributed import agree_on_session, init_distributed

SOON = timedelta(seconds=20)


def meeting(store: HashStore, *, world_size: int, late: int | None = None) -> list[str]:
    """Names that the ranks come to; rank `late` comes when the others have long been there."""

    def come(rank: int) -> str:
        if rank == late:
            time.sleep(0.3)
        return agree_on_session(store, rank=rank, world_size=world_size, timeout=SOON)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(come, range(world_size)))


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("late", [None, 0, 1])
def test_every_start_has_a_name_of_its_own_whoever_comes_late(world_size: int, late: int | None) -> None:
    store = HashStore()
    names = [meeting(store, world_size=world_size, late=late) for _ in range(3)]
    assert all(len(set(start)) == 1 for start in names)
    assert len({start[0] for start in names}) == 3


def test_those_who_died_while_they_waited_are_no_company() -> None:
    store = HashStore()
    store.set("signed/1", "dead")
    names = meeting(store, world_size=2, late=1)
    assert names[0] == names[1]
    assert store.check(["answer/dead"])  # nobody took it


def test_who_stays_away_is_named() -> None:
    store = HashStore()
    store.set("signed/2", "dead")
    with pytest.raises(LGDError, match="ranks 1, 2 of 3 did not come within 0:00:01"):
        agree_on_session(store, rank=0, world_size=3, timeout=timedelta(seconds=1))


def test_a_rank_that_nobody_meets_says_so() -> None:
    with pytest.raises(LGDError, match=r"rank 1 of 2 was not met by rank 0 \(.*\)\. Look for the error of rank 0\."):
        agree_on_session(HashStore(), rank=1, world_size=2, timeout=timedelta(seconds=1))


def test_one_process_within_a_slurm_allocation_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert init_distributed("cpu") == "cpu"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(LGDError, match=r"MASTER_ADDR .*torchrun"):
        init_distributed("cpu")
