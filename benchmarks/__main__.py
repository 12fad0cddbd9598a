"""`python -m benchmarks`, from the checkout: pairs of measurements in one table, each beside its goal."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

import torch

from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.students.entrypoints import STUDENTS
from lgd_timm.utils.device import keep_memory, pick_device

from .settings import Settings, cores, machine
from .speed import (
    allocator,
    gpu,
    loader,
    objective,
    pulling,
    ranks,
    resizing,
    small_conv,
    startup,
    steps,
    teaching,
    views,
)
from .speed.pairs import Row, table
from .speed.photographs import describe, photographs

ROWS = {
    "step": (steps.stored_over_bare, "a step of distillation, loader included, over the student's own step"),
    "online": (steps.stored_over_online, "the same step over one with the teacher at work"),
    "loader": (loader.rows, "the loader alone, images/s a core"),
    "views": (views.rows, "one view on one core, with OpenCV over without"),
    "resize": (resizing.rows, "images resized once: the loader's rate, and what it costs in pixels and to a teacher"),
    "objective": (objective.rows, "loss and bank: time over matrix products and over a loop, memory"),
    "teach": (teaching.rows, "`lgd-timm teach` over its teacher's forward"),
    "startup": (startup.rows, "import and create_model over timm's"),
    "allocator": (allocator.rows, "a CPU step that keeps its memory over one that does not"),
    "pull": (pulling.rows, "weights verified while they come and when they are there, over the same unverified"),
    "small-convs": (small_conv.rows, "a CPU step on small images, convolutions as here over torch's"),
    "ranks": (ranks.rows, "two ranks on two cores over one on one, images/s"),
}


def main() -> int:
    arguments = _parser().parse_args()
    keep_memory()  # as `lgd-timm distill` and `teach` do; both sides of a pair profit
    warnings.filterwarnings("ignore")  # of other libraries, between the lines of the table
    logging.disable(logging.WARNING)
    try:
        settings = _settings(arguments)
        if arguments.what == "gpu":
            return _gpu(settings, arguments)
        if arguments.profile:
            print(steps.top_operations(settings, arguments.profile))
            return 0
        facts = {**machine(settings.device), "photographs": describe(photographs(settings.photographs))}
        if settings.quick:
            facts["quick"] = "sizes are small and few: all runs, and the numbers say nothing"
        done = [row for name in arguments.only for row in _measured(name, settings)]
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), table(done), sep="\n\n")
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps({"machine": facts, "rows": [row.to_dict() for row in done]}, indent=1), encoding="utf-8"
        )
    return 0


def _gpu(settings: Settings, arguments: argparse.Namespace) -> int:
    results = gpu.run(settings)
    path = Path(arguments.json or "output/benchmarks-gpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results.to_dict(), indent=1), encoding="utf-8")
    print(results.markdown(), f"Every value is in {path}.", sep="\n\n")
    if arguments.fill:
        gpu.fill(arguments.fill, results.markdown())
    return 0


def _measured(name: str, settings: Settings) -> list[Row]:
    rows = []
    for row in ROWS[name][0](settings):
        print("  ".join(row.cells()), file=sys.stderr, flush=True)  # the table comes last, and that can be long
        rows.append(row)
    return rows


def _settings(arguments: argparse.Namespace) -> Settings:
    accelerator = arguments.what == "gpu"
    device = torch.device(pick_device(arguments.device or ("cuda" if accelerator else "cpu")))
    cuda = device.type == "cuda"
    share = cores() if accelerator else cores() // 2
    return Settings(
        device=device,
        rounds=arguments.rounds or (1 if arguments.quick else 4 if accelerator else 5),
        workers=arguments.workers or max(1, share),
        students=tuple(arguments.students or list(STUDENTS)[: 1 if arguments.quick else None]),
        batch_size=arguments.batch_size or (8 if arguments.quick else 256 if cuda else 32),
        amp=arguments.amp or ("bfloat16" if cuda else "none"),
        compile=arguments.compile,
        quick=arguments.quick,
    )


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:<12} {what}" for name, (_, what) in ROWS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=f"{__doc__}\n\n{rows}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("gpu",), help="instead of rows: what one accelerator does, within eight minutes"
    )
    parser.add_argument("--fill", type=Path, metavar="PAGE", help="of gpu: put the table between the page's marks")
    parser.add_argument("--only", type=_names, default=tuple(ROWS), metavar="step,pull", help="these rows")
    parser.add_argument("--rounds", type=int, help="pairs of measurements in a row [5; of gpu: 4]")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all runs, measures nothing")
    parser.add_argument("--json", metavar="FILE", help="write every value [of gpu: output/benchmarks-gpu.json]")
    parser.add_argument("--device", help="cpu or cuda [cpu; of gpu: cuda]")
    parser.add_argument(
        "--workers", type=int, help="of the loaders in rows step, online and teach [half the cores; of gpu: all]"
    )
    parser.add_argument("--students", nargs="+", choices=tuple(STUDENTS), help="of rows step and online [all]")
    parser.add_argument("--batch-size", type=int, help="of rows step, online, loader and teach [32, on cuda 256]")
    parser.add_argument("--amp", choices=("none", "bfloat16"), help="of the students [none, on cuda bfloat16]")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile students and objective; gpu measures both"
    )
    parser.add_argument(
        "--profile",
        choices=tuple(STUDENTS),
        metavar="STUDENT",
        help="instead: the ten operations that take most of its step",
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - ROWS.keys():
        raise argparse.ArgumentTypeError(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
