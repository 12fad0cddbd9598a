"""`lgd-timm teach`, `distill` and `save`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from lgd_timm import cli, hub
from lgd_timm.config.reader import read_recipe
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.hub import weights
from tests.helpers.commands import say
from tests.helpers.held_folder import held
from tests.helpers.hub_fixtures import read_files, read_timeless


def test_teach(capsys: pytest.CaptureFixture[str], teach_recipe: Path, tmp_path: Path) -> None:
    assert (
        yaml.safe_load(say(capsys, "teach", teach_recipe, "--print-config", "--views.count=2"))["views"]["count"] == 2
    )
    assert not list(tmp_path.glob("shards/*/_teacher.json"))
    said = say(capsys, "teach", teach_recipe, "--views.count", "2")
    stored = open_stored(said.removeprefix("embeddings: ").strip())
    assert stored.root.parent == tmp_path / "shards"
    assert stored.views.count == 2
    assert (
        say(capsys, "teach", teach_recipe, "--split", "val", "--out", tmp_path / "val")
        == f"embeddings: {tmp_path / 'val'}\n"
    )
    assert json.loads((tmp_path / "val" / "_info.json").read_text())["splits"].keys() == {"val"}


def test_distill_prints_the_resolved_recipe(capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path) -> None:
    overrides = [
        "--optimizer.lr",
        "2e-3",
        "--run.seed=7",
        "--vocabulary",
        "names.txt",
        "--student.mean",
        "[0.1, 0.2, 0.3]",
    ]
    said = say(capsys, "distill", recipe, "--print-config", *overrides)
    (tmp_path / "again.yaml").write_text(said)
    printed, plain = read_recipe(tmp_path / "again.yaml").to_dict(), read_recipe(recipe).to_dict()
    assert (printed["optimizer"].pop("lr"), plain["optimizer"].pop("lr")) == (2e-3, 0.05)
    assert (printed["run"].pop("seed"), plain["run"].pop("seed")) == (7, 0)
    assert (printed["vocabulary"].pop("source"), plain["vocabulary"].pop("source")) == (
        "names.txt",
        ["blue", "green", "red"],
    )
    assert (printed["student"].pop("mean"), plain["student"].pop("mean")) == ([0.1, 0.2, 0.3], None)
    assert printed == plain


def test_distill_and_save(
    capsys: pytest.CaptureFixture[str],
    recipe: Path,
    tmp_path: Path,
    shard_folder: Path,
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = say(capsys, "distill", recipe, "--schedule.epochs", "1")
    assert said == "published: output/test_resnet.tiny/published\n"  # named as the weights, so students keep apart
    assert timm.create_model("local-dir:output/test_resnet.tiny/published", pretrained=True).num_classes == 3
    assert say(capsys, "save", "output/test_resnet.tiny", "again") == "published: again\n"
    assert read_files(tmp_path / "again") == read_files(tmp_path / "output" / "test_resnet.tiny" / "published")
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    say(capsys, "save", "output/test_resnet.tiny", "lgd_resnet18.tiny", "--register", "me/tiny")
    assert hub.manifest()["lgd_resnet18.tiny"].repo_id == "me/tiny"
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    here = [
        "--data.shards",
        shard_folder,
        "--teacher.model",
        f"local-dir:{tiny_clip}",
    ]  # outside the working directory: the user's to say
    for out, names in (
        ("inline", "[cat, dog]"),
        ("file", "names.txt"),
    ):  # a published folder is a recipe, other names are one option
        assert (
            say(capsys, "distill", "again", "--vocabulary", names, "--output", out, *here)
            == f"published: {out}/published\n"
        )
        assert json.loads((tmp_path / out / "published" / "config.json").read_text())["label_names"] == ["cat", "dog"]
        assert json.loads((tmp_path / out / "published" / "metrics.json").read_text())["zero_shot"]["names"] == [
            "blue",
            "green",
            "red",
        ]
    assert read_timeless(tmp_path / "inline" / "published") == read_timeless(tmp_path / "file" / "published")
    (tmp_path / "labels.txt").write_text("blue\ngreen\nred\n")
    said = say(
        capsys,
        "evaluate",
        "zero-shot",
        "inline/published",
        "--data",
        shard_folder,
        "--vocabulary",
        "labels.txt",
        "--device",
        "cpu",
    )
    assert "(chance 33.33 %)" in said  # distilled for two names, asked about three
    assert say(capsys, "distill", recipe, "--output", "file", "--resume") == "published: file/published\n"


def test_one_recipe_teaches_and_distils_and_names_no_folder(
    recipe_dict: dict[str, Any], shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = shutil.copytree(shard_folder, tmp_path / "shards")
    recipe = {
        **recipe_dict,
        "teacher": {"kind": "stored", "taught_by": recipe_dict["teacher"]},
        "data": {**recipe_dict["data"], "shards": str(shards), "val_split": None},
        "schedule": {"epochs": 1, "warmup_epochs": 0},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    folder = say(capsys, "teach", path).removeprefix("embeddings: ").strip()
    assert Path(folder).parent == Path(shards)
    say(capsys, "distill", path, "--output", tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["teacher"]["embeddings"] == folder


def test_teaching_for_names_that_do_not_fit_is_refused_first(
    recipe_dict: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe_dict, "vocabulary": {"source": ["red", "green"]}}))
    assert cli.main(["teach", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "has 3 classes, its vocabulary 2 names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_run_in_a_folder_says_who_trains_there(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with held(out) as holder:
        assert cli.main(["distill", str(recipe), "--output", str(out), "--resume"]) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lgd-timm: error:")]
        assert f"{out} is in use: process {holder.pid} on " in said
        assert said.endswith("trains there. Wait for it, end it, or choose another folder.")
        assert not out.exists()
