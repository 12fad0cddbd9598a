"""ONNX: one checked file that takes bytes in batches of any size and answers as timm does, or no file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lgd_timm import cli
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.export import onnx as module
from lgd_timm.export.graph import graph_of
from lgd_timm.export.loading import open_export_model
from lgd_timm.export.targets import export
from tests.helpers.pages import run_snippet
from tests.helpers.shaken import NAMES, shaken, small

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as `--to onnx`. Read only."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export(small(), path, to="onnx")
    return path


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def differences(exported: Any, path: Path) -> list[float]:
    """From timm, in batches of 1, 3 and 8."""
    graph, opened = graph_of(exported), session(path)
    pixels = [graph.pixels(count) for count in (1, 3, 8)]
    return [
        float(np.abs(opened.run(None, {"images": part.numpy()})[0] - graph.answers(part).numpy()).max())
        for part in pixels
    ]


def test_the_file_is_sound_and_states_opset_input_and_output(mobilenet_onnx: Path) -> None:
    onnx.checker.check_model(onnx.load(mobilenet_onnx), full_check=True)
    assert [(opset.domain, opset.version) for opset in onnx.load(mobilenet_onnx).opset_import] == [("", 18)]
    (images,), (logits,) = session(mobilenet_onnx).get_inputs(), session(mobilenet_onnx).get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 3, 48, 48])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 10])


def test_any_batch_is_answered_as_timm_does(mobilenet_onnx: Path) -> None:
    assert max(differences(open_export_model("lgd_mobilenetv2"), mobilenet_onnx)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lgd_resnet18", "lgd_efficientnet_b0"])
def test_the_other_published_students_too(name: str, tmp_path: Path) -> None:
    export(open_export_model(name), tmp_path / "x.onnx", to="onnx")
    assert max(differences(open_export_model(name), tmp_path / "x.onnx")) <= 1e-4


def test_names_and_preprocessing_are_metadata(mobilenet_onnx: Path) -> None:
    facts = dict(session(mobilenet_onnx).get_modelmeta().custom_metadata_map)
    assert (facts.pop("architecture"), facts.pop("interpolation")) == ("mobilenetv2_100", "bicubic")
    said = [facts.pop(key) for key in ("channel_order", "normalisation", "answers")]
    assert said == ["RGB", "inside the graph", "logits"]
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "value_range": [0, 255]}
    rest = {key: json.loads(value) for key, value in facts.items()}
    assert rest == {"size": 48, "crop_pct": 1.0, "label_names": CIFAR10, "opset": 18, **statistics}


def test_nothing_of_this_machine_is_in_the_file(mobilenet_onnx: Path) -> None:
    """torch's exporter writes stack traces."""
    data = mobilenet_onnx.read_bytes()
    assert b"site-packages" not in data
    assert str(Path.cwd()).encode() not in data


def test_floats_are_refused_by_type_and_not_taken_for_bytes(mobilenet_onnx: Path) -> None:
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="uint8"):
        session(mobilenet_onnx).run(None, {"images": np.random.rand(1, 3, 48, 48).astype(np.float32)})


def test_the_page_shows_how_a_picture_is_classified(
    mobilenet_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(mobilenet_onnx.read_bytes())
    Image.new("RGB", (60, 50), "blue").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert run_snippet("InferenceSession")["answer"] in CIFAR10


def test_the_command_writes_features_of_a_run(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "x.onnx"
    assert cli.main(["export", str(run_folder), str(out), "--to", "onnx", "--features"]) == 0
    assert "images uint8 [batch, 3, 32, 32] -> features [batch, 96]" in capsys.readouterr().out
    exported = open_export_model(str(run_folder))
    graph = graph_of(exported, features=True)
    (found,) = session(out).run(None, {"images": graph.pixels(3).numpy()})
    np.testing.assert_allclose(found, graph.answers(graph.pixels(3)).numpy(), atol=1e-4)


def test_equal_models_give_equal_bytes(tiny_onnx: Path, tmp_path: Path) -> None:
    export(small(), tmp_path / "again.onnx", to="onnx")
    assert (tmp_path / "again.onnx").read_bytes() == tiny_onnx.read_bytes()


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_file_that_answers_otherwise_is_not_kept(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = onnx.load(tiny_onnx)
    bias = next(tensor for tensor in wrong.graph.initializer if tensor.dims == [len(NAMES)])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    monkeypatch.setattr(module, "_proto", lambda graph: wrong)
    with pytest.raises(LGDError, match=r"--to onnx: the runtime's logits are .* from timm's"):
        export(small(), tmp_path / "x.onnx", to="onnx")
    assert list(tmp_path.iterdir()) == []


class Undecided(nn.Module):
    """What it does depends on what it sees, which no graph can say."""

    num_classes = len(NAMES)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_what_torch_can_not_export_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LGDError, match="--to onnx: torch can't export 'test_resnet'") as caught:
        export(replace(shaken("test_resnet"), network=Undecided()), tmp_path / "x.onnx", to="onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_its_extra(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(MissingExtra, match=rf"'{library}' can't be imported .* pip install 'lgd_timm\[onnx\]'"):
        export(shaken("test_resnet"), tmp_path / "x.onnx", to="onnx")
    assert list(tmp_path.iterdir()) == []
