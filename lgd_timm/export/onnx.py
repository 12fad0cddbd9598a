"""ONNX: one file that takes bytes and answers, for onnxruntime and whatever else reads the format."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ..errors import LGDError, require
from .graph import INPUT, Graph, Names, graph_of
from .loading import ExportModel, as_strings

OPSET = 18  # what torch's exporter itself speaks; onnxruntime has read it since 1.14
EXTRA = "onnx"


def export(
    source: ExportModel, path: Path, *, features: bool = False, vocabulary: Names | None = None, templates: str = "none"
) -> str:
    """Write a graph of any batch size and compare onnxruntime's answers with timm's. Raises: LGDError, MissingExtra."""
    graph = graph_of(source, features=features, vocabulary=vocabulary, templates=templates)
    distance = write(graph, path)
    return f"opset {OPSET}, {described(graph)}; at most {distance:.1e} from timm's"


def described(graph: Graph) -> str:
    """What goes in and comes out."""
    size, width = graph.source.size, graph.answers(graph.pixels(1)).shape[1]
    return f"{INPUT} uint8 [batch, 3, {size}, {size}] -> {graph.output} [batch, {width}]"


def write(graph: Graph, path: Path) -> float:
    """Write the file, check it, and return its distance from timm (see `Graph.compare`). Raises: LGDError, MissingExtra."""
    library, *_ = (require(name, extra=EXTRA) for name in ("onnx", "onnxscript", "onnxruntime"))
    proto = _proto(graph)
    for node in proto.graph.node:  # where each came from: paths on this machine, and megabytes
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    library.helper.set_model_props(proto, as_strings({**graph.facts(), "opset": OPSET}))
    library.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    return graph.compare(runner(path), to="onnx")


def runner(path: Path, *, threads: int = 0) -> Any:
    """The file in onnxruntime on the CPU, as a function of uint8 [B, 3, H, W]. `threads` 0: as many as there are cores."""
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
            part.inplace = False  # over ReLU6 in place torch's exporter takes half as long again
    try:
        program: Any = torch.onnx.export(
            module,
            (graph.pixels(2),),  # of one, the batch would be taken for a constant
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[INPUT],
            output_names=[graph.output],
            opset_version=OPSET,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise LGDError(
            f"--to onnx: torch can't export {graph.source.architecture!r} ({reason}). Take another target."
        ) from error
    return program.model_proto
