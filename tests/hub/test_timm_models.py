"""Weights load strictly wherever timm loads for us, and a foreign config.json is checked before timm reads it."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.evaluate.models import find_model
from lgd_timm.export.loading import open_export_model
from lgd_timm.hub.timm_models import build_timm_model, check_config
from lgd_timm.students.model import create_student
from lgd_timm.teachers.conse import _create_classifier
from lgd_timm.utils.lfs import POINTER
from tests.helpers.fuzzing import bounded_memory


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of timm's own making: a small ResNet of five classes."""
    folder = tmp_path_factory.mktemp("made") / "model"
    model = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(model, str(folder), model_config={"architecture": "test_resnet"}, safe_serialization=True)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


OPENERS = {
    "evaluate": lambda folder: find_model(f"local-dir:{folder}"),
    "student": lambda folder: create_student(f"local-dir:{folder}", embed_dim=4, pretrained=True),
    "teacher": lambda folder: _create_classifier(f"local-dir:{folder}"),
    "export": lambda folder: open_export_model(f"local-dir:{folder}"),
}

WEIGHTS = {
    "all tensors are renamed": lambda state: {f"x{key}": tensor for key, tensor in state.items()},
    "one is renamed": lambda state: {key.replace("bn1.weight", "bn1.weighu"): t for key, t in state.items()},
    "one is missing": lambda state: {key: tensor for key, tensor in state.items() if key != "bn1.weight"},
    "one is too many": lambda state: {**state, "more": torch.ones(1)},
    "one has another shape": lambda state: {**state, "bn1.weight": torch.ones(1)},
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("change", WEIGHTS)
def test_weights_that_are_not_all_of_the_model_are_refused(folder, opener, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file(WEIGHTS[change](state), file)
    with pytest.raises(LGDError, match="model"):
        OPENERS[opener](folder)


@pytest.mark.parametrize("opener", OPENERS)
def test_what_is_whole_is_opened(folder, opener):
    OPENERS[opener](folder)


def test_without_its_classifier_it_is_what_timm_loads_and_draws_the_same_numbers(folder):
    torch.manual_seed(3)
    ours, after = build_timm_model(f"local-dir:{folder}", pretrained=True, classifier=False), torch.rand(1)
    torch.manual_seed(3)
    theirs, then = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0), torch.rand(1)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    assert torch.equal(after, then)


def test_a_classifier_that_names_a_layer_of_the_body_does_not_drop_it(folder):
    file, weights = folder / "config.json", load_file(folder / "model.safetensors")
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["classifier"] = ["conv1.0", "fc"]  # timm would leave these random
    file.write_text(json.dumps(config))
    model = build_timm_model(f"local-dir:{folder}", pretrained=True, classifier=False)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


CONFIGS = [
    {"model_args": {"layers": [10**4] * 4}},
    {"model_args": {"checkpoint_path": "/etc/passwd"}},
    {"model_args": {"scriptable": True}},
    {"model_args": {"pretrained_strict": False}},
    {"model_args": {"img_size": 10**9}},
    {"model_args": {"global_pool": "a" * 1000}},
    {"model_args": {"window_size": [[1] * 3] * 3}},
    {"model_args": [1]},
    {"num_classes": "x"},
    {"num_classes": 10**12},
    {"num_classes": -1},
    {"num_classes": True},
    {"architecture": None},
    {"architecture": "no_such_model"},
    {"architecture": ["resnet18"]},
    {"label_names": None},
    {"label_names": [1, 2]},
    {"pretrained_cfg": 3},
    {"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}},
    {"pretrained_cfg": {"input_size": [3, 1, 1]}},
    {"pretrained_cfg": {"input_size": 3}},
    {"pretrained_cfg": {"std": [0.5, 0.0, 0.5]}},
    {"pretrained_cfg": {"fixed_input_size": 1e308}},
    {"model_args": {"patch_size": 4096}},
    {"model_args": {"window_size": 4096}},
    {"pretrained_cfg": {"mean": "red"}},
    {"pretrained_cfg": {"std": [float("nan")] * 3}},
    {"pretrained_cfg": {"crop_pct": -1}},
    {"pretrained_cfg": {"interpolation": 3}},
]


@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_a_strange_config_is_refused(folder, change):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(WeightsError, match=r"config\.json"):
        check_config(folder)
    for open_it in OPENERS.values():
        with pytest.raises(LGDError, match=r"config\.json"):
            open_it(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, "\ud800".encode("utf-16", "surrogatepass")])
def test_what_is_no_config_is_refused(folder, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WeightsError, match=r"config\.json"):
        check_config(folder)


def test_a_huge_config_is_not_read(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(WeightsError, match=r"config\.json"):
        check_config(folder)


def test_arguments_that_timm_itself_writes_are_taken(folder):
    file = folder / "config.json"
    args = {
        "img_size": [64, 64],
        "global_pool": "avg",
        "dynamic_img_size": True,
        "init_values": 1e-5,
        "act_layer": None,
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_args": args}))
    assert check_config(folder)["model_args"] == args


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("prefix", ["model.", "module._orig_mod.", "backbone."])
def test_weights_under_one_prefix_are_those_without_it(folder, opener, prefix):
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({**{prefix + key: tensor for key, tensor in state.items()}, "queue": torch.ones(3)}, file)
    OPENERS[opener](folder)
    model = build_timm_model(f"local-dir:{folder}", pretrained=True)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_keys_that_do_not_fit_are_named(folder):
    file = folder / "model.safetensors"
    save_file({f"net.{key}": tensor for key, tensor in load_file(file).items() if key != "bn1.weight"}, file)
    with pytest.raises(WeightsError, match=r"Its other keys begin with net\."):
        build_timm_model(f"local-dir:{folder}", pretrained=True)


def test_pointers_of_git_lfs_are_said(folder):
    (folder / "model.safetensors").write_bytes(POINTER + b"v1\noid sha256:0\nsize 9\n")
    with pytest.raises(LGDError, match="git lfs pull"):
        find_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "eva02_enormous_patch14_clip_224", "num_classes": 0},  # 4.4 billion weights
        {"architecture": "vit_base_patch16_224", "model_args": {"img_size": 2048, "patch_size": 1}},
        {"architecture": "beit_base_patch16_224", "model_args": {"img_size": 1024}},  # tables of pairs of positions
    ],
    ids=str,
)
def test_a_model_far_larger_than_its_weights_is_refused_before_it_takes_memory(folder, config):
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {}, **config}))
    with (
        bounded_memory(),
        pytest.raises(WeightsError, match=r"describes a model of [0-9.]+ GB, and .*model.safetensors has"),
    ):
        build_timm_model(f"local-dir:{folder}", pretrained=True, classifier=False)
