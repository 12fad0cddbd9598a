"""The soak itself: that it would notice samples that were not planned, and (slow) that it runs to its end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.stress.soak import BATCH, Lane, _digest, _planned
from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.loader import loader
from lgd_timm.data.samplers import EpochSampler


@pytest.fixture
def lane(tmp_path: Path, shard_folder: Path) -> Lane:
    """That has seen what the loader gives for 3 epochs."""
    (tmp_path / "shards").symlink_to(shard_folder)
    shards = open_shards(shard_folder, split="train")
    plan = EpochSampler(shards.lengths, batch_size=BATCH, views=2, stop=3 * (len(shards) // BATCH))
    batches = loader(ShardDataset(shards, views=Views(size=8, count=2)), plan)
    lane = Lane("trial", tmp_path, 3)
    lane.seen.write_text("".join(f"{step} {_digest(batch.keys)}\n" for step, batch in enumerate(batches)))
    return lane


def test_what_was_planned_is_not_astray(lane: Lane) -> None:
    assert len(lane.steps) == len(list(_planned(lane.home / "shards", 3))) == 3
    assert (lane.astray, lane.repeated) == (0, 0)


def test_steps_that_are_missing_other_or_too_many_are_astray(lane: Lane) -> None:
    lines = lane.seen.read_text().splitlines()
    other = f"1 {_digest(['another'])}"
    for changed, astray in (
        ([lines[0], lines[2]], 1),
        ([lines[0], other, lines[2]], 1),
        ([*lines, "3 " + lines[0][2:]], 1),
        (lines[:1], 2),
    ):
        lane.seen.write_text("\n".join(changed) + "\n")
        assert lane.astray == astray


def test_a_step_that_was_taken_again_counts_as_it_was_taken_last(lane: Lane) -> None:
    lines = lane.seen.read_text()
    lane.seen.write_text(f"1 {_digest(['another'])}\n{lines}")
    assert (lane.astray, lane.repeated) == (0, 1)


@pytest.mark.slow
def test_it_runs_to_its_end() -> None:
    words = [sys.executable, "-m", "benchmarks.stress.soak", "--epochs", "40", "--every", "0.8"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert re.search(r"weights and banks equal to the bit: yes", done.stdout)
