"""ncnn: two files and their facts, which answer as timm does; what it can't run is refused and leaves nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm import cli
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.export import ncnn as module
from lgd_timm.export.graph import graph_of
from lgd_timm.export.loading import ExportModel, open_export_model
from lgd_timm.export.targets import export
from tests.helpers.pages import run_snippet
from tests.helpers.shaken import small

FILES = ["model.json", "model.ncnn.bin", "model.ncnn.param"]
PUBLISHED = [
    "lgd_mobilenetv2",
    pytest.param("lgd_resnet18", marks=pytest.mark.slow),
    pytest.param("lgd_efficientnet_b0", marks=pytest.mark.slow),
]


def difference(exported: ExportModel, folder: Path) -> float:
    graph = graph_of(exported)
    found = module.runner(folder, exact=True)(graph.pixels(4).numpy())
    return float(np.abs(found - graph.answers(graph.pixels(4)).numpy()).max())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_student_answers_as_timm_does(name: str, tmp_path: Path) -> None:
    export(open_export_model(name), tmp_path / "out", to="ncnn")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert difference(open_export_model(name), tmp_path / "out") <= 1e-4


def test_half_takes_half_the_space_and_rounds(tmp_path: Path) -> None:
    exported = open_export_model("lgd_mobilenetv2")
    export(exported, tmp_path / "half", to="ncnn", half=True)
    whole = sum(parameter.numel() for parameter in exported.network.parameters()) * 4
    assert (tmp_path / "half" / "model.ncnn.bin").stat().st_size < 0.52 * whole
    assert 1e-5 < difference(exported, tmp_path / "half") <= 1e-2


def test_the_facts_lie_beside_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], run_folder: Path) -> None:
    assert cli.main(["export", str(run_folder), str(tmp_path / "out"), "--to", "ncnn"]) == 0
    assert "in0 [3, 32, 32] -> logits out0; at most " in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (facts["label_names"], facts["size"], facts["value_range"]) == (["blue", "green", "red"], 32, [0, 255])
    assert (facts["input"], facts["output"], facts["answers"], facts["normalisation"]) == (
        "in0",
        "out0",
        "logits",
        "inside the graph",
    )
    parameters = (tmp_path / "out" / "model.ncnn.param").read_text()
    assert "in0" in parameters
    assert "out0" in parameters
    assert difference(open_export_model(str(run_folder)), tmp_path / "out") <= 1e-4


def test_other_names_and_their_normalised_embeddings(published_folder: Path, tmp_path: Path) -> None:
    exported, names = open_export_model(str(published_folder)), ["teal", "rust", "navy", "sand"]
    export(exported, tmp_path / "out", to="ncnn", vocabulary=names)
    graph = graph_of(exported, vocabulary=names)
    found, wanted = (
        module.runner(tmp_path / "out", exact=True)(graph.pixels(2).numpy()),
        graph.answers(graph.pixels(2)).numpy(),
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * abs(wanted).max())


def test_ncnns_own_defaults_round_a_little(tmp_path: Path) -> None:
    """Which a device will have on: the file is held to float32, its answers there to float16."""
    export(small(), tmp_path / "out", to="ncnn")
    graph = graph_of(small())
    np.testing.assert_allclose(
        module.runner(tmp_path / "out")(graph.pixels(4).numpy()), graph.answers(graph.pixels(4)).numpy(), atol=1e-2
    )


def test_the_page_shows_how_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published_folder: Path) -> None:
    export(open_export_model(str(published_folder)), tmp_path / "model", to="ncnn")
    Image.new("RGB", (60, 50), "blue").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert run_snippet("ncnn.Net()")["answer"] in ("blue", "green", "red")


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_layer_that_ncnn_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LGDError, match="--to ncnn: the model has a layer that ncnn does not know"):
        export(open_export_model("test_vit", pretrained=False), tmp_path / "out", to="ncnn")
    assert list(tmp_path.iterdir()) == []


def test_files_that_answer_otherwise_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module.runner
    monkeypatch.setattr(
        module, "runner", lambda folder, **options: lambda images: honest(folder, **options)(images) + 1
    )
    with pytest.raises(LGDError, match="--to ncnn: the runtime's logits are"):
        export(small(), tmp_path / "out", to="ncnn")
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\necho 'first' >&2\necho 'no such layer' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("pnnx.EXEC_PATH", str(program))
    with pytest.raises(LGDError, match=r"--to ncnn: pnnx can't convert 'test_resnet' \(no such layer\)"):
        export(small(), tmp_path / "out", to="ncnn")
    assert [path.name for path in tmp_path.iterdir()] == ["pnnx"]


@pytest.mark.parametrize("library", ["ncnn", "pnnx"])
def test_a_missing_library_names_its_extra(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(torch.jit, "trace", None)
    with pytest.raises(MissingExtra, match=rf"'{library}' can't be imported .* pip install 'lgd_timm\[ncnn\]'"):
        export(small(), tmp_path / "out", to="ncnn")
