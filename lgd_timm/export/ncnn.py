"""ncnn: what phones and single-board computers run without a Python or a framework. Converted by pnnx, from torch's own trace.

model.ncnn.param, model.ncnn.bin     layers and weights, batch norms folded
model.json                           how pictures are shown, and the names of the answers
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import LGDError, require
from ..utils.files import write_json
from .graph import ALLOWED, Graph, Names, graph_of
from .loading import ExportModel

EXTRA = "ncnn"
PARAM, WEIGHTS, FACTS = "model.ncnn.param", "model.ncnn.bin", "model.json"
INPUT, OUTPUT = "in0", "out0"  # pnnx's names
HALF_ALLOWED = 1e-2  # weights of 11 bits


def export(
    source: ExportModel,
    folder: Path,
    *,
    half: bool = False,
    features: bool = False,
    vocabulary: Names | None = None,
    templates: str = "none",
) -> str:
    """Write the files and compare ncnn's answers with timm's. `half`: weights as float16. Raises: LGDError, MissingExtra."""
    for library in ("ncnn", "pnnx"):
        require(library, extra=EXTRA)
    graph = graph_of(source, features=features, vocabulary=vocabulary, templates=templates)
    _convert(graph, folder, half=half)
    distance = graph.compare(runner(folder, exact=True), to="ncnn", allowed=HALF_ALLOWED if half else ALLOWED)
    write_json(folder / FACTS, {**graph.facts(), "input": INPUT, "output": OUTPUT})
    size = graph.source.size
    return f"{INPUT} [3, {size}, {size}] -> {graph.output} {OUTPUT}; at most {distance:.1e} from timm's"


def runner(folder: Path, *, threads: int = 1, exact: bool = False) -> Any:
    """The files in ncnn on the CPU, as a function of uint8 [B, 3, H, W], picture by picture. Raises: LGDError where ncnn can't.

    `exact`: float32 throughout. Without, ncnn rounds weights to float16 as it loads them, where the processor has that.
    """
    library = require("ncnn", extra=EXTRA)
    net = library.Net()
    net.opt.num_threads = threads
    if exact:
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(folder / PARAM)) or net.load_model(str(folder / WEIGHTS)):
        raise LGDError(
            "--to ncnn: the model has a layer that ncnn does not know, which it named above. Take another target, such as onnx."
        )

    def answer(image: np.ndarray) -> np.ndarray:
        pixels = image.astype(np.float32)  # a Mat borrows its memory
        with net.create_extractor() as extractor:
            extractor.input(INPUT, library.Mat(pixels))
            status, answers = extractor.extract(OUTPUT)
            if status:
                raise LGDError(
                    f"--to ncnn: ncnn stops within the graph (status {status}). Take another target, such as onnx."
                )
            return np.array(answers)

    return lambda images: np.stack([answer(image) for image in images])


def _convert(graph: Graph, folder: Path, *, half: bool) -> None:
    size = graph.source.size
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # that tracing is old, and what it takes for constants; the answers are compared
            torch.jit.trace(graph.module, (graph.pixels(1).float(),), check_trace=False).save(work / "model.pt")
        program = require("pnnx", extra=EXTRA).EXEC_PATH
        words = [program, "model.pt", f"inputshape=[1,3,{size},{size}]f32", f"fp16={int(half)}"]
        done = subprocess.run(words, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode or not (work / PARAM).is_file():
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise LGDError(
                f"--to ncnn: pnnx can't convert {graph.source.architecture!r} ({reason}). Take another target, such as onnx."
            )
        for file in (PARAM, WEIGHTS):
            (folder / file).write_bytes((work / file).read_bytes())
