"""Table of what each target of `lgd-timm export` costs and keeps.

    python -m benchmarks.speed.exports hub/NAME --data data/cifar10

A row a format: bytes, latency of one picture on one core at the model's own size and at others, raw pixels in and
answers out, and top-1 on every picture of a split. All formats are timed in turns, so that what the machine does
meanwhile happens to all.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgd_timm.data import open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.evaluate.zero_shot import zero_shot
from lgd_timm.export import ncnn, onnx
from lgd_timm.export.graph import Graph, graph_of, views_of
from lgd_timm.export.loading import ExportModel, open_export_model
from lgd_timm.export.targets import export

from ..settings import machine
from .pairs import calls_for, digits, seconds, spread

PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "ncnn", "pnnx")
LEAST = 0.2  # seconds that one measurement takes

Run = Callable[[np.ndarray], Any]  # uint8 [B, 3, H, W] -> logits [B, C]


@dataclass(frozen=True)
class Format:
    """One row. `size` in bytes; None where no file is written."""

    name: str
    run: Run
    size: int | None = None
    scored: bool = True


def formats(exported: ExportModel, folder: Path, *, data: str, compiled: bool) -> Iterator[Format]:
    """Each written to `folder`, and opened by its runtime with one thread."""
    graph = graph_of(exported)
    weights = None if exported.folder is None else (exported.folder / "model.safetensors").stat().st_size
    yield Format("timm, PyTorch", _torch(graph.module), weights)
    if compiled:
        yield Format("torch.compile", _torch(torch.compile(graph.module)), scored=False)
    for name, to, options in (("ONNX", "onnx", {}), ("ONNX int8", "onnx-int8", {"data": data})):
        path = folder / f"{to}.onnx"
        print(f"{exported.size} px: {name}: {export(exported, path, to=to, **options)}", file=sys.stderr, flush=True)
        yield Format(name, onnx.runner(path, threads=1), path.stat().st_size)
    for name, half in (("ncnn", False), ("ncnn, half", True)):
        path = folder / name
        print(
            f"{exported.size} px: {name}: {export(exported, path, to='ncnn', half=half)}", file=sys.stderr, flush=True
        )
        yield Format(name, ncnn.runner(path), sum(file.stat().st_size for file in path.iterdir()))


def _torch(module: Any) -> Run:
    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return run


def latencies(rows: Sequence[Format], picture: np.ndarray, *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds a picture, in `rounds` turns of all formats."""
    calls = {row.name: calls_for(lambda row=row: row.run(picture), least=LEAST) for row in rows}
    turns = [
        {row.name: 1e3 * seconds(lambda row=row: row.run(picture), calls=calls[row.name]) for row in rows}
        for _ in range(rounds)
    ]
    return {row.name: [turn[row.name] for turn in turns] for row in rows}


def top1(row: Format, exported: ExportModel, *, data: str, split: str) -> str:
    dataset = ShardDataset(open_shards(data, split=split), views=views_of(exported), allow_empty=True)
    score = zero_shot(
        lambda batch: torch.from_numpy(row.run(batch.images.numpy())),
        dataset,
        names=exported.label_names,
        description=row.name,
    )
    return f"{score.top1:.2f} % of {score.samples}"


def table(exported: ExportModel, arguments: argparse.Namespace) -> str:
    """Markdown."""
    cells: dict[str, list[str]] = {}
    sizes = [exported.size, *(size for size in arguments.sizes if size != exported.size)]
    for size in sizes:
        sized = replace(exported, size=size)
        with tempfile.TemporaryDirectory() as folder:
            rows = list(formats(sized, Path(folder), data=arguments.data, compiled=arguments.compile))
            times = latencies(rows, _picture(graph_of(sized)), rounds=arguments.rounds)
            for row in rows:
                if size == exported.size:
                    score = top1(row, exported, data=arguments.data, split=arguments.split) if row.scored else ""
                    cells[row.name] = [row.name, "" if row.size is None else f"{row.size / 1e6:.1f} MB", score]
                cells[row.name].append(spread(times[row.name]))
                print(
                    f"{size} px: {row.name}: {digits(statistics.median(times[row.name]))} ms",
                    file=sys.stderr,
                    flush=True,
                )
    head = ["format", "size", f"top-1, {arguments.split}", *(f"ms at {size} px" for size in sizes)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells.values()])


def _picture(graph: Graph) -> np.ndarray:
    return graph.pixels(1).numpy()


def main() -> int:
    arguments = _parser().parse_args()
    logging.disable(logging.WARNING)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, whatever a runtime takes for its own
    torch.set_num_threads(1)
    try:
        exported = open_export_model(arguments.model)
        if not exported.label_names:
            raise LGDError(
                f"{arguments.model!r} does not name its classes, so its answers can't be scored. "
                "Give a published classifier."
            )
        facts = machine(torch.device("cpu"), packages=PACKAGES)
        text = table(exported, arguments)
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    facts["latency"] = (
        f"one picture, median [quartiles] of {arguments.rounds} turns of at least {LEAST} s, one core and one thread"
    )
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), text, sep="\n\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.exports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="published folder or name, with a classifier")
    parser.add_argument("--data", required=True, help="shard folder: `train` calibrates, --split is scored")
    parser.add_argument("--split", default="val")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[224], help="other sizes to time the same architecture at [224]"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns [7]")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes, and a C++ compiler")
    return parser


if __name__ == "__main__":
    sys.exit(main())
