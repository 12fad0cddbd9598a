"""Only safetensors are opened, whatever names the weights: pickles are refused, and folders never fall back to them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.hub.safe_weights import PICKLES, refuse_pickle, timm_source, weights_folder
from lgd_timm.students.model import create_student
from lgd_timm.teachers import Conse, OpenCLIP, spec_from_dict

NAMES: dict[str, Callable[[str], Any]] = {
    "student.model": lambda value: recipe_from_dict(
        {
            "name": "a",
            "teacher": {"kind": "stored", "embeddings": "e"},
            "vocabulary": {},
            "data": {},
            "student": {"model": value},
        }
    ),
    "teacher.classifier": lambda value: Conse(value, "encoder"),
    "teacher.encoder": lambda value: Conse("resnet18", value),
    "teacher.model": OpenCLIP,
    "teacher.pretrained": lambda value: OpenCLIP("RN50", value),
}


class Attack:
    """Unpickled, it leaves a file: proof that code ran."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A timm folder with safetensors."""
    torch.manual_seed(0)
    timm.models.save_for_hf(
        timm.create_model("test_resnet", num_classes=3), tmp_path / "model", safe_serialization=True
    )
    return tmp_path / "model"


def poison(folder: Path, witness: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Attack(witness)))


# ---------------------------------------------------------------------------------------------------------- by the name


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize(
    "name",
    ["a.pt", "a/b.PTH", "pytorch_model.bin", "local-dir:a/model.ckpt", "a.pth.tar", "x.npz", "a.pkl/", "b.pickle"],
)
def test_what_names_a_pickle_is_refused_wherever_it_stands(field: str, name: str) -> None:
    with pytest.raises(
        RecipeError,
        match=rf"^{field} = '{name}' names a pickle, and pickles can run code.*safetensors\.torch\.save_file",
    ):
        NAMES[field](name)


@pytest.mark.parametrize(
    "name", ["resnet18", "RN50", "openai", "a/b.safetensors", "local-dir:a.b/c", "hf-hub:a/b.c@v1", None]
)
def test_other_names_are_not(name: str | None) -> None:
    refuse_pickle(name, field="x")


def test_facts_that_travel_are_checked_like_recipes() -> None:
    """`metrics.json` and `_teacher.json` name teachers too."""
    with pytest.raises(RecipeError, match="names a pickle"):
        spec_from_dict({"kind": "open_clip", "model": "RN50", "pretrained": "weights.pt"})
    for data in (
        None,
        {},
        [],
        {"kind": "stored", "embeddings": "e"},
        {"kind": "conse"},
        {"kind": "open_clip", "model": 1},
        {"kind": ["conse"]},
    ):
        with pytest.raises(RecipeError, match=r"^teacher"):
            spec_from_dict(data)


# ---------------------------------------------------------------------------------------------------------- by the file


@pytest.mark.parametrize("pickles", [("pytorch_model.bin",), ("model.pth", "other.pt")])
def test_a_folder_never_falls_back_to_pickles(folder: Path, witness: Path, pickles: Sequence[str]) -> None:
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    poison(folder, witness, *pickles)
    student = create_student(f"local-dir:{folder}", embed_dim=4, pretrained=True)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in student.backbone.state_dict().items())
    (folder / "model.safetensors").unlink()
    for build in (
        lambda: create_student(f"local-dir:{folder}", embed_dim=4, pretrained=True),
        lambda: Conse(f"local-dir:{folder}", "package:a/b").image(),
    ):
        with pytest.raises(
            WeightsError, match=rf"lacks model\.safetensors; it has {', '.join(pickles)}, and pickles can run code"
        ):
            build()
    create_student(f"local-dir:{folder}", embed_dim=4)  # without weights it needs none
    assert not witness.exists()


def test_an_open_clip_folder_never_falls_back_to_pickles(tiny_clip: Path, tmp_path: Path, witness: Path) -> None:
    """open_clip would take open_clip_pytorch_model.bin before model.safetensors."""
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    poison(folder, witness, "open_clip_pytorch_model.bin")
    assert OpenCLIP(f"local-dir:{folder}").image().fingerprint == OpenCLIP(f"local-dir:{tiny_clip}").image().fingerprint
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    for tower in (OpenCLIP(f"local-dir:{folder}").image, OpenCLIP(f"local-dir:{folder}").text):
        with pytest.raises(
            WeightsError, match=r"lacks open_clip_model\.safetensors; it has open_clip_pytorch_model\.bin, and pickles"
        ):
            tower()
    (folder / "open_clip_model.safetensors").write_bytes(b"")  # random weights open nothing at all
    assert OpenCLIP(f"local-dir:{folder}", "random").image().embed_dim == 16
    assert not witness.exists()


def test_a_damaged_file_is_an_error_of_ours(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(LGDError, match=r"student\.model 'local-dir:.*' can't be built"):
        create_student(f"local-dir:{folder}", embed_dim=4, pretrained=True)


@pytest.mark.parametrize(
    "config",
    ["{}", "[]", "null", "{", '{"architecture": 1}', '{"architecture": "test_resnet", "model_args": {"nonsense": 1}}'],
)
def test_a_foreign_configuration_is_an_error_of_ours(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(LGDError, match=r"student\.model 'local-dir:.*' can't be built"):
        create_student(f"local-dir:{folder}", embed_dim=4)


# --------------------------------------------------------------------------------------------------------- from the Hub


@pytest.fixture
def asked(
    folder: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """What is asked of the Hub, which answers with the folder that fits."""
    calls: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []

    def snapshot(name: str, *, require: Sequence[str], allow: Sequence[str] = ()) -> Path:
        calls.append((name, tuple(require), tuple(allow)))
        return tiny_clip if "open_clip_config.json" in require else folder

    monkeypatch.setattr("lgd_timm.hub.safe_weights.snapshot", snapshot)
    return calls


def test_models_of_the_hub_come_verified_and_without_pickles(asked: list[Any], folder: Path, tiny_clip: Path) -> None:
    assert (
        create_student("hf-hub:org/name@v1", embed_dim=4, pretrained=True).backbone.pretrained_cfg["architecture"]
        == "test_resnet"
    )
    assert asked.pop() == ("org/name@v1", ("config.json", "model.safetensors"), ())
    create_student("hf-hub:org/name", embed_dim=4)
    assert asked.pop() == ("org/name", ("config.json",), ())
    text = OpenCLIP("hf-hub:org/clip").text()
    assert text.fingerprint == OpenCLIP(f"local-dir:{tiny_clip}").text().fingerprint
    assert text.encode(["a cat"]).shape == (1, 16)
    files = ("open_clip_config.json", "open_clip_model.safetensors")
    assert set(asked) == {("org/clip", files, ("*.json", "*.txt", "*.model"))}
    assert not [pattern for _, require, allow in asked for pattern in (*require, *allow) if pattern.endswith(PICKLES)]


@pytest.mark.parametrize(
    "name", ["hf_hub:a/b", "HF-HUB:a/b", "LOCAL-DIR:/a", "file:/a", "local-dir:", "hf-hub:", "C:/a", ":a"]
)
def test_unknown_schemes_are_refused(name: str) -> None:
    """timm takes some of them, in any case of letters."""
    for build in (
        lambda: timm_source(name, field="x", pretrained=True),
        lambda: weights_folder(name, field="x", require=()),
    ):
        with pytest.raises(
            RecipeError, match=rf"^x = '{name}' is no library's name\. Write local-dir:FOLDER or hf-hub:ORG/NAME"
        ):
            build()
    with pytest.raises(LGDError):
        OpenCLIP(name).image()
