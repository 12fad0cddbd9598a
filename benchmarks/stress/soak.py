"""Run one distillation in peace and the same one among faults, side by side: `-m benchmarks.stress.soak --minutes 60`.

The disturbed one reads its shards and embeddings from a server that cuts, stalls, flips, shortens and refuses every
third answer; its process or its loader's worker is killed, or it is told to stop, at random moments, and it is started
again with an empty cache. Reports what was done to it, whether it saw the samples that were planned and ended with the
same weights, and how memory and throughput of both went on. Random teacher, real images: wiring, not accuracy.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from lgd_timm.data import open_shards
from lgd_timm.data.dataset import Batch
from lgd_timm.data.samplers import EpochSampler
from lgd_timm.data.tar import IndexedTar
from lgd_timm.publish.training_curve import Row, read_log
from lgd_timm.training.step import StepResult, TrainStep

from .small_world import prepare

IMAGES, BATCH = 1000, 32
SAVED_EVERY = 0.5  # minutes
HOLD = 8.0  # seconds that a stalled answer hangs: longer than lgd_timm waits for bytes
BODIES = ("cut", "stall", "flip", "short", "503")
BLOWS = ("SIGKILL to the run", "SIGTERM to the run", "SIGKILL to a loader's worker")


def main() -> int:
    arguments = _parser().parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = {"workers": 1, "batch_size": BATCH}
        prepare(home, epochs=10, run={"checkpoint_minutes": SAVED_EVERY, "checkpoint_every": 10**6}, data=data)
        _cli(home, "shards", "write", str(home / "images"), str(home / "shards"), "--samples-per-shard", "100")
        _cli(home, "teach", str(home / "teach.yaml"), "--out", str(home / "taught"))
        epochs = arguments.epochs or round(60 * arguments.minutes * _rate(home) / IMAGES)
        with _Server(home, draw) as server:
            peaceful = Lane("undisturbed", home, epochs)
            disturbed = Lane(
                "among faults",
                home,
                epochs,
                ("--data.shards", f"{server.url}/shards", "--teacher.embeddings", f"{server.url}/taught"),
            )
            blows = _run(peaceful, disturbed, draw, every=60 * arguments.every)
        print(_report(peaceful, disturbed, blows, server.faults))
        return 0 if _same(peaceful, disturbed) and not disturbed.astray and not peaceful.astray else 1


@dataclass
class Lane:
    """A distillation that is started until it ends by itself."""

    name: str
    home: Path
    epochs: int
    words: Sequence[str] = ()
    lives: int = 0
    memory: list[tuple[float, int, float]] = field(default_factory=list)  # (seconds, life, MB of all its processes)
    process: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.home / self.name.replace(" ", "_")

    @property
    def seen(self) -> Path:
        return Path(f"{self.out}.seen")

    def start(self) -> None:
        cache = Path(f"{self.out}.cache")
        shutil.rmtree(cache, ignore_errors=True)
        recipe, epochs = str(self.home / "distill.yaml"), ("--schedule.epochs", str(self.epochs))
        words = ["distill", recipe, "--output", str(self.out), "--resume", *epochs, *self.words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LGD_TIMM_CACHE": str(cache)}
        command = [sys.executable, "-m", __spec__.name, "--worker", str(self.seen), *words]
        with Path(f"{self.out}.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        self.lives += 1

    def ended(self) -> bool:
        """Whether it is done; if it was killed or stopped it is started again, as torchrun would."""
        assert self.process is not None
        if self.process.poll() is None:
            return False
        if self.process.returncode == 0:
            return True
        self.start()
        return False

    def processes(self) -> list[int]:
        """Of its process and those that it started."""
        assert self.process is not None
        return [self.process.pid, *_children(self.process.pid)]

    def measure(self, seconds: float) -> None:
        if megabytes := sum(_memory(pid) for pid in self.processes()):
            self.memory.append((seconds, self.lives, megabytes))

    @property
    def rows(self) -> list[Row]:
        return [row for row in read_log(self.out / "log.jsonl", until=10**9) if "loss" in row]

    @property
    def steps(self) -> dict[int, str]:
        """Digest of the keys of each step, as it was taken last."""
        return {int(step): keys for step, keys in map(str.split, self.seen.read_text().splitlines())}

    @property
    def repeated(self) -> int:
        """Steps that were taken again after a blow."""
        return len(self.seen.read_text().splitlines()) - len(self.steps)

    @property
    def astray(self) -> int:
        """Steps that were not taken, or on other samples than planned."""
        planned, steps = list(_planned(self.home / "shards", self.epochs)), self.steps
        return sum(steps.get(step) != keys for step, keys in enumerate(planned)) + len(
            steps.keys() - range(len(planned))
        )


def _run(peaceful: Lane, disturbed: Lane, draw: random.Random, *, every: float) -> Counter[str]:
    """Both to their ends. Returns the blows that the second one took, `every` seconds on average."""
    blows: Counter[str] = Counter()
    lanes = [peaceful, disturbed]
    for lane in lanes:
        lane.start()
    begin = time.monotonic()
    blow, measured = begin + draw.expovariate(1 / every), begin
    while sum(lane.ended() for lane in lanes) < 2:  # both are asked
        time.sleep(0.5)
        now = time.monotonic()
        if now > measured + 5:
            measured = now
            for lane in lanes:
                lane.measure(now - begin)
        if now > blow and _strike(disturbed, kind := draw.choice(BLOWS)):
            blows[kind] += 1
            blow = now + draw.expovariate(1 / every)
    return blows


def _strike(lane: Lane, kind: str) -> bool:
    """Whether there was somebody to strike."""
    run, *workers = lane.processes()
    at_work = lane.seen.exists() and bool(workers)
    target = workers[0] if kind == BLOWS[2] and workers else run
    if at_work:
        os.kill(target, signal.SIGTERM if kind == BLOWS[1] else signal.SIGKILL)
    return at_work


# ----------------------------------------------------------------------------------------------------------- the report


def _report(peaceful: Lane, disturbed: Lane, blows: Mapping[str, int], faults: Mapping[str, int]) -> str:
    minutes = [f"{lane.memory[-1][0] / 60:.0f}" for lane in (peaceful, disturbed)]
    lines = [
        f"{peaceful.epochs} epochs, {len(peaceful.steps):,} steps of {BATCH} images, saved every {SAVED_EVERY} minutes",
        f"minutes: {' and '.join(minutes)}",
        "blows: " + (", ".join(f"{count} x {kind}" for kind, count in sorted(blows.items())) or "none"),
        "answers of the server that went wrong: "
        + (", ".join(f"{count} x {kind}" for kind, count in sorted(faults.items())) or "none"),
        "",
        "| | undisturbed | among faults |",
        "|---|---|---|",
    ]
    table = {
        "started": [lane.lives for lane in (peaceful, disturbed)],
        "steps taken again": [lane.repeated for lane in (peaceful, disturbed)],
        "steps on other samples than planned, or left out": [lane.astray for lane in (peaceful, disturbed)],
        "final loss (mean of the last tenth)": [f"{_end(lane.rows):.4f}" for lane in (peaceful, disturbed)],
        "memory, MB: median of the first and of the last quarter": [
            _quarters([mb for _, _, mb in lane.memory]) for lane in (peaceful, disturbed)
        ],
        "memory growth within the longest life, MB an hour": [_growth(lane.memory) for lane in (peaceful, disturbed)],
        "images/s: median of the first and of the last quarter": [
            _quarters([row["images_per_second"] for row in lane.rows]) for lane in (peaceful, disturbed)
        ],
    }
    lines += [f"| {name} | {ours} | {theirs} |" for name, (ours, theirs) in table.items()]
    return "\n".join(
        [*lines, "", f"weights and banks equal to the bit: {'yes' if _same(peaceful, disturbed) else 'NO'}"]
    )


def _same(*lanes: Lane) -> bool:
    first, second = (
        {
            **load_file(lane.out / "published" / "model.safetensors"),
            **load_file(lane.out / "published" / "lgd.safetensors"),
        }
        for lane in lanes
    )
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _end(rows: Sequence[Row]) -> float:
    return statistics.fmean(row["loss"] for row in rows[-max(1, len(rows) // 10) :])


def _quarters(values: Sequence[float]) -> str:
    quarter = max(1, len(values) // 4)
    return f"{statistics.median(values[:quarter]):,.0f}, {statistics.median(values[-quarter:]):,.0f}"


def _growth(memory: Sequence[tuple[float, int, float]]) -> str:
    """Slope of a line through the longest life's measurements, its first fifth left out."""
    lives = Counter(life for _, life, _ in memory)
    longest = [(seconds, megabytes) for seconds, life, megabytes in memory if life == lives.most_common(1)[0][0]]
    times, values = np.array(longest[len(longest) // 5 :]).T
    if len(times) < 10:
        return "too short"
    return f"{3600 * np.polyfit(times, values, 1)[0]:+.1f} in {(times[-1] - times[0]) / 60:.0f} minutes"


def _planned(shards: Path, epochs: int) -> Iterator[str]:
    """Digest of the keys of each step."""
    split = open_shards(shards, split="train")
    keys = [key for shard in range(len(split.filenames)) for key in IndexedTar(split.path(shard)).keys]
    plan = EpochSampler(split.lengths, batch_size=BATCH, views=2, stop=0)
    for batch in EpochSampler(split.lengths, batch_size=BATCH, views=2, stop=epochs * plan.steps_per_epoch):
        yield _digest([keys[position] for position, _ in batch])


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]


# ------------------------------------------------------------------------------------------------------------ processes


def _worker(seen: Path, words: Sequence[str]) -> int:
    """The command line, which notes the samples of each step."""
    from lgd_timm import cli

    take = TrainStep.take
    with seen.open("a", encoding="utf-8", buffering=1) as file:

        def noted(self: TrainStep, batch: Batch) -> StepResult:
            result = take(self, batch)
            file.write(f"{self.run.step} {_digest(batch.keys)}\n")
            return result

        TrainStep.take = noted  # type: ignore[method-assign]
        return cli.main(list(words))


def _cli(home: Path, *words: str) -> None:
    environment = {**os.environ, "LGD_TIMM_CACHE": str(home / "cache")}
    subprocess.run([sys.executable, "-m", "lgd_timm.cli", *words], env=environment, check=True, capture_output=True)


def _rate(home: Path) -> float:
    """Images/s of a lane while another one works beside it."""
    lanes = [Lane(f"rate {number}", home, 20) for number in (1, 2)]
    for lane in lanes:
        lane.start()
    while sum(lane.ended() for lane in lanes) < 2:
        time.sleep(0.2)
    return min(statistics.median(row["images_per_second"] for row in lane.rows) for lane in lanes)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has just ended
        return []


def _memory(pid: int) -> float:
    """MB of its own, without files: of a library a process has less, the more of them use it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


# ----------------------------------------------------------------------------------------------------------- the server


class _Server:
    """Serves home/{shards,taught}; every third tar or so comes wrong, never the same one twice in a row."""

    def __init__(self, home: Path, draw: random.Random) -> None:
        self.faults: Counter[str] = Counter()
        self._last: str | None = None
        self._draw, self._lock = random.Random(draw.random()), threading.Lock()
        owner = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(home))  # type: ignore[arg-type]  # the standard library's own words

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                owner.answer(self, Path(home, self.path.lstrip("/")))

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> _Server:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: SimpleHTTPRequestHandler, path: Path) -> None:
        if path.suffix != ".tar" or not path.is_file():
            SimpleHTTPRequestHandler.do_GET(handler)
            return
        with self._lock:
            fault = self._draw.choice(BODIES) if self._last != path.name and self._draw.random() < 0.4 else ""
            self._last = path.name if fault else None
            self.faults.update([fault] if fault else [])
        content = path.read_bytes()
        half = content[: len(content) // 2]
        body = {
            "cut": half,
            "stall": half,
            "short": half,
            "503": b"",
            "flip": half[:-1] + bytes([half[-1] ^ 1]) + content[len(half) :],
        }
        handler.send_response(503 if fault == "503" else 200)
        if fault not in ("short", "503"):
            handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body.get(fault, content))
        handler.wfile.flush()
        if fault == "stall":
            time.sleep(HOLD)
        handler.close_connection = True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.stress.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="that both take, side by side")
    parser.add_argument("--epochs", type=int, help="instead of so many minutes")
    parser.add_argument("--every", type=float, default=3.0, help="minutes between blows, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the blows and faults")
    return parser


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(_worker(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
