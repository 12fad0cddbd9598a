"""Estimate what many GPUs would cost, on paper, from a step that was measured on one.

    python -m benchmarks.speed.scaling --step-ms MS

A step of N ranks takes t + c(N) seconds at most, t being the step of one rank on its part of the batch:

    c(N) = 2 (N - 1) / N * (4 P + 4 K (D + 1)) / W + 2 ceil(log2 N) * L        efficiency = t / (t + c(N))

P parameters have float32 gradients, a bank of K names in D dimensions is one sum and one count a name; W is the
bandwidth of a rank to the slowest neighbour, L the latency of a hop. Nothing is taken to overlap, though DDP reduces
while it goes backward: a lower bound, without what slow disks and stragglers cost.
"""

from __future__ import annotations

import argparse
import math
import sys

from lgd_timm.students.entrypoints import STUDENTS
from lgd_timm.students.model import create_student


def main() -> int:
    arguments = _parser().parse_args()
    bank = 4 * arguments.names * (arguments.dimension + 1)
    lines = f"W in GB/s = {arguments.bandwidth:g}, in a machine {arguments.inside:g}; L in us = {arguments.hop:g}"
    print(f"A step of {arguments.step_ms:g} ms; {lines}\n")
    _print("student", "gradients, MB", "bank, MB", *(f"{count} GPUs" for count in arguments.gpus))
    print("|---" * (3 + len(arguments.gpus)) + "|")
    for student in STUDENTS:
        model = create_student(student, embed_dim=arguments.dimension)
        gradients = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        line = {name: getattr(arguments, name) for name in ("step_ms", "machine", "inside", "bandwidth", "hop")}
        efficiencies = (efficiency(count, gradients + bank, **line) for count in arguments.gpus)
        _print(
            student,
            f"{gradients / 1e6:.1f}",
            f"{bank / 1e6:.1f}",
            *(f"{100 * efficiency:.1f} %" for efficiency in efficiencies),
        )
    return 0


def efficiency(
    count: int, size: int, *, step_ms: float, machine: int, inside: float, bandwidth: float, hop: float
) -> float:
    """t / (t + c(N)) of `count` GPUs that share `size` bytes a step, by the formula above.

    `bandwidth` is in GB/s between machines of `machine` GPUs, `inside` within one, `hop` in microseconds.
    """
    speed = 1e9 * (inside if count <= machine else bandwidth)
    costs = 2 * (count - 1) / count * size / speed + 2 * math.ceil(math.log2(count)) * hop * 1e-6
    step = step_ms / 1000
    return step / (step + costs)


def _print(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--step-ms",
        type=float,
        required=True,
        help="of one rank, its part of the batch: python -m benchmarks --only step --device cuda",
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--machine", type=int, default=8, help="GPUs of one machine [8]")
    parser.add_argument("--inside", type=float, default=300.0, help="GB/s of a rank within a machine [300, NVLink]")
    parser.add_argument(
        "--bandwidth", type=float, default=25.0, help="GB/s of a rank between machines [25, half of a 400 Gbit/s line]"
    )
    parser.add_argument("--hop", type=float, default=20.0, help="microseconds [20]")
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=1024)
    return parser


if __name__ == "__main__":
    sys.exit(main())
