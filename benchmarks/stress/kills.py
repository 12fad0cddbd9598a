"""Send SIGKILL at random moments to shards, teach, distill and save, and start each again.

Reports of every command how often it was killed in its work, what was not whole afterwards, what was lost, and whether
it ended, started again, with the bytes of a run that nobody touched. Random teacher, real images: wiring, not accuracy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.errors import LGDError
from lgd_timm.publish.check import check_folder
from lgd_timm.utils.checkpoint import all_checkpoints

from .small_world import prepare

EVERY = 0.02  # minutes between checkpoints


@dataclass
class Command:
    """One command under test: its words, what it makes, what must be whole whenever it is killed."""

    name: str
    words: Sequence[str]
    out: Path
    whole: Callable[[Path], None]  # raises for what stands there and is not whole
    contents: Callable[[Path], str]  # of a finished one
    last: str  # what is there when it has finished

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "lgd_timm.cli", *self.words]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@dataclass
class Result:
    kills: int = 0  # that hit a process at work
    late: int = 0  # that came when it had ended
    broken: list[str] = field(default_factory=list)
    different: int = 0
    most_lost: float = 0.0  # seconds of work done again, at most


def main() -> int:
    arguments = _parser().parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["LGD_TIMM_CACHE"] = str(home / "cache")
        prepare(home, run={"checkpoint_minutes": EVERY, "checkpoint_every": 5}, epochs=12)
        results: dict[str, Result] = {}
        for make in (_shards, _teach, _distill, _save):  # each works on what the ones before have made
            command = make(home)
            results[command.name] = _strike(command, -(-arguments.kills // 4), draw)
    print(
        "| command | killed at work | too late | not whole afterwards | other bytes at the end | most work lost |",
        "|---" * 6 + "|",
        sep="\n",
    )
    for name, result in results.items():
        print(
            f"| `lgd-timm {name}` | {result.kills} | {result.late} | {len(result.broken)} | {result.different} "
            f"| {result.most_lost:.1f} s |"
        )
    wrong = [line for result in results.values() for line in result.broken]
    print(*wrong, sep="\n")
    return 1 if wrong or any(result.different for result in results.values()) else 0


def _strike(command: Command, kills: int, draw: random.Random) -> Result:
    """Let it work once in peace, then be killed `kills` times, each time started again until it ends."""
    began = time.perf_counter()
    _finish(command)
    took = time.perf_counter() - began
    expected, result = command.contents(command.out), Result()
    _empty(command.out)
    while result.kills < kills and result.late < 10 * kills:
        process = command.start()
        alone = time.perf_counter()
        try:
            process.communicate(timeout=draw.uniform(0.2, 1.0) * took)
            result.late += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            result.kills += 1
        result.most_lost = max(result.most_lost, _lost(command.out, alone))
        try:
            command.whole(command.out)
        except (LGDError, OSError, ValueError, AssertionError) as error:
            result.broken.append(f"{command.name}: {error!r}")
        finished = (command.out / command.last).exists()
        if finished or draw.random() < 0.5:  # else the next blow hits what this one left
            if not finished:
                _finish(command)
            result.different += command.contents(command.out) != expected
            _empty(command.out)
        print(f"{command.name}: {result.kills} of {kills}", file=sys.stderr, flush=True)
    return result


def _finish(command: Command) -> None:
    process = command.start()
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"lgd-timm {' '.join(command.words)} ended with {process.returncode}: {said.decode()}")


def _make(command: Command) -> None:
    """In peace, whatever the blows have left."""
    _empty(command.out)
    _finish(command)


def _empty(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    for left in out.parent.glob(f".{out.name}.*"):
        shutil.rmtree(left)


def _lost(out: Path, began: float) -> float:
    """Seconds since what was saved last, of those that the process worked."""
    saved = max(
        (path.stat().st_mtime for path in out.rglob("*") if not any(part.startswith(".") for part in path.parts)),
        default=0.0,
    )
    return min(time.perf_counter() - began, max(0.0, time.time() - saved))


# --------------------------------------------------------------------------------------------------------- the commands


def _shards(home: Path) -> Command:
    out = home / "shards"

    def whole(out: Path) -> None:
        if (out / "_info.json").is_file():
            _all_readable(out)

    return Command(
        "shards",
        ["shards", "write", str(home / "images"), str(out), "--samples-per-shard", "100"],
        out,
        whole,
        _digest,
        "_info.json",
    )


def _teach(home: Path) -> Command:
    out = home / "taught"
    words = ["teach", str(home / "teach.yaml"), "--out", str(out)]

    def whole(out: Path) -> None:
        for path in out.glob("*.tar"):  # what has its name is whole, finished or not
            assert len(_npy(path)) > 0, path

    _make(_shards(home))
    return Command("teach", words, out, whole, _digest, "_info.json")


def _distill(home: Path) -> Command:
    out = home / "run"

    def whole(out: Path) -> None:
        for checkpoint in all_checkpoints(out / "checkpoints"):
            json.loads((checkpoint / "state.json").read_text())
            for file in checkpoint.glob("*.safetensors"):
                load_file(file)
        if (out / "published").exists():
            check_folder(out / "published")

    _make(_teach(home))
    return Command(
        "distill",
        ["distill", str(home / "distill.yaml"), "--output", str(out), "--resume"],
        out,
        whole,
        _weights,
        "published",
    )


def _save(home: Path) -> Command:
    out = home / "saved"
    _make(_distill(home))

    def whole(out: Path) -> None:
        if out.exists():
            check_folder(out)

    return Command("save", ["save", str(home / "run"), str(out)], out, whole, _weights, "README.md")


def _digest(out: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(out.rglob("*.tar")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _weights(out: Path) -> str:
    published = out / "published" if (out / "published").is_dir() else out
    return hashlib.sha256(
        (published / "model.safetensors").read_bytes() + (published / "lgd.safetensors").read_bytes()
    ).hexdigest()


def _npy(path: Path) -> Sequence[str]:
    from lgd_timm.data.tar import IndexedTar

    tar = IndexedTar(path)
    assert tar.damage is None, f"{path}: {tar.damage}"
    return tar.keys


def _all_readable(out: Path) -> None:
    dataset = ShardDataset(open_shards(out, split="train"), views=Views(size=32, augmentation="none"))
    for position in range(len(dataset)):
        assert not dataset[(position, 0)].bad


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.stress.kills", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=50, help="shared out evenly over the four commands")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
