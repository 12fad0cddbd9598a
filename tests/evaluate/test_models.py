"""What a person may name: each is the model that it says, and what can't be had is one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.evaluate import evaluate_zero_shot, find_model
from lgd_timm.publish.folder import load
from lgd_timm.students.model import Student
from lgd_timm.utils.checkpoint import all_checkpoints

IMAGES = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def features(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network.eval().features(IMAGES)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Any]:
    """A classifier of 7 classes as timm would save it."""
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", num_classes=7)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", model.eval()


def test_a_timm_name_without_weights_is_drawn_with_its_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (find_model("test_resnet", pretrained=False, image_size=32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(features(first.network), features(again.network))
    assert not torch.equal(features(first.network), features(other.network))
    assert (first.views.size, first.views.augmentation, first.views.crop, first.network.preprocess.size) == (
        32,
        "none",
        1.0,
        32,
    )


def test_size_crop_and_statistics_are_timms() -> None:
    model = find_model("resnet18", pretrained=False)
    config = timm.data.resolve_model_data_config(timm.create_model("resnet18"))
    assert (model.views.size, model.views.crop, model.views.interpolation) == (
        224,
        config["crop_pct"],
        config["interpolation"],
    )
    assert model.network.preprocess.mean.flatten().tolist() == pytest.approx(config["mean"])


def test_weights_out_of_reach_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"The weights of 'resnet18' can't be had \(.*HF_HUB_OFFLINE.*--random-weights"
    ) as caught:
        find_model("resnet18")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="The weights of 'hf-hub:me/x' can't be had"):
        find_model("hf-hub:me/x")


def test_a_checkpoint_file_is_its_backbone(checkpoint: tuple[Path, Any]) -> None:
    path, model = checkpoint
    found = find_model(str(path), architecture="test_resnet", image_size=32)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(found.network.preprocess(IMAGES)), pre_logits=True)
    torch.testing.assert_close(features(found.network), expected)


@pytest.mark.parametrize("prefix", ["model.", "module._orig_mod.", "student.backbone."])
def test_a_checkpoint_files_prefix_is_removed(checkpoint: tuple[Path, Any], prefix: str) -> None:
    path, model = checkpoint
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    save_file({**state, "loss.weight": torch.ones(1)}, path)
    found = find_model(str(path), architecture="test_resnet", image_size=32)
    expected = model.state_dict()
    assert all(tensor.equal(expected[key]) for key, tensor in found.network.backbone.state_dict().items())
    save_file({**state, **{f"teacher.{key}": tensor.clone() for key, tensor in model.state_dict().items()}}, path)
    with pytest.raises(WeightsError, match=rf"holds the model several times, as {prefix}, teacher\."):
        find_model(str(path), architecture="test_resnet", image_size=32)


def test_checkpoint_files_that_do_not_fit_are_refused(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = checkpoint
    with pytest.raises(LGDError, match=r"does not say which architecture it is of \(None .* --model-name"):
        find_model(str(path))
    with pytest.raises(LGDError, match=r"\('resnet19' is none of timm's\)"):
        find_model(str(path), architecture="resnet19")
    with pytest.raises(WeightsError, match="holds no 'test_vit'"):
        find_model(str(path), architecture="test_vit")
    path.write_bytes(b"damage")
    with pytest.raises(WeightsError, match="can't be read as 'test_resnet'"):
        find_model(str(path), architecture="test_resnet")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(LGDError, match="is no safetensors file"):
        find_model(str(tmp_path / "model.onnx"), architecture="test_resnet")
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"names a pickle, and pickles can run code"):
        find_model(str(tmp_path / "model.pth"), architecture="test_resnet")
    with pytest.raises(LGDError, match="'test_resnet' is no checkpoint file"):
        find_model("test_resnet", architecture="test_resnet")


def test_a_published_folder_is_its_student_and_its_stock_file(published_folder: Path) -> None:
    found, student = find_model(str(published_folder)), load(published_folder).student
    assert isinstance(found.network, Student)
    assert torch.equal(features(found.network), features(student))
    plain = find_model(f"local-dir:{published_folder}")
    assert not isinstance(plain.network, Student)
    torch.testing.assert_close(features(plain.network), features(student))
    assert plain.views.size == found.views.size == 32


def test_a_run_folder_is_what_it_published_or_its_last_checkpoint(
    run_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    published = find_model(str(run_folder))
    assert torch.equal(features(published.network), features(load(run_folder / "published").student))
    stopped = Path(shutil.copytree(run_folder, tmp_path / "stopped"))
    shutil.rmtree(stopped / "published")
    found = find_model(str(stopped))
    state = load_file(all_checkpoints(stopped / "checkpoints")[-1] / "student.safetensors")
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.network.state_dict().items())
    assert found.views == published.views
    scores = [evaluate_zero_shot(str(folder), data=taught_folder, device="cpu") for folder in (stopped, run_folder)]
    assert scores[0]["teacher"] == scores[1]["teacher"]
    assert scores[0]["student"] is not None
    assert scores[1]["student"] is not None
    assert scores[0]["student"].top1 == pytest.approx(scores[1]["student"].top1, abs=10)  # one was rounded to float16
    for file in (all_checkpoints(stopped / "checkpoints")[-1]).glob("student.safetensors"):
        file.write_bytes(b"damage")
    with pytest.raises(WeightsError, match="can't be read as its run's student"):
        find_model(str(stopped))


def test_a_student_has_weights_and_size_of_its_own(published_folder: Path) -> None:
    for options in ({"pretrained": False}, {"image_size": 64}):
        with pytest.raises(LGDError, match="is a student with weights and an image size of its own"):
            find_model(str(published_folder), **options)  # type: ignore[arg-type]
    assert find_model("lgd_resnet18", pretrained=False, image_size=32).network.backbone.num_features == 512


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "no model of timm .*timm.list_models"),
        ("recipe.yaml", "is a recipe, whose teacher is scored by zero-shot only"),
        ("local-dir:nowhere", "no such folder"),
        ("nothing:x", "is no library's name"),
        ("lgd_resnet18.nope", "is not a weight that this version"),
    ],
)
def test_what_is_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(LGDError, match=message):
        find_model(name)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"lacks config\.json"):
        find_model(str(tmp_path))
