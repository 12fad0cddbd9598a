"""The timm entries: stock architectures under our names, listed as pretrained exactly when their weights exist."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf

import lgd_timm
from lgd_timm.errors import WeightsError
from lgd_timm.students import entrypoints as students
from lgd_timm.students.entrypoints import STUDENTS, stock_name
from lgd_timm.utils.files import sha256_of
from tests.helpers import ROOT
from tests.helpers.hub_fixtures import environment, run_script

NAMES = sorted(STUDENTS)
STUDENT_WEIGHTS = {name: row for name, row in students.manifest().items() if name.partition(".")[0] in STUDENTS}

# Runs with a copy of the package that has its own manifest, and hub/ beside it as in a checkout. The row that is
# first in the manifest has right weights, `flipped` lies in the local folder with one byte changed.
PUBLISHED = """
import json, timm, torch, lgd_timm
from lgd_timm.errors import WeightsError

def refusal(name):
    try:
        timm.create_model(name, pretrained=True)
    except WeightsError as error:
        return str(error)

def create(name, **options):
    return timm.create_model(name, pretrained=True, **options)

def total(model):
    return sum(float(tensor.double().sum()) for tensor in model.state_dict().values())

by_tag = timm.create_model("lgd_resnet18.right_small", pretrained=True)
facts = {
    "file": lgd_timm.__file__,
    "all": timm.list_models("lgd_*"),
    "pretrained": timm.list_models("lgd_*", pretrained=True),
    "default": timm.get_pretrained_cfg("lgd_resnet18").tag,
    "data": timm.data.resolve_model_data_config(timm.create_model("lgd_resnet18")),
    "by_tag": total(by_tag),
    "by_default": total(timm.create_model("lgd_resnet18", pretrained=True)),
    "not_pretrained": total(timm.create_model("lgd_resnet18.right_small")),
    "classes": by_tag.num_classes,
    "names": by_tag.pretrained_cfg["label_names"],
    "other_classes": list(create("lgd_resnet18.right_small", num_classes=7).fc.weight.shape),
    "backbone": total(create("lgd_resnet18.right_small", num_classes=0)),
    "one_channel": float(create("lgd_resnet18.right_small", in_chans=1).conv1.weight.double().sum()),
    "three_channels": float(by_tag.conv1.weight.double().sum()),
    "pyramid": create("lgd_resnet18.right_small", features_only=True).feature_info.channels(),
    "flipped": refusal("lgd_resnet18.flipped_small"),
    "unmade": refusal("lgd_mobilenetv2"),
}
print(json.dumps(facts))
"""


# --------------------------------------------------------------------------------------------------------- architecture


def test_the_three_students_are_registered_and_no_more() -> None:
    assert timm.list_models("lgd_*") == ["lgd_efficientnet_b0", "lgd_mobilenetv2", "lgd_resnet18"] == NAMES
    assert lgd_timm.students.entrypoints is students


@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_its_stock_architecture(name: str) -> None:
    ours, stock = timm.create_model(name, num_classes=5), timm.create_model(STUDENTS[name].base, num_classes=5)
    assert type(ours) is type(stock)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    assert stock_name(name) == stock_name(f"{name}.some_tag") == STUDENTS[name].base
    for key in ("classifier", "first_conv"):
        assert ours.pretrained_cfg[key] == stock.pretrained_cfg[key] == getattr(STUDENTS[name], key)


def test_other_names_are_stock_already() -> None:
    assert stock_name("vit_tiny_patch16_224.augreg_in21k") == "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", NAMES)
def test_timms_own_options_work(name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 64, 64)
    ten = timm.create_model(name, num_classes=10, cache_dir=str(tmp_path)).eval()
    assert ten(x).shape == (2, 10)
    assert timm.create_model(name, num_classes=10, in_chans=4)(torch.randn(2, 4, 64, 64)).shape == (2, 10)
    assert timm.create_model(name, num_classes=0, global_pool="").eval()(x).ndim == 4
    pooled = timm.create_model(name, num_classes=0, global_pool="max").eval()
    assert pooled(x).shape == (2, pooled.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_features_only_gives_the_stock_pyramid(name: str) -> None:
    options: dict[str, Any] = {"features_only": True, "out_indices": (1, 2, 3, 4)}
    ours, stock = timm.create_model(name, **options), timm.create_model(STUDENTS[name].base, **options)
    assert ours.feature_info.channels() == stock.feature_info.channels()
    assert ours.feature_info.reduction() == [4, 8, 16, 32]
    assert [m.shape[-1] for m in ours(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_patches_the_facts_and_leaves_ours_alone(name: str) -> None:
    overlay = {"mean": (0.1, 0.2, 0.3), "input_size": (3, 96, 96)}
    model = timm.create_model(name, pretrained_cfg_overlay=overlay)
    data = resolve_model_data_config(model)
    assert (data["mean"], data["input_size"]) == ((0.1, 0.2, 0.3), (3, 96, 96))
    assert model.pretrained_cfg["classifier"] == STUDENTS[name].classifier
    assert overlay == {"mean": (0.1, 0.2, 0.3), "input_size": (3, 96, 96)}
    assert (
        tuple(timm.create_model(name).pretrained_cfg["mean"])
        == tuple(timm.get_pretrained_cfg(name).mean)
        != overlay["mean"]
    )


def test_a_file_in_the_overlay_is_loaded_as_timm_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model(
        "resnet18", num_classes=timm.create_model("lgd_resnet18").num_classes
    )  # those of the published weights
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    ours = timm.create_model("lgd_resnet18", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(ours.fc.weight, theirs.fc.weight)


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(("name", "tag"), [(name, tag) for name, entry in STUDENTS.items() for tag in entry.recipes])
def test_tags_without_weights_name_the_recipe_that_makes_them(
    name: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "manifest", dict)
    assert timm.create_model(f"{name}.{tag}", num_classes=7).num_classes == 7  # the architecture is there
    with pytest.raises(
        WeightsError,
        match=rf"No weights of '{name}\.{tag}' are published .*lgd-timm distill {STUDENTS[name].recipes[tag]}$",
    ):
        timm.create_model(f"{name}.{tag}", pretrained=True)


def test_unknown_tags_are_timms_own_error() -> None:
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nope\) for lgd_resnet18"):
        timm.create_model("lgd_resnet18.nope")


def test_what_is_listed_as_pretrained_is_what_the_manifest_has() -> None:
    assert timm.list_models("lgd_*", pretrained=True) == sorted(STUDENT_WEIGHTS)


@pytest.mark.parametrize("name", sorted(name for name, weight in STUDENT_WEIGHTS.items() if weight.commit is None))
def test_weights_that_only_the_checkout_has_load_verified_and_with_their_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LGD_TIMM_HUB", raising=False)
    model = timm.create_model(name, pretrained=True).eval()
    folder = ROOT / "hub" / name
    stock = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert {k for k, v in stock.state_dict().items() if not torch.equal(v, model.state_dict()[k])} == set()
    assert list(model.pretrained_cfg["label_names"]) == json.loads((folder / "config.json").read_text())["label_names"]
    assert resolve_model_data_config(model) == resolve_model_data_config(stock)


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A ResNet-18 over three names, and its folder as timm saves it."""
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18", num_classes=3, pretrained_cfg_overlay={"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3)}
    )
    folder = tmp_path_factory.mktemp("weights") / "small"
    save_for_hf(model, str(folder), model_config={"architecture": "resnet18"}, safe_serialization=True)
    return model, folder


@pytest.fixture(scope="module")
def facts(small_weights: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process says whose package knows two published weights."""
    _, folder = small_weights
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "lgd_timm", site / "lgd_timm", ignore=shutil.ignore_patterns("__pycache__"))
    files = {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in folder.iterdir()}
    cfg = {
        "num_classes": 3,
        "input_size": [3, 64, 64],
        "mean": [0.1, 0.2, 0.3],
        "crop_pct": 1.0,
        "label_names": ["a", "b", "c"],
    }
    row = {"repo_id": "me/x", "commit": None, "files": files, "metrics": {}, "cfg": cfg}
    names = ["lgd_resnet18.right_small", "lgd_resnet18.flipped_small"]
    (site / "lgd_timm" / "hub" / "manifest.json").write_text(json.dumps(dict.fromkeys(names, row)))
    for name in names:
        shutil.copytree(folder, site / "hub" / name)
    flipped = site / "hub" / names[1] / "model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    settings = environment("http://127.0.0.1:9", site / "home", HF_HUB_OFFLINE="1")
    found = run_script(f"import sys\nsys.path.insert(0, {str(site)!r})\n{PUBLISHED}", settings)
    assert found["file"].startswith(str(site))
    return found


def total(model: Any) -> float:
    return sum(float(tensor.double().sum()) for tensor in model.state_dict().values())


def test_published_weights_are_listed_and_the_first_is_the_default(facts: dict[str, Any]) -> None:
    assert facts["all"] == NAMES
    assert facts["pretrained"] == ["lgd_resnet18.flipped_small", "lgd_resnet18.right_small"]
    assert facts["default"] == "right_small"


def test_published_weights_load_by_tag_and_by_default(facts: dict[str, Any], small_weights: tuple[Any, Path]) -> None:
    model, folder = small_weights
    assert (
        facts["by_tag"]
        == facts["by_default"]
        == total(model)
        == total(timm.create_model(f"local-dir:{folder}", pretrained=True))
    )
    assert facts["not_pretrained"] != facts["by_tag"]
    assert facts["classes"] == 3
    assert facts["names"] == ["a", "b", "c"]


def test_published_weights_adapt_as_stock_ones_do(facts: dict[str, Any], small_weights: tuple[Any, Path]) -> None:
    model, folder = small_weights
    assert facts["other_classes"] == [7, 512]
    assert facts["backbone"] == total(timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0))
    assert (
        facts["one_channel"]
        == pytest.approx(facts["three_channels"])
        == pytest.approx(model.conv1.weight.double().sum().item())
    )
    assert facts["pyramid"] == [64, 64, 128, 256, 512]


def test_the_row_says_how_to_prepare_images(facts: dict[str, Any]) -> None:
    data = facts["data"]
    assert (data["input_size"], data["mean"], data["crop_pct"]) == ([3, 64, 64], [0.1, 0.2, 0.3], 1.0)


def test_a_flipped_byte_is_refused(facts: dict[str, Any]) -> None:
    assert "lgd_resnet18.flipped_small is not what was published: model.safetensors should have" in facts["flipped"]


def test_a_student_that_has_no_weights_yet_says_what_there_is(facts: dict[str, Any]) -> None:
    assert "(there are: lgd_resnet18.flipped_small, lgd_resnet18.right_small)" in facts["unmade"]
    assert "lgd-timm distill recipes/" in facts["unmade"]
