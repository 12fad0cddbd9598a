"""Write a model as ONNX in int8: static quantisation by onnxruntime, calibrated on images of a shard folder.

Activations are uint8 between the smallest and largest value of the calibration. Weights are int8 with one scale a
channel, and use 7 of their 8 bits: processors without dot products of bytes (x86 before VNNI) add pairs of products in
16 bits, which would overflow.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from ..data import open_shards
from ..data.dataset import BadSamples, ShardDataset
from ..data.loader import loader
from ..data.samplers import SequentialSampler
from ..errors import LGDError, require
from . import onnx
from .graph import INPUT, Names, graph_of, views_of
from .loading import ExportModel, as_strings

MAX_BAD = 0.1  # share of the images that may be unreadable

_log = logging.getLogger(__name__)


def export(
    model: ExportModel,
    path: Path,
    *,
    data: str | None = None,
    split: str = "train",
    calibration_images: int = 512,
    vocabulary: Names | None = None,
    templates: str = "none",
) -> str:
    """Quantise the graph that `onnx.export` writes.

    Args:
        model: any export model.
        path: the new file.
        data: shard folder, or address of one, to calibrate on; labels are not needed.
        split: which split of it.
        calibration_images: how many of its images, spread evenly over the split.
        vocabulary: names to classify by; None: the model's own.
        templates: prompt templates of `vocabulary`.

    Returns:
        A line that compares both graphs on as many other images of the split.

    Raises:
        LGDError: there is no `data` or too little of it, and as `onnx.export`.
        ShardError: the shards can't be used, or more than a tenth of the images can't be read.
        MissingExtra: a library is not installed.
    """
    if data is None:
        raise LGDError("--to onnx-int8 calibrates on pictures like those it will see. Name their shard folder: --data.")
    graph = graph_of(model, vocabulary=vocabulary, templates=templates)
    dataset = ShardDataset(open_shards(data, split=split), views=views_of(model), allow_empty=True)
    seen, others = _images(dataset, calibration_images)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "float.onnx"
        onnx.write(graph, whole)
        _quantise(whole, path, seen)
        how = f"int8, static, calibrated on {len(seen)} pictures of {Path(data).name} ({split})"
        _tidy(path, as_strings({**graph.facts(), "opset": onnx.OPSET, "quantisation": how}))
        wanted, found = (_answers(file, others) for file in (whole, path))
        share = 100 * path.stat().st_size / whole.stat().st_size
    if graph.output == "logits":
        alike = f"the same answer as float for {100 * (wanted.argmax(1) == found.argmax(1)).float().mean():.1f} %"
    else:
        alike = f"a cosine with float's features of {cosine_similarity(wanted, found).mean():.4f}, on average"
    return (
        f"{onnx.described(graph)}; {share:.0f} % of float's bytes; {alike} of {len(others)} pictures it was not "
        "calibrated on"
    )


def _images(dataset: ShardDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Read two disjoint sets of images, uint8 [N, 3, size, size].

    They alternate over the whole split, as shards may be in the order of classes.
    """
    if count < 1 or len(dataset) < 2:
        raise LGDError(
            f"--calibration-images {count}, and {dataset.shards.root} ({dataset.shards.split}) has {len(dataset)}: "
            "at least one is needed, and another to compare on."
        )
    positions = np.unique(np.linspace(0, len(dataset) - 1, min(2 * count, len(dataset))).round().astype(int)).tolist()
    seen, others = (_read(dataset, positions[first::2]) for first in (0, 1))
    return seen, others


def _read(dataset: ShardDataset, positions: list[int]) -> np.ndarray:
    bad, images = BadSamples(MAX_BAD, size=len(positions)), []
    for batch in loader(dataset, SequentialSampler(positions, 64)):
        for line in bad.add(batch.bad):
            _log.warning(line)
        images.append(batch.images)
    return torch.cat(images).numpy()


def _quantise(whole: Path, path: Path, images: np.ndarray) -> None:
    library = require("onnxruntime.quantization", extra=onnx.EXTRA)
    require("onnxruntime.quantization.shape_inference", extra=onnx.EXTRA).quant_pre_process(
        whole, whole, skip_symbolic_shape=True
    )

    class Reader(library.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(_parts(images))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    library.quantize_static(
        whole,
        path,
        Reader(),
        quant_format=library.QuantFormat.QDQ,
        activation_type=library.QuantType.QUInt8,
        weight_type=library.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        calibrate_method=library.CalibrationMethod.MinMax,
    )


def _tidy(path: Path, metadata: dict[str, str]) -> None:
    """Replace the metadata, and remove operator sets that no node uses.

    onnxruntime adds notes of its own in no fixed order, and asks for operator sets that other readers may lack.
    """
    library = require("onnx", extra=onnx.EXTRA)
    proto = library.load(path)
    library.helper.set_model_props(proto, metadata)
    used = {node.domain for node in proto.graph.node}
    for unused in [opset for opset in proto.opset_import if opset.domain not in used]:
        proto.opset_import.remove(unused)
    library.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def _answers(path: Path, images: np.ndarray) -> torch.Tensor:
    run = onnx.runner(path)
    return torch.cat([torch.from_numpy(run(part)) for part in _parts(images)])


def _parts(images: np.ndarray) -> list[np.ndarray]:
    """Split into batches of at most 8: calibration keeps every activation of a batch in memory."""
    return np.array_split(images, -(-len(images) // 8))
