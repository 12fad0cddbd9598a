"""int8: less than half the size, mostly the same answers as float, calibrated on images without labels."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lgd_timm import cli
from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, MissingExtra, ShardError
from lgd_timm.export import onnx as onnx_module
from lgd_timm.export import onnx_int8 as module
from lgd_timm.export.graph import views_of
from lgd_timm.export.loading import open_export_model
from lgd_timm.export.targets import export
from tests.helpers import ROOT
from tests.helpers.shaken import small

SMALL = ROOT / "recipes" / "cifar10_small"


@pytest.fixture(scope="session")
def mobilenet_int8(tmp_path_factory: pytest.TempPathFactory, mobilenet_onnx: Path) -> Path:
    """The published MobileNetV2 as `--to onnx-int8`. Read only."""
    path = tmp_path_factory.mktemp("int8") / "mobilenet.onnx"
    with pytest.MonkeyPatch.context() as patch:  # the float graph, which takes seconds, is there
        patch.setattr(onnx_module, "write", lambda graph, out: shutil.copy(mobilenet_onnx, out))
        export(open_export_model("lgd_mobilenetv2"), path, to="onnx-int8", data=str(SMALL), calibration_images=64)
    return path


def answers(path: Path, pictures: np.ndarray) -> np.ndarray:
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pictures})[0]


def test_it_answers_as_float_for_most_real_pictures_and_is_small(mobilenet_onnx: Path, mobilenet_int8: Path) -> None:
    dataset = ShardDataset(open_shards(SMALL, split="val"), views=views_of(open_export_model("lgd_mobilenetv2")))
    pictures = dataset.__getitems__([(place, 0) for place in range(0, 1000, 5)]).images.numpy()
    agree = answers(mobilenet_int8, pictures).argmax(1) == answers(mobilenet_onnx, pictures).argmax(1)
    assert agree.mean() > 0.93  # 0.98 with all 7 bits; 0.90 where products of 8 bits overflow
    assert mobilenet_int8.stat().st_size < 0.35 * mobilenet_onnx.stat().st_size
    assert answers(mobilenet_int8, pictures[:1]).shape == (1, 10)


def test_every_convolution_is_of_bytes(mobilenet_int8: Path) -> None:
    proto = onnx.load(mobilenet_int8)
    onnx.checker.check_model(proto, full_check=True)
    maker = {output: node for node in proto.graph.node for output in node.output}
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 53
    for node in layers:
        images, weights = (maker[name] for name in node.input[:2])
        assert (images.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        values, scales = (tensors[name] for name in weights.input[:2])
        assert values.dtype == np.int8
        assert abs(values.astype(int)).max() <= 64  # 7 bits
        assert scales.size in values.shape[:2]  # a scale a channel
    assert {opset.domain for opset in proto.opset_import} == {""}


def test_the_metadata_stay_and_say_how_it_was_quantised(mobilenet_onnx: Path, mobilenet_int8: Path) -> None:
    facts, of_float = (
        {p.key: p.value for p in onnx.load(path).metadata_props} for path in (mobilenet_int8, mobilenet_onnx)
    )
    assert facts.pop("quantisation") == "int8, static, calibrated on 64 pictures of cifar10_small (train)"
    assert facts == of_float
    assert json.loads(facts["label_names"])[0] == "airplane"


def test_the_command_calibrates_on_unlabelled_images(
    run_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(image_folder, tmp_path / "shards", split="train", labels=False)
    words = [
        "export",
        str(run_folder),
        str(tmp_path / "x.onnx"),
        "--to",
        "onnx-int8",
        "--data",
        str(tmp_path / "shards"),
    ]
    assert cli.main([*words, "--calibration-images", "8"]) == 0
    said = capsys.readouterr().out
    assert "the same answer as float for 100.0 % of 8 pictures it was not calibrated on" in said
    assert len(onnx.load(tmp_path / "x.onnx").graph.node) > 0


def test_features_are_compared_by_cosine(shard_folder: Path, tmp_path: Path) -> None:
    said = export(small(classes=0), tmp_path / "x.onnx", to="onnx-int8", data=str(shard_folder))
    cosine = float(said.partition("a cosine with float's features of ")[2].partition(",")[0])
    assert 0.98 < cosine <= 1


def test_pictures_to_calibrate_and_to_compare_on_are_others_and_of_all_classes(shard_folder: Path) -> None:
    dataset = ShardDataset(open_shards(shard_folder, split="train"), views=Views(size=32, augmentation="none"))
    seen, others = module._images(dataset, 12)
    assert (len(seen), len(others)) == (12, 12)
    assert {part.tobytes() for part in seen}.isdisjoint(part.tobytes() for part in others)
    for part in (seen, others):
        assert set(part.mean((2, 3)).argmax(1).tolist()) == {0, 1, 2}
    half = module._images(dataset, 1000)
    assert [len(part) for part in half] == [24, 24]


def test_a_bad_picture_is_named_and_left_out(
    shard_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ShardDataset(
        open_shards(shard_folder, split="train"), views=Views(size=32, augmentation="none"), allow_empty=True
    )
    honest = ShardDataset._render

    def render(self: ShardDataset, sample: Any, index: int) -> Any:
        if sample.position == 4:
            raise ValueError("damaged")
        return honest(self, sample, index)

    monkeypatch.setattr(ShardDataset, "_render", render)
    seen, others = module._images(dataset, 24)
    assert {len(seen), len(others)} == {23, 24}
    assert "ValueError: damaged" in caplog.text
    monkeypatch.setattr(ShardDataset, "_render", lambda *_: (_ for _ in ()).throw(ValueError("damaged")))
    with pytest.raises(ShardError, match="24 of 24 samples can't be read"):
        module._images(dataset, 24)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_without_pictures_there_is_nothing_to_calibrate_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "lgd_mobilenetv2", str(tmp_path / "x.onnx"), "--to", "onnx-int8"]) == 2
    assert (
        "--to onnx-int8 calibrates on pictures like those it will see. Name their shard folder: --data."
        in capsys.readouterr().err
    )
    assert not (tmp_path / "x.onnx").exists()


def test_a_split_that_is_not_there_is_refused(shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="test"):
        export(small(), tmp_path / "x.onnx", to="onnx-int8", data=str(shard_folder), split="test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, -3])
def test_too_few_pictures_are_refused(count: int, shard_folder: Path, tmp_path: Path) -> None:
    options = {"data": str(shard_folder), "calibration_images": count}
    with pytest.raises(
        LGDError, match=rf"--calibration-images {count}, and .* \(train\) has 48: at least one is needed"
    ):
        export(small(), tmp_path / "x.onnx", to="onnx-int8", **options)


def test_a_missing_library_names_its_extra(shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lgd_timm\[onnx\]'"):
        export(small(), tmp_path / "x.onnx", to="onnx-int8", data=str(shard_folder))
