"""Write a model as one ONNX file, for onnxruntime and other readers of the format: uint8 pixels in, answers out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ..errors import LGDError, require
from .graph import INPUT, Graph, Names, graph_of
from .loading import ExportModel, as_strings

OPSET = 18  # the opset of torch's exporter, which needs no conversion; onnxruntime reads it since 1.14
EXTRA = "onnx"


def export(
    model: ExportModel, path: Path, *, features: bool = False, vocabulary: Names | None = None, templates: str = "none"
) -> str:
    """Write a graph of any batch size, and compare onnxruntime's answers with timm's.

    Args:
        model: any export model.
        path: the new file.
        features: answer with pooled features instead of logits.
        vocabulary: names to classify by; None: the model's own.
        templates: prompt templates of `vocabulary`.

    Returns:
        A line about input, answers and the difference from timm.

    Raises:
        LGDError: torch can't export the model, or onnxruntime answers otherwise than timm.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
    """
    graph = graph_of(model, features=features, vocabulary=vocabulary, templates=templates)
    distance = write(graph, path)
    return f"opset {OPSET}, {described(graph)}; at most {distance:.1e} from timm's"


def described(graph: Graph) -> str:
    """Describe input and output of a graph in words."""
    size, width = graph.model.size, graph.answers(graph.pixels(1)).shape[1]
    return f"{INPUT} uint8 [batch, 3, {size}, {size}] -> {graph.output} [batch, {width}]"


def write(graph: Graph, path: Path) -> float:
    """Write and check the file; return its largest difference from timm (see `Graph.compare`). Raises: as `export`."""
    library, *_ = (require(name, extra=EXTRA) for name in ("onnx", "onnxscript", "onnxruntime"))
    proto = _proto(graph)
    for node in proto.graph.node:  # stack traces: megabytes, with paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    library.helper.set_model_props(proto, as_strings({**graph.facts(), "opset": OPSET}))
    library.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    return graph.compare(runner(path), to="onnx")


def runner(path: Path, *, threads: int = 0) -> Any:
    """Load a file into onnxruntime on the CPU.

    Args:
        path: an ONNX file that `export` wrote.
        threads: 0: as many as there are cores.

    Returns:
        A function of images, uint8 [B, 3, H, W] -> answers float32 [B, K].

    Raises:
        MissingExtra: onnxruntime is not installed.
    """
    library = require("onnxruntime", extra=EXTRA)
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def _proto(graph: Graph) -> Any:
    module = copy.deepcopy(graph.module)
    parts: Any = module.modules()
    for part in parts:
        if hasattr(part, "inplace"):
            part.inplace = False  # with ReLU6 in place torch's exporter takes 1.5 times as long
    try:
        program: Any = torch.onnx.export(
            module,
            (graph.pixels(2),),  # with a batch of one, its size would become a constant
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[INPUT],
            output_names=[graph.output, *graph.more],
            opset_version=OPSET,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise LGDError(
            f"--to onnx: torch can't export {graph.model.architecture!r} ({reason}). Take another target."
        ) from error
    return program.model_proto
