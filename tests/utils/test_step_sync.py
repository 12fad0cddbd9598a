"""What ranks tell each other: the same to all, at the same step."""

from __future__ import annotations

import signal
from ast import literal_eval
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from lgd_timm.utils.distributed import Ranks, StepMessages, StepSync


def test_one_process_hears_itself_at_once() -> None:
    sync = StepSync(Ranks())
    assert sync.exchange(stop=signal.SIGINT, bad=[("a", "broken")]) == StepMessages(2, (("a", "broken"),))
    assert sync.exchange() == StepMessages(0, ())
    assert sync.flush() == StepMessages(0, ())


def _speak(rank: int, meeting: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    sync = StepSync(Ranks.join())
    heard = [
        sync.exchange(),
        sync.exchange(bad=[("b", "short")] if rank else [("a", "grey"), ("c", "")]),
        sync.exchange(stop=signal.SIGINT if rank else 0),
        sync.exchange(bad=[("last", "one")] if rank else []),
        sync.flush(),
        sync.flush(),
    ]
    Path(out, f"{rank}.txt").write_text(repr([(entry.stop, list(entry.bad)) for entry in heard]))
    dist.destroy_process_group()


def test_every_rank_hears_the_same_one_beat_later(tmp_path: Path) -> None:
    mp.spawn(_speak, args=(str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    nothing = (0, [])
    everyone = (0, [("a", "grey"), ("c", ""), ("b", "short")])
    assert literal_eval(first) == [nothing, nothing, everyone, (2, []), (0, [("last", "one")]), nothing]
