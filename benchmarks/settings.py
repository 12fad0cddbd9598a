"""What a run of the benchmarks measures with, and what it says of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version

import torch

PACKAGES = ("torch", "torchvision", "timm", "webdataset", "simplejpeg", "Pillow", "open_clip_torch")


@dataclass(frozen=True)
class Settings:
    """Sizes are those of the real thing, or with `quick` small ones that only show that all runs."""

    device: torch.device
    rounds: int
    workers: int
    students: tuple[str, ...]
    batch_size: int
    amp: str
    compile: bool
    quick: bool

    @property
    def size(self) -> int:
        """Of the student's images."""
        return 64 if self.quick else 224

    @property
    def steps(self) -> int:
        """Of training in one round. Enough that a round's ends, where the pipelines fill and drain, weigh little."""
        if self.quick:
            return 2
        return 40 if self.device.type == "cuda" else 4

    @property
    def photographs(self) -> int:
        if self.quick:
            return 64
        return 4096 if self.device.type == "cuda" else 256

    @property
    def where(self) -> str:
        """The part of a row's name that says how it was run."""
        how = "".join(
            f", {word}" for word in (self.amp if self.amp != "none" else "", "compiled" if self.compile else "") if word
        )
        workers = f"{self.workers} worker{'s' * (self.workers != 1)}"
        return f"{self.size} px, B={self.batch_size}, {workers}, {cores()} cores{how}"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: torch.device, *, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The header of the table."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "date": date.today().isoformat(),
        "cpu": f"{_cpu()}, {cores()} cores, {torch.get_num_threads()} torch threads, load {_load()} at the start",
        **gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _load() -> str:
    """Of the last minute: numbers of a machine that others use too say little."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
