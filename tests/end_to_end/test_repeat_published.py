"""Published recipes are run again, from a folder or the Hub, for other names too, and their teacher teaches again."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lgd_timm import cli
from lgd_timm.config.reader import read_recipe, read_teach_recipe
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.errors import RecipeError, TeacherError
from lgd_timm.teachers import Conse, OpenCLIP, Stored
from tests.helpers import ROOT
from tests.helpers.hub_fixtures import environment, publish, read_files, run_script
from tests.helpers.hub_server import HubServer

Dict = dict[str, Any]

# Repeat a run with the images, the teacher, and a recipe on the Hub, in a process that has HF_ENDPOINT from its start.
HUB = """
import contextlib, io, json, logging, os, torch
from lgd_timm.cli import main

torch.set_num_threads(1)

def said(*argv):
    logging.getLogger().handlers.clear()  # which write to the last call's stderr
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(argv)
    return [status, out.getvalue(), error.getvalue()]

os.chdir({here!r})
print(json.dumps([
    said("distill", "hub://me/tiny@{commit}"),
    said("teach", "hub://me/tiny"),
    said("distill", "hub://me/tiny"),
    said("evaluate", "zero-shot", "hub://me/tiny", "--data", "shards", "--device", "cpu"),
    said("distill", "hub://me/none"),
]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, taught_folder: Path, tiny_clip: Path) -> Path:
    """Where a run was made and published: `shards` with embeddings, `clip`, and `run/published`. Read only."""
    from lgd_timm.config.reader import recipe_from_dict
    from lgd_timm.config.recipe import TeachRecipe
    from lgd_timm.data import Views
    from lgd_timm.training.distill import distill
    from lgd_timm.training.teach import teach_recipe

    here = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_clip, here / "clip")
    shutil.copytree(taught_folder, here / "shards", ignore=shutil.ignore_patterns("*-light-*", "*-none-*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("LGD_TIMM_CACHE", str(here / "cache"))
        views = Views(size=32, augmentation="light", count=3)
        stored = teach_recipe(TeachRecipe(OpenCLIP("local-dir:clip"), views, "shards", device="cpu"))
        recipe = {
            "name": "tiny",
            "teacher": {
                "kind": "stored",
                "embeddings": str(here / stored.root),
            },  # absolute, into the working directory
            "vocabulary": {"source": ["blue", "green", "red"]},
            "data": {"shards": "shards", "val_split": "val", "batch_size": 16, "max_bad": 0.0},
            "student": {"model": "test_resnet"},
            "objective": {"preset": "paper"},
            "optimizer": {"lr": 0.05},
            "schedule": {"epochs": 2, "warmup_epochs": 0},
            "run": {"device": "cpu", "log_every": 1},
        }
        distill(recipe_from_dict(recipe), out=here / "run")
    return here


@pytest.fixture
def there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody else's working directory.

    The same images and the same teacher, a copy of the published folder, no embeddings.
    """
    shutil.copytree(home / "clip", tmp_path / "clip")
    shutil.copytree(home / "shards", tmp_path / "shards", ignore=shutil.ignore_patterns("*-light-*"))
    shutil.copytree(home / "run" / "published", tmp_path / "published")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def taught(home: Path, there: Path) -> Path:
    """The same with the embeddings."""
    shutil.copytree(home / "shards", there / "shards", dirs_exist_ok=True)
    return there


def weights(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("model.safetensors", "lgd.safetensors")]


# ------------------------------------------------------------------------------------------------------------- complete


def test_a_published_recipe_is_complete(home: Path) -> None:
    """It says who taught on which views as what numbers, and every path in it lies where it was made."""
    recipe = read_recipe(home / "run" / "published" / "recipe.yaml")
    stored = open_stored(next((home / "shards").glob("*-light-*")))
    assert recipe.teacher == Stored(f"shards/{stored.root.name}", OpenCLIP("local-dir:clip"), "float16")
    assert recipe.views == stored.views
    assert str(home) not in (home / "run" / "published" / "recipe.yaml").read_text()


def test_the_published_weights_recipe_says_who_taught_and_on_which_views() -> None:
    recipe = read_recipe(ROOT / "hub" / "lgd_mobilenetv2.conse_cifar10")
    assert isinstance(recipe.teacher, Stored)
    assert isinstance(recipe.teacher.taught_by, Conse)
    assert recipe.views is not None


def test_an_older_published_recipe_reads(tmp_path: Path) -> None:
    """As it was before recipes said who taught and which views: without these fields."""
    published = ROOT / "hub" / "lgd_mobilenetv2.conse_cifar10" / "recipe.yaml"
    data = yaml.safe_load(published.read_text())
    for field in ("taught_by", "dtype", "target", "taught_on"):
        del data["teacher"][field]
    del data["run"]["photometry"]
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**data, "views": None}))
    recipe = read_recipe(folder)
    assert recipe.teacher == Stored("data/cifar10/conse_efficientnet_lite2-none-s0-k1-cf520dbd36d1")
    assert recipe.views is None


# ------------------------------------------------------------------------------------------------------------- repeated


def test_distilling_a_published_folder_repeats_it(taught: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert cli.main(["distill", "published", "--output", "again"]) == 0
    assert weights(taught / "again" / "published") == weights(home / "run" / "published")
    assert (taught / "again" / "published" / "recipe.yaml").read_text() == (
        home / "run" / "published" / "recipe.yaml"
    ).read_text()
    assert "repeats published: the same images and the same teacher" in caplog.messages


def test_other_names_redistil(taught: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (taught / "names.txt").write_text("warm\ncold\n")
    with caplog.at_level(logging.INFO):
        assert cli.main(["distill", "published", "--vocabulary", "names.txt", "--output", "other"]) == 0
    assert json.loads((taught / "other" / "published" / "config.json").read_text())["label_names"] == ["warm", "cold"]
    assert weights(taught / "other" / "published") != weights(home / "run" / "published")
    assert "repeats published: the same images and the same teacher, with another vocabulary" in caplog.messages


def change_metrics(folder: Path, change: Any) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda facts: facts.update(shards="0" * 16), "does not repeat published: other images"),
        (lambda facts: facts["teacher"].update(fingerprint="0" * 16, dtype="int8"),
         "does not repeat published: other teacher, other type of the stored embeddings"),
        (lambda facts: facts.clear(),
         "may not repeat published: its metrics.json does not say which images and which teacher it saw"),
    ],
    ids=["images", "teacher", "nothing"],
)  # fmt: skip
def test_what_differs_is_said_at_the_start(
    taught: Path, change: Any, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    change_metrics(taught / "published", change)
    assert (
        cli.main(["distill", "published", "--output", "again", "--data.val_split", "null", "--schedule.epochs", "1"])
        == 0
    )
    assert [message for message in caplog.messages if message.startswith(line)]


def test_metrics_of_other_types_are_refused(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_metrics(taught / "published", lambda facts: facts.update(teacher=["none"]))
    assert cli.main(["distill", "published", "--output", "again", "--data.val_split", "null"]) == 2
    assert "metrics.json can't be read (teacher must be an object" in capsys.readouterr().err


def test_a_damaged_metrics_file_is_named_before_anything_is_written(
    taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (taught / "published" / "metrics.json").write_text("[" * 100_000)
    assert cli.main(["distill", "published", "--output", "again"]) == 2
    assert "metrics.json can't be read" in capsys.readouterr().err
    assert not (taught / "again").exists()


def test_from_the_hub(home: Path, there: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who lacks the embeddings is told the command that makes them; then the run repeats, and is evaluated by its
    address.
    """
    root = tmp_path_factory.mktemp("hub")
    with HubServer(root / "store") as server:
        commit = publish(server, "me/tiny", read_files(home / "run" / "published"))
        environ = environment(server.url, root / "home")
        missing, taught, repeated, evaluated, unknown = run_script(HUB.format(here=str(there), commit=commit), environ)
    assert missing[0] == 2
    embeddings = next((there / "shards").glob("*-light-*")).relative_to(there)
    assert f"lgd-timm teach RECIPE --out {embeddings}" in missing[2]
    assert taught[:2] == [0, f"embeddings: {embeddings}\n"], taught[2]
    assert repeated[:2] == [0, "published: output/test_resnet.tiny/published\n"], repeated[2]
    assert re.search(r"repeats .*: the same images and the same teacher\n", repeated[2])
    assert weights(there / "output" / "test_resnet.tiny" / "published") == weights(home / "run" / "published")
    top1 = json.loads((home / "run" / "published" / "metrics.json").read_text())["zero_shot"]["top1"]
    assert evaluated[0] == 0, evaluated[2]
    assert f"{top1:.2f}" in evaluated[1].splitlines()[0]
    assert unknown[0] == 2
    assert "me/none: no such repository" in unknown[2]


# --------------------------------------------------------------------------------------------------------------- taught


def test_a_published_recipe_teaches_into_the_folder_that_it_names(there: Path, home: Path) -> None:
    assert cli.main(["teach", "published"]) == 0
    (ours,), (theirs,) = ([*(place / "shards").glob("*-light-*")] for place in (there, home))
    assert read_recipe("published").teacher == Stored(f"shards/{ours.name}", OpenCLIP("local-dir:clip"), "float16")
    for path in theirs.glob("*.tar"):
        assert (ours / path.name).read_bytes() == path.read_bytes()


def test_other_views_find_a_folder_of_their_own(there: Path) -> None:
    plain = ["--split", "val", "--views.augmentation", "none", "--views.count", "1"]
    assert cli.main(["teach", "published", *plain]) == 0
    assert [path.name.split("-")[1] for path in (there / "shards").glob("*/")] == ["none"]
    recipe = read_teach_recipe("published", overrides={"split": "val"})  # the same views: into the same folder
    assert recipe.out == read_teach_recipe("published").out
    assert read_teach_recipe("published", overrides={"dtype": "int8"}).out is None


def test_an_online_recipe_teaches_too(tmp_path: Path, recipe_dict: Dict) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_dict))
    recipe = read_teach_recipe(tmp_path / "recipe.yaml")
    assert recipe.to_dict()["teacher"] == {**recipe_dict["teacher"], "pretrained": None, "precision": "fp32"}
    assert (recipe.shards, recipe.split, recipe.out, recipe.max_bad) == (
        recipe_dict["data"]["shards"],
        "train",
        None,
        0.0,
    )


def test_nobody_teaches_where_nobody_is_named(tmp_path: Path, recipe_dict: Dict) -> None:
    recipe_dict |= {"teacher": {"kind": "stored", "embeddings": "e"}, "views": None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_dict))
    with pytest.raises(
        RecipeError, match=r"nothing says who did\. Give conse or open_clip, or say who taught in teacher\.taught_by"
    ):
        read_teach_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"^teacher\.taught_by\.kind = 'stored'; choose one of conse, open_clip"):
        read_recipe(tmp_path / "recipe.yaml", overrides={"teacher.taught_by": {"kind": "stored", "embeddings": "f"}})


def test_missing_embeddings_name_the_command_that_makes_them() -> None:
    with pytest.raises(TeacherError, match=r"'no/where': no such embeddings.*lgd-timm teach RECIPE --out no/where$"):
        Stored("no/where", OpenCLIP("RN50", "openai")).open()
    with pytest.raises(TeacherError, match="holds no finished teacher embeddings"):
        Stored("no/where").open()
