"""`lgd-timm export`: one table of targets, whole files or none, and one line for what can't be asked."""

from __future__ import annotations

import importlib
import inspect
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lgd_timm import cli
from lgd_timm.cli.export import OPTIONS
from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.export import open_clip, targets
from lgd_timm.export import openmmlab as mm
from lgd_timm.export.loading import open_export_model
from lgd_timm.export.targets import TARGETS, export
from lgd_timm.hub.weights import OPEN_CLIP_FILES
from tests.helpers.hub_fixtures import read_files
from tests.helpers.pages import run_snippet


def function_of(target: str) -> Any:
    row = TARGETS[target]
    return getattr(importlib.import_module(f"lgd_timm.export.{row.module}"), row.function)


@pytest.mark.parametrize("target", TARGETS)
def test_a_targets_options_are_what_its_function_takes(target: str) -> None:
    """So that none is parsed and unused, and each has its default in one place."""
    first, second, *options = inspect.signature(function_of(target)).parameters.values()
    assert {first.kind, second.kind} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert [option.name for option in options] == list(TARGETS[target].options)
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)


def test_each_option_is_taken_by_a_target() -> None:
    assert set(OPTIONS) == {option for target in TARGETS.values() for option in target.options}


@pytest.mark.parametrize("target", ["torchvision", "mmdet", "mmseg"])
def test_a_file_is_written_and_said(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "x.safetensors"
    assert cli.main(["export", "lgd_mobilenetv2", str(out), "--to", target]) == 0
    with safe_open(out, "pt") as file:
        count = len(file.keys())
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: {count} tensors ")
    assert ("backbone = dict(type='MobileNetV2')\n" in said) is (target != "torchvision")
    assert [path.name for path in out.parent.iterdir()] == ["x.safetensors"]


def test_an_option_reaches_its_target(tmp_path: Path) -> None:
    command = ["export", "lgd_mobilenetv2", str(tmp_path / "x.safetensors"), "--to", "mmseg"]
    assert cli.main([*command, "--prefix", "backbone."]) == 0
    assert "backbone.layer1.0.conv.0.conv.weight" in load_file(tmp_path / "x.safetensors")


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(open_export_model("lgd_mobilenetv2"), tmp_path / f"{name}.safetensors", to="torchvision")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_random_weights_try_things_out(tmp_path: Path) -> None:
    assert (
        cli.main(["export", "resnet18", str(tmp_path / "x.safetensors"), "--to", "torchvision", "--random-weights"])
        == 0
    )
    assert load_file(tmp_path / "x.safetensors")["fc.weight"].shape == (1000, 512)


def test_the_help_names_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    said = capsys.readouterr().out
    assert all(f"{target.text} ({target.ending or 'folder'})" in said for target in TARGETS.values())


# ------------------------------------------------------------------------------------------------------------ open_clip


def test_a_published_student_goes_to_open_clip_as_save_writes_it(
    run_folder: Path, open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(run_folder), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    there = read_files(open_clip_folder)
    assert read_files(tmp_path / "out") == {name: there[name] for name in OPEN_CLIP_FILES}
    assert "with the text tower of local-dir:" in capsys.readouterr().out


def test_the_page_shows_how_open_clip_loads_it(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(open_clip_folder, tmp_path / "OUT")
    monkeypatch.chdir(tmp_path)
    found = run_snippet("open_clip", image=Image.new("RGB", (40, 30), "red"))
    assert found["similarity"].shape == (1, 2)


def test_a_student_whose_teacher_has_no_text_tower_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "lgd_mobilenetv2", str(tmp_path / "out"), "--to", "open_clip"]) == 2
    assert "The teacher is of kind 'conse', which has no open_clip text tower" in capsys.readouterr().err
    assert list(tmp_path.glob("*out*")) == []


def test_what_is_no_student_has_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(LGDError, match="'resnet18' is no published student, so no teacher's text tower goes with it"):
        export(open_export_model("resnet18", pretrained=False), tmp_path / "out", to="open_clip")


def test_a_student_that_does_not_say_who_taught_is_refused(published_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "published"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["teacher"]["taught_by"] = None
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(LGDError, match="does not say who taught it"):
        export(open_export_model(str(folder)), tmp_path / "out", to="open_clip")


def test_a_teacher_out_of_reach_is_not_opened_for_an_untrusted_folder(published_folder: Path, tmp_path: Path) -> None:
    exported = replace(open_export_model(str(published_folder)), untrusted=True)
    with pytest.raises(
        RecipeError, match=r"teacher\.model = .* is an absolute path, and a recipe that came in a folder stays"
    ):
        open_clip.export(exported, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["x.safetensors", "--to", "tensorrt"],
            "--to 'tensorrt' is no target. Choose one of torchvision, mmdet, mmseg, open_clip",
        ),
        (
            ["x.safetensors", "--to", "torchvision", "--prefix", "a."],
            "--to torchvision takes no --prefix (options that it takes: none)",
        ),
        (["x.pth", "--to", "mmdet"], "x.pth must end in .safetensors, as that is what --to mmdet writes"),
        (["there.safetensors", "--to", "torchvision"], "there.safetensors exists. Choose another name, or remove it"),
        (["there", "--to", "open_clip"], "there exists. Choose another name, or remove it"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there.safetensors").write_text("mine")
    monkeypatch.setattr("lgd_timm.export.loading.open_export_model", None)
    assert cli.main(["export", "lgd_mobilenetv2", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "there.safetensors"]
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_a_folder_that_an_error_left_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(exported: Any, path: Path) -> str:
        (path / "half").write_text("x") if path.is_dir() else path.write_text("x")
        raise LGDError("no more")

    monkeypatch.setattr(open_clip, "export", half)
    monkeypatch.setattr(mm, "mmdet", half)
    exported = open_export_model("test_resnet", pretrained=False)
    for out, to in (("x.safetensors", "mmdet"), ("folder", "open_clip")):
        with pytest.raises(LGDError, match="no more"):
            targets.export(exported, tmp_path / out, to=to)
    assert list(tmp_path.iterdir()) == []
