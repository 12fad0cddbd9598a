"""MMDetection's and MMSegmentation's keys: keys and shapes of their own definitions, and the same features."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.export import openmmlab as mm
from lgd_timm.export.loading import ExportModel, open_export_model
from tests.helpers.mm_models import EfficientNet, built
from tests.helpers.pages import PAGE, run_snippet
from tests.helpers.shaken import images, shaken

LIBRARIES = ("mmdet", "mmseg")
ARCHITECTURES = {"resnet18": 120, "mobilenetv2_100": 312, "efficientnet_b0": 358}  # tensors without the classifier
PAIRS = [(library, architecture) for library in LIBRARIES for architecture in ARCHITECTURES]

# As the authors of LGD name them (mZhenz/LGD @ cda655a, tools/convert-torchvision-to-{mmdet,mmseg}-mnv2.py)
PAPERS = {
    "mmdet": {
        "conv_stem.weight": "conv1.conv.weight",
        "blocks.0.0.conv_dw.weight": "layer1.0.depthwise_conv.conv.weight",
        "blocks.0.0.bn2.running_var": "layer1.0.linear_conv.bn.running_var",
        "blocks.2.2.bn1.bias": "layer3.2.expand_conv.bn.bias",
        "blocks.6.0.conv_pwl.weight": "layer7.0.linear_conv.conv.weight",
        "bn2.num_batches_tracked": "conv2.bn.num_batches_tracked",
    },
    "mmseg": {
        "conv_stem.weight": "conv1.conv.weight",
        "blocks.0.0.conv_dw.weight": "layer1.0.conv.0.conv.weight",
        "blocks.0.0.bn2.running_var": "layer1.0.conv.1.bn.running_var",
        "blocks.2.2.bn1.bias": "layer3.2.conv.0.bn.bias",
        "blocks.6.0.conv_pwl.weight": "layer7.0.conv.2.conv.weight",
    },
}


@pytest.fixture(scope="module")
def sources() -> dict[str, ExportModel]:
    return {architecture: shaken(architecture) for architecture in ARCHITECTURES}


def written(
    exported: ExportModel, path: Path, *, library: str, **options: Any
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    getattr(mm, library)(exported, path, **options)
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def last_layer(exported: ExportModel, library: str, pixels: Tensor) -> Tensor:
    """What timm's model has where the library's backbone ends."""
    model = exported.network
    if (library, exported.architecture) == ("mmseg", "mobilenetv2_100"):
        return model.blocks(model.bn1(model.conv_stem(pixels)))
    return model.forward_features(pixels)


@pytest.mark.parametrize(("library", "architecture"), PAIRS)
@torch.no_grad()
def test_keys_and_shapes_are_those_of_their_definition_and_the_features_timms(
    library: str, architecture: str, sources: dict[str, ExportModel], tmp_path: Path
) -> None:
    exported = sources[architecture]
    state, facts = written(exported, tmp_path / "x.safetensors", library=library)
    theirs = built(library, facts["backbone"])
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    assert len(state) == ARCHITECTURES[architecture] - 6 * ((library, architecture) == ("mmseg", "mobilenetv2_100"))
    theirs.load_state_dict(state)
    torch.testing.assert_close(theirs(images()), last_layer(exported, library, images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lgd_resnet18", "lgd_mobilenetv2", "lgd_efficientnet_b0"])
@torch.no_grad()
def test_a_published_student_gives_its_features_there(name: str, tmp_path: Path) -> None:
    exported = open_export_model(name)
    state, facts = written(exported, tmp_path / "x.safetensors", library="mmdet")
    theirs = built("mmdet", facts["backbone"])
    theirs.load_state_dict(state)
    pixels = images(exported.size)
    torch.testing.assert_close(
        theirs(pixels).mean((2, 3)),
        exported.network.forward_head(exported.network.forward_features(pixels), pre_logits=True),
    )
    assert (
        facts["data_preprocessor"]
        == "dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)"
    )


@pytest.mark.parametrize(("library", "architecture"), PAIRS)
def test_the_way_back_gives_timms_backbone(
    library: str, architecture: str, sources: dict[str, ExportModel], tmp_path: Path
) -> None:
    exported = sources[architecture]
    state, _ = written(exported, tmp_path / "x.safetensors", library=library, prefix="backbone.")
    assert all(key.startswith("backbone.") for key in state)
    back = mm.from_mm(
        {**state, "neck.weight": torch.zeros(1)}, architecture=architecture, library=library, prefix="backbone."
    )
    missing, unexpected = exported.network.load_state_dict(back, strict=False)
    assert unexpected == []
    beyond = ["conv_head", "bn2"] if (library, architecture) == ("mmseg", "mobilenetv2_100") else []
    assert {key.rpartition(".")[0] for key in missing} == {
        *beyond,
        "fc" if architecture == "resnet18" else "classifier",
    }
    ours = exported.network.state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in back.items())


@pytest.mark.parametrize("library", LIBRARIES)
def test_mobilenets_names_are_those_of_the_papers_converters(
    library: str, sources: dict[str, ExportModel], tmp_path: Path
) -> None:
    exported = sources["mobilenetv2_100"]
    state, _ = written(exported, tmp_path / "x.safetensors", library=library)
    ours = exported.network.state_dict()
    assert all(torch.equal(state[theirs], ours[name]) for name, theirs in PAPERS[library].items())


@torch.no_grad()
def test_their_own_efficientnet_would_see_something_else(sources: dict[str, ExportModel], tmp_path: Path) -> None:
    """Padding and eps have to be said: without them the very weights give other features."""
    exported = sources["efficientnet_b0"]
    state, facts = written(exported, tmp_path / "x.safetensors", library="mmdet")
    assert (
        facts["backbone"] == "dict(type='EfficientNet', arch='b0', conv_cfg=None, norm_cfg=dict(type='BN', eps=1e-5))"
    )
    wanted = exported.network.forward_features(images())
    for options in ({}, {"conv_cfg": None}, {"norm_cfg": {"type": "BN", "eps": 1e-5}}):
        theirs = EfficientNet(arch="b0", **options).eval()
        theirs.load_state_dict(state)
        assert (theirs(images()) - wanted).abs().max() > 1e-4


def test_one_line_makes_the_pickle_that_their_loader_reads(
    sources: dict[str, ExportModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine's load_from_local is torch.load; the dict is the state dict unless it has a key `state_dict`."""
    state, _ = written(sources["resnet18"], tmp_path / "backbone.safetensors", library="mmdet")
    monkeypatch.chdir(tmp_path)
    line = re.search(r'^python -c "(.*)"$', PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert line is not None
    exec(line[1], {})
    found = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_the_page_shows_the_configuration_that_is_printed(sources: dict[str, ExportModel], tmp_path: Path) -> None:
    said, shown = mm.mmdet(sources["mobilenetv2_100"], tmp_path / "x"), run_snippet("backbone = dict")
    printed: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in said.splitlines()[1:]), printed)
    assert shown["backbone"] == printed["backbone"] | {
        key: shown["backbone"][key] for key in ("out_indices", "init_cfg")
    }
    assert shown["data_preprocessor"] == printed["data_preprocessor"] | {"type": "DetDataPreprocessor"}
    assert shown["backbone"]["init_cfg"] == {"type": "Pretrained", "checkpoint": "backbone.pth"}


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("prefix", ["backbone", ".", "a b.", "1.", "backbone..", "../"])
def test_what_begins_no_key_is_refused(prefix: str, sources: dict[str, ExportModel], tmp_path: Path) -> None:
    with pytest.raises(LGDError, match=r"is no beginning of a key\. Write names that end in dots"):
        mm.mmdet(sources["resnet18"], tmp_path / "x", prefix=prefix)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LGDError,
        match="--to mmseg knows the layers of resnet18, mobilenetv2_100, efficientnet_b0, "
        "and not those of 'test_resnet'",
    ):
        mm.mmseg(shaken("test_resnet"), tmp_path / "x")


def test_a_changed_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="its configuration changes the stock architecture"):
        mm.mmdet(shaken("mobilenetv2_100", act_layer="silu"), tmp_path / "x")


def test_another_librarys_state_is_refused(sources: dict[str, ExportModel], tmp_path: Path) -> None:
    state, _ = written(sources["mobilenetv2_100"], tmp_path / "x", library="mmdet")
    with pytest.raises(
        WeightsError,
        match=r"other layers than their architecture: conv2.bn, conv2.conv, layer1.0.conv.0.bn, .*\.\.\. Name",
    ):
        mm.from_mm(state, architecture="mobilenetv2_100", library="mmseg")
