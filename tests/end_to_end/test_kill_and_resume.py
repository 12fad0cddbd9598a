"""Runs that are killed: what is lost, how they go on, and that they end as if nothing had happened.

True signals, true torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.utils.checkpoint import all_checkpoints
from tests.helpers.runs import assert_bit_equal, damage_first_image, last_checkpoint, losses, merge, run

Dict = dict[str, Any]

# The command line, and a signal to one rank before one step, the first time that it gets there.
STRUCK = """
import os, pathlib, signal, sys
from lgd_timm import cli
from lgd_timm.training.step import TrainStep

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background of a script ignores
number, step, rank, flag = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
take = TrainStep.take

def struck(self, batch):
    run = self.run
    if run.step == step and run.ranks.rank == rank and not flag.exists():
        flag.touch()
        kill = os.killpg if number == signal.SIGINT else os.kill  # a terminal sends Ctrl-C to the workers, too
        kill(os.getpid(), number)
    return take(self, batch)

TrainStep.take = struck
sys.exit(cli.main(sys.argv[5:]))
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(tmp_path: Path, recipe: Dict, out: str, *, number: int = 0, step: int = -1, rank: int = 0) -> list[str]:
    """Words for python: distil into tmp_path/out, struck by a signal."""
    (tmp_path / "struck.py").write_text(STRUCK)
    (tmp_path / "recipe.yaml").write_text(recipe_from_dict(recipe).to_yaml())
    words = [tmp_path / "struck.py", int(number), step, rank, tmp_path / f"{out}.flag"]
    return [*map(str, words), "distill", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / out), "--resume"]


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]


def call(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280, start_new_session=True
    )


@pytest.fixture
def busy(recipe_dict: Dict) -> Dict:
    """With all that a run carries along: momentum, average, dropout, a bank. It saves after every step."""
    changes = {
        "student": {"drop_rate": 0.2},
        "run": {"ema_decay": 0.9, "checkpoint_minutes": 0.0},
        "data": {"val_split": None},
    }
    return merge(recipe_dict, changes)


def test_a_killed_run_goes_on_at_its_last_step_and_ends_bit_equal(busy: Dict, tmp_path: Path) -> None:
    run(busy, tmp_path / "whole")
    dead = call([sys.executable, *command(tmp_path, busy, "killed", number=signal.SIGKILL, step=5)])
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert (
        all_checkpoints(tmp_path / "killed" / "checkpoints")[-1].name == "step-00000005"
    )  # within the second epoch of three
    (tmp_path / "killed" / "checkpoints" / ".step-left").mkdir()  # as if it had been writing
    run(busy, tmp_path / "killed", resume=True, data={"workers": 2})
    assert_bit_equal(last_checkpoint(tmp_path / "killed"), last_checkpoint(tmp_path / "whole"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("number", "called", "status", "workers"), [(signal.SIGTERM, "SIGTERM", 143, 0), (signal.SIGINT, "Ctrl-C", 130, 2)]
)
def test_a_notice_saves_and_ends_with_its_own_status(
    busy: Dict, tmp_path: Path, number: int, called: str, status: int, workers: int
) -> None:
    rare = merge(busy, {"run": {"checkpoint_minutes": 60.0}, "data": {"val_split": None, "workers": workers}})
    run(rare, tmp_path / "whole")
    stopped = call([sys.executable, *command(tmp_path, rare, "stopped", number=number, step=4)])
    assert stopped.returncode == status, stopped.stderr
    (said,) = [line for line in stopped.stderr.splitlines() if line.startswith("lgd-timm: ")]
    assert (
        said
        == f"lgd-timm: stopped by {called} at step 5 of 9, and saved in {tmp_path / 'stopped'}. Go on with --resume."
    )
    assert "Traceback" not in stopped.stderr
    assert "published" not in stopped.stdout
    assert [path.name for path in all_checkpoints(tmp_path / "stopped" / "checkpoints")] == [
        "step-00000003",
        "step-00000005",
    ]
    run(rare, tmp_path / "stopped", resume=True)
    assert_bit_equal(last_checkpoint(tmp_path / "stopped"), last_checkpoint(tmp_path / "whole"))


def test_torchrun_restarts_what_was_killed(busy: Dict, tmp_path: Path, shard_folder: Path) -> None:
    """One of two workers dies, in the middle of an epoch; the run goes on by itself, past a bad sample that one rank
    sees.
    """
    import shutil

    shards = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    name = damage_first_image(shards)
    seed = {"objective": {"kind": "seed", "queue_size": 32}, "data": {"shards": str(shards), "max_bad": 0.1}}
    recipe = {**merge(busy, seed), "objective": seed["objective"]}
    whole = call([*torchrun(), *command(tmp_path, recipe, "whole")])
    assert whole.returncode == 0, whole.stderr
    assert (
        whole.stderr.count(f"skipped {name}") == 2
    )  # every rank counts those of all; the first has a terminal, the second none
    struck = call(
        [*torchrun("--max-restarts=1"), *command(tmp_path, recipe, "killed", number=signal.SIGKILL, step=5, rank=1)]
    )
    assert struck.returncode == 0, struck.stderr
    assert (tmp_path / "killed.flag").exists()
    assert "resumed" in struck.stderr
    assert struck.stdout.count("published:") == 1
    assert_bit_equal(last_checkpoint(tmp_path / "killed"), last_checkpoint(tmp_path / "whole"))
    models = [load_file(tmp_path / which / "published" / "model.safetensors") for which in ("killed", "whole")]
    assert_bit_equal(*models)


@pytest.mark.parametrize(("number", "called"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_notice_to_torchrun_stops_all_ranks_at_one_step(busy: Dict, tmp_path: Path, number: int, called: str) -> None:
    long = merge(busy, {"schedule": {"epochs": 400}, "run": {"checkpoint_minutes": 60.0, "checkpoint_every": 400}})
    process = subprocess.Popen(
        [*torchrun(), *command(tmp_path, long, "stopped")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        log = tmp_path / "stopped" / "log.jsonl"
        while not (log.is_file() and len(log.read_text().splitlines()) > 3):
            assert time.monotonic() < deadline, "it did not begin"
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    (checkpoint,) = all_checkpoints(tmp_path / "stopped" / "checkpoints")
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert said.count(f"stopped by {called} at step {step} of 1200") == 1  # by the first rank
    assert 3 < step < 1200
