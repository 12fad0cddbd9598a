"""Write a model for ncnn, which runs on phones and single-board computers. pnnx converts it from a torch trace.

model.ncnn.param, model.ncnn.bin     layers and weights, batch norms folded
model.json                           preprocessing, and the names of the classes
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
HALF_ALLOWED = 1e-2  # float16 has 11 significant bits


def export(
    model: ExportModel,
    folder: Path,
    *,
    half: bool = False,
    features: bool = False,
    vocabulary: Names | None = None,
    templates: str = "none",
) -> str:
    """Write the files, and compare ncnn's answers with timm's.

    Args:
        model: any export model.
        folder: an empty folder.
        half: store weights as float16.
        features: answer with pooled features instead of logits.
        vocabulary: names to classify by; None: the model's own.
        templates: prompt templates of `vocabulary`.

    Returns:
        A line about input, answers and the difference from timm.

    Raises:
        LGDError: ncnn can't express the model, or answers otherwise than timm.
        MissingExtra: ncnn or pnnx is not installed.
    """
    for library in ("ncnn", "pnnx"):
        require(library, extra=EXTRA)
    graph = graph_of(model, features=features, vocabulary=vocabulary, templates=templates)
    _convert(graph, folder, half=half)
    distance = graph.compare(runner(folder, exact=True), to="ncnn", allowed=HALF_ALLOWED if half else ALLOWED)
    write_json(folder / FACTS, {**graph.facts(), "input": INPUT, "output": OUTPUT})
    size = graph.model.size
    return f"{INPUT} [3, {size}, {size}] -> {graph.output} {OUTPUT}; at most {distance:.1e} from timm's"


def runner(folder: Path, *, threads: int = 1, exact: bool = False) -> Any:
    """Load written files into ncnn on the CPU.

    Args:
        folder: with the files that `export` wrote.
        threads: of one image's computation.
        exact: compute in float32. Otherwise ncnn rounds weights to float16 on loading, where the processor supports it.

    Returns:
        A function of images, uint8 [B, 3, H, W] -> answers float32 [B, K], which runs one image at a time.

    Raises:
        LGDError: ncnn does not know a layer; from the function: the graph stops.
        MissingExtra: ncnn is not installed.
    """
    library = require("ncnn", extra=EXTRA)
    net = library.Net()
    net.opt.num_threads = threads
    if exact:
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(folder / PARAM)) or net.load_model(str(folder / WEIGHTS)):
        raise LGDError(
            "--to ncnn: the model has a layer that ncnn does not know, which it named above. Take another target, such "
            "as onnx."
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
    size = graph.model.size
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with warnings.catch_warnings():
            # That tracing is deprecated, and which values it takes for constants; the answers are compared
            warnings.simplefilter("ignore")
            torch.jit.trace(graph.module, (graph.pixels(1).float(),), check_trace=False).save(work / "model.pt")
        program = require("pnnx", extra=EXTRA).EXEC_PATH
        words = [program, "model.pt", f"inputshape=[1,3,{size},{size}]f32", f"fp16={int(half)}"]
        done = subprocess.run(words, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode or not (work / PARAM).is_file():
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise LGDError(
                f"--to ncnn: pnnx can't convert {graph.model.architecture!r} ({reason}). Take another target, such as "
                "onnx."
            )
        for file in (PARAM, WEIGHTS):
            (folder / file).write_bytes((work / file).read_bytes())
