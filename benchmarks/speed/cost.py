"""The tables of docs/results/scaling.md: cores, GPUs, storage and hours, worked out from what was measured on one core
and from published throughputs of one GPU. `python -m benchmarks.speed.cost` prints them.

    cores a GPU needs    = R / c                    R: images/s of a student's step on one GPU, c: views/s of one core
    n GPUs               = n R e                    e = t / (t + c(n)), t = B / R: benchmarks/speed/scaling.py
    hours of E passes    = E N / R / 3600           N images; stored embeddings, after K N / T / 3600 for the teacher
    ... teacher at work  = E N (1 / R + 1 / T) / 3600
    storage, bytes       = N (512 + 512 ceil((128 + K D b) / 512))     b: 2 in float16, 1 in int8
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from lgd_timm.students.model import create_student

from .scaling import efficiency


@dataclass(frozen=True)
class Facts:
    """What the tables are worked out from. Another GPU, another teacher: give its numbers."""

    # images/s of training on an RTX 3090 (timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv)
    train: Mapping[str, float] = field(
        default_factory=lambda: {"lgd_resnet18": 3482.0, "lgd_mobilenetv2": 2313.0, "lgd_efficientnet_b0": 1752.0}
    )
    teacher: float = 3700.0  # images/s of ResNet-50's forward there (results/benchmark-infer-amp-nhwc-...)
    # views/s of a core: `python -m benchmarks --only views`, 2026-11-28
    core: Mapping[str, float] = field(default_factory=lambda: dict(CORE))
    batch: int = 256  # images a GPU and step
    names: int = 1000
    dimension: int = 1024
    machine: int = 8  # GPUs of one machine
    inside: float = 300.0  # GB/s of a GPU within it
    bandwidth: float = 25.0  # GB/s of a GPU between machines
    hop: float = 20.0  # microseconds


CORE = {
    "colours by torch": 318.0,
    "colours by OpenCV": 497.0,
    "colours on the GPU": 630.0,
    "the same, short side 288": 1056.0,
}
GPUS = (8, 64, 512)
IMAGES = {"1.28 M": 1_281_167, "14 M": 14_197_122, "100 M": 10**8, "1 B": 10**9}
VIEWS = (1, 4, 10)
EPOCHS, PAPER = 200, "1.28 M"  # of the paper's main table


def tables(facts: Facts) -> str:
    parts = (cores(facts), gpus(facts), storage(facts), hours(facts))
    return "\n\n".join("\n".join(part) for part in parts)


def cores(facts: Facts) -> Iterator[str]:
    """Cores that one GPU needs."""
    yield from _head(
        "student", "images/s of a GPU", *(f"{how}, {rate:.0f} views/s" for how, rate in facts.core.items())
    )
    for student, rate in facts.train.items():
        yield _line(student, f"{rate:.0f}", *(f"{math.ceil(rate / core)}" for core in facts.core.values()))


def gpus(facts: Facts) -> Iterator[str]:
    """Images/s of many GPUs, and the hours of the paper's 200 passes over ImageNet on them."""
    yield from _head("student", "gradients, MB", "bank, MB", *(f"{count} GPUs" for count in GPUS))
    bank = 4 * facts.names * (facts.dimension + 1)
    for student, rate in facts.train.items():
        gradients = _gradient_bytes(student, facts.dimension)
        cells = []
        for count in GPUS:
            share = efficiency(
                count,
                gradients + bank,
                step_ms=1000 * facts.batch / rate,
                machine=facts.machine,
                inside=facts.inside,
                bandwidth=facts.bandwidth,
                hop=facts.hop,
            )
            total = count * rate * share
            cells.append(f"{total / 1000:.0f} k/s ({100 * share:.1f} %), {_short(_hours(EPOCHS, PAPER, total))} h")
        yield _line(student, f"{gradients / 1e6:.1f}", f"{bank / 1e6:.1f}", *cells)


def storage(facts: Facts) -> Iterator[str]:
    """Bytes of K stored views."""
    yield from _head("images", *(f"K = {views}, {kind}" for views in VIEWS for kind in ("float16", "int8")))
    for name, count in IMAGES.items():
        sizes = [count * _sample_bytes(views * facts.dimension * width) for views in VIEWS for width in (2, 1)]
        yield _line(name, *map(_bytes, sizes))


def hours(facts: Facts) -> Iterator[str]:
    """GPU hours: the teacher once for four views, then a pass of each student, beside one with the teacher at work."""
    yield from _head(
        "images", "teach K = 4, once", *(f"{student}: a pass, with the teacher at work" for student in facts.train)
    )
    for name in IMAGES:
        teach = _hours(VIEWS[1], name, facts.teacher)
        cells = [
            f"{_short(_hours(1, name, rate))}, {_short(_hours(1, name, rate) + _hours(1, name, facts.teacher))}"
            for rate in facts.train.values()
        ]
        yield _line(name, _short(teach), *cells)
    cells = [
        f"{_short(_hours(EPOCHS, PAPER, rate))}, "
        f"{_short(_hours(EPOCHS, PAPER, rate) + _hours(EPOCHS, PAPER, facts.teacher))}"
        for rate in facts.train.values()
    ]
    yield _line(f"{PAPER}, {EPOCHS} passes", _short(_hours(VIEWS[1], PAPER, facts.teacher)), *cells)


def _hours(passes: float, images: str, rate: float) -> float:
    return passes * IMAGES[images] / rate / 3600


@cache
def _gradient_bytes(student: str, dimension: int) -> int:
    model = create_student(student, embed_dim=dimension)
    return 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _sample_bytes(size: int) -> int:
    """A tar's header, and an .npy file in blocks of 512 bytes."""
    return 512 + 512 * math.ceil((128 + size) / 512)


def _bytes(count: float) -> str:
    return f"{_short(count / 1e12)} TB" if count >= 1e12 else f"{_short(count / 1e9)} GB"


def _short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _head(*cells: str) -> tuple[str, str]:
    return _line(*cells), "|---" * len(cells) + "|"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Facts()
    parser.add_argument(
        "--train",
        type=float,
        nargs=3,
        default=list(default.train.values()),
        metavar="IMAGES/S",
        help=f"of the GPU, {', '.join(default.train)} [%(default)s, an RTX 3090]",
    )
    parser.add_argument(
        "--teacher", type=float, default=default.teacher, metavar="IMAGES/S", help="the teacher's forward [%(default)s]"
    )
    parser.add_argument(
        "--core",
        type=float,
        nargs=len(CORE),
        default=list(CORE.values()),
        metavar="VIEWS/S",
        help=f"of a core: {', '.join(CORE)} [%(default)s]",
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="images a GPU and step [%(default)s]")
    parser.add_argument("--names", type=int, default=default.names, help="of the bank [%(default)s]")
    parser.add_argument("--dimension", type=int, default=default.dimension, help="of the embedding [%(default)s]")
    arguments = parser.parse_args()
    facts = Facts(
        train=dict(zip(default.train, arguments.train, strict=True)),
        teacher=arguments.teacher,
        core=dict(zip(CORE, arguments.core, strict=True)),
        batch=arguments.batch,
        names=arguments.names,
        dimension=arguments.dimension,
    )
    print(tables(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
