"""The command line: every command's way, and one line with status 2 for bad input."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from lgd_timm import cli, hub
from lgd_timm.cli.common import parse_overrides
from lgd_timm.config.reader import read_recipe, recipe_from_dict
from lgd_timm.data import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.errors import MissingExtra, RecipeError
from lgd_timm.hub import weights
from lgd_timm.hub.verify import facts_of
from lgd_timm.publish.card import retarget
from tests.helpers.hub_fixtures import environment, read_files, read_timeless, run_script
from tests.helpers.hub_server import WRITE_TOKEN, HubServer

# push, push again, pull, pull of nothing: by a process that has HF_ENDPOINT from its start.
REGISTER = """
import json
from pathlib import Path
from lgd_timm import cli
from lgd_timm.hub import weights
weights.MANIFEST = Path({manifest!r})
print(json.dumps(cli.main(["push", {folder!r}, "me/tiny", "--register"])))
"""

HUB = """
import contextlib, io, json
from lgd_timm.cli import main

def said(*argv):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(argv)
    return [status, out.getvalue(), error.getvalue()]

folder, target = {arguments}
print(json.dumps([
    said("push", folder, "me/tiny", "--tag", "v1", "--message", "Publish the tiny one"),
    said("push", folder, "me/tiny"),
    said("pull", "me/tiny@v1", "--local-dir", target),
    said("pull", "me/other"),
]))
"""


@pytest.fixture
def recipe(recipe_dict: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_from_dict(recipe_dict).to_yaml())
    return path


@pytest.fixture
def teach_recipe(recipe_dict: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "teach.yaml"
    shards = shutil.copytree(recipe_dict["data"]["shards"], tmp_path / "shards")
    data = {
        "teacher": recipe_dict["teacher"],
        "views": {"size": 32, "augmentation": "light"},
        "shards": str(shards),
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(data))
    return path


def say(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """What a command prints when all is well."""
    capsys.readouterr()
    status = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


# ---------------------------------------------------------------------------------------------------------- every command


def test_the_console_script_is_this_function() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="lgd-timm")
    assert script.load() is cli.main


def test_shards(capsys: pytest.CaptureFixture[str], image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "colours"
    said = say(capsys, "shards", "write", image_folder, out, "--split", "train", "--samples-per-shard", "20")
    assert said == f"{out}: 48 images in 3 shards, split 'train'\n"
    assert open_shards(out, split="train").class_names == ("blue", "green", "red")
    say(capsys, "shards", "write", image_folder, tmp_path / "unlabelled", "--no-labels", "--min-shards", "4")
    unlabelled = open_shards(tmp_path / "unlabelled", split="train")
    assert (len(unlabelled.filenames), unlabelled.class_names) == (4, ())


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


def test_evaluate_zero_shot_as_json(
    capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path
) -> None:
    said = say(capsys, "evaluate", "zero-shot", published_folder, "--data", taught_folder, "--device", "cpu", "--json")
    metrics = json.loads((published_folder / "metrics.json").read_text())
    assert json.loads(said) == {"student": metrics["zero_shot"], "teacher": metrics["teacher_zero_shot"]}


def test_evaluate_zero_shot_for_people(
    capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path, shard_folder: Path
) -> None:
    lines = say(
        capsys, "evaluate", "zero-shot", published_folder, "--data", taught_folder, "--device", "cpu"
    ).splitlines()
    assert re.fullmatch(r"student  top-1 [\d.]+ %, top-5 100.00 % of 12 images \(chance 33.33 %\)", lines[0])
    assert lines[1].startswith("teacher  top-1 ")
    assert [line.split("%  ")[1] for line in lines[2:]] == ["blue", "green", "red"]
    lines = say(
        capsys, "evaluate", "zero-shot", published_folder, "--data", shard_folder, "--device", "cpu"
    ).splitlines()
    assert lines[1] == "teacher  not measured: no stored embeddings of these images by its teacher"


def test_evaluate_a_recipes_teacher(
    capsys: pytest.CaptureFixture[str], recipe: Path, published_folder: Path, shard_folder: Path
) -> None:
    said = say(
        capsys,
        "evaluate",
        "zero-shot",
        recipe,
        "--data",
        shard_folder,
        "--device",
        "cpu",
        "--json",
        "--batch-size",
        "5",
    )
    metrics = json.loads((published_folder / "metrics.json").read_text())
    assert json.loads(said) == {"teacher": metrics["teacher_zero_shot"]}


def test_push_and_pull(published_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "pulled"
    with HubServer(tmp_path / "store") as server:
        script = HUB.format(arguments=[str(published_folder), str(target)])
        pushed, again, pulled, refused = run_script(
            script, environment(server.url, tmp_path / "home", HF_TOKEN=WRITE_TOKEN)
        )
    assert pushed[0] == 0, pushed[2]
    said = re.fullmatch(
        rf"sent: (.*\..*, ){{5,}}.*\n{server.url}/me/tiny/tree/([0-9a-f]{{40}}) at \2\n(.*)", pushed[1], re.DOTALL
    )
    assert said
    (row,) = json.loads(said[3]).values()
    assert (row["repo_id"], row["commit"], row["cfg"]["num_classes"]) == ("me/tiny", said[2], 3)
    assert again[1].splitlines()[0] == "sent: nothing, all is there"
    assert pulled == [0, f"{target}\n", pulled[2]]
    assert {name: facts_of(target / name) for name in read_files(target)} == row["files"]
    there, here = read_files(target), read_files(published_folder)
    assert there.pop("README.md").decode() == retarget(here.pop("README.md").decode(), "me/tiny")
    assert there == here
    assert refused[:2] == [2, ""]
    assert refused[2].startswith("lgd-timm: error: me/other: no such repository")


def test_push_dry_run_sends_nothing(capsys: pytest.CaptureFixture[str], published_folder: Path) -> None:
    first, second, *row = say(capsys, "push", published_folder, "me/tiny", "--dry-run").splitlines()
    assert json.loads("\n".join(row))["published"]["commit"] is None
    assert first.startswith("would send: config.json, model.safetensors, README.md")
    assert second.endswith("/me/tiny at None")


def test_push_register_makes_a_weight(
    published_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its row goes into the manifest, its folder is what is on the Hub, and `list` shows it."""
    folder = Path(shutil.copytree(published_folder, tmp_path / "hub" / "lgd_resnet18.tiny"))
    (tmp_path / "manifest.json").write_text("{}")
    with HubServer(tmp_path / "store") as server:
        script = REGISTER.format(manifest=str(tmp_path / "manifest.json"), folder=str(folder))
        environ = environment(server.url, tmp_path / "home", HF_TOKEN=WRITE_TOKEN, LGD_TIMM_HUB=str(folder.parent))
        assert run_script(script, environ) == 0
        commit = server.store.repo("me/tiny").branches["main"]
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setenv("LGD_TIMM_HUB", str(folder.parent))
    assert hub.manifest()["lgd_resnet18.tiny"].commit == commit
    assert hub.locate("lgd_resnet18.tiny") == folder
    assert "me/tiny" in (folder / "README.md").read_text()
    assert re.search(
        r"^lgd_resnet18\.tiny  [\d.]+ MB  local\+remote  verified  [\d.]+", say(capsys, "list"), re.MULTILINE
    )
    (row,) = json.loads(say(capsys, "list", "--json"))
    assert (row["commit"], row["verified"], row["places"]["local"]) == (commit, True, str(folder))
    (folder / "config.json").write_text("{}")
    assert "WRONG: config.json should have" in say(capsys, "list")


# ------------------------------------------------------------------------------------------------------------- bad input

BAD: dict[str, tuple[list[str], str]] = {
    "shards: no images": (["shards", "write", "{tmp}/nowhere", "{tmp}/out"], "nowhere is not a folder"),
    "shards: empty": (["shards", "write", "{tmp}/empty", "{tmp}/out"], "empty holds no images"),
    "shards: split exists": (["shards", "write", "{images}", "{shards}"], "already has a split 'train'"),
    "shards: too few": (["shards", "write", "{images}", "{tmp}/out", "--min-shards", "100"], "too few for 100 shards"),
    "teach: no file": (["teach", "{tmp}/none.yaml"], "No recipe at"),
    "teach: field": (["teach", "{teach}", "--viws.count", "2"], "did you mean 'views'"),
    "teach: value": (["teach", "{teach}", "--views.count", "two"], "views.count = 'two' is no int"),
    "teach: no value": (["teach", "{teach}", "--views.count"], "--views.count lacks a value"),
    "teach: split": (["teach", "{teach}", "--split", "test"], "has no split 'test'"),
    "teach: device": (["teach", "{teach}", "--device", "tpu"], "device 'tpu' can't be used here"),
    "distill: no file": (["distill", "{tmp}/none.yaml"], "No recipe at"),
    "distill: a word": (["distill", "{recipe}", "fast"], "'fast' stands alone"),
    "distill: override": (["distill", "{recipe}", "--optimizer.lrr", "1"], "did you mean 'optimizer.lr'"),
    "distill: not YAML": (["distill", "{recipe}", "--vocabulary", "[a"], "is not YAML"),
    "distill: option before an option": (["distill", "{recipe}", "--run.seed", "--resume"], "lacks a value"),
    "distill: output": (["distill", "{recipe}", "--output", "{images}"], "is not empty. Go on with --resume"),
    "distill: output is a file": (["distill", "{recipe}", "--output", "{recipe}"], "tiny.yaml"),
    "distill: names": (
        ["distill", "{recipe}", "--vocabulary", "{tmp}/none.txt", "--output", "{tmp}/o"],
        "none.txt can't be read",
    ),
    "distill: optimizer": (
        ["distill", "{recipe}", "--optimizer.name", "sdg", "--output", "{tmp}/o"],
        "'sdg' is unknown to timm",
    ),
    "evaluate: model": (
        ["evaluate", "zero-shot", "resnet18", "--data", "{shards}"],
        "'resnet18' is no published folder",
    ),
    "evaluate: data": (["evaluate", "zero-shot", "{published}", "--data", "{tmp}"], "holds no _info.json"),
    "evaluate: split": (
        ["evaluate", "zero-shot", "{published}", "--data", "{shards}", "--split", "x"],
        "has no split 'x'",
    ),
    "evaluate: names": (
        ["evaluate", "zero-shot", "{published}", "--data", "{shards}", "--vocabulary", "xx:y"],
        "'xx' is not a known kind",
    ),
    "evaluate: folder": (["evaluate", "zero-shot", "{tmp}", "--data", "{shards}"], "lacks config.json"),
    "evaluate: device": (
        ["evaluate", "zero-shot", "{published}", "--data", "{shards}", "--device", "x"],
        "device 'x' can't be used",
    ),
    "save: no run": (["save", "{tmp}", "{tmp}/out"], "holds no checkpoint"),
    "save: out": (["save", "{run}", "{images}"], "exists and is no empty folder"),
    "save: name": (["save", "{run}", "{tmp}/tiny", "--register", "me/x"], "'tiny' is no weight's name"),
    "push: name": (["push", "{run}/published", "me/x", "--register"], "'published' is no weight's name"),
    "push: folder": (["push", "{tmp}", "me/x", "--dry-run"], "is no published folder: config.json"),
    "pull: name": (["pull", "lgd_resnet19"], "'lgd_resnet19' is not a weight that this version of lgd_timm knows"),
}


@pytest.fixture
def places(
    *, tmp_path: Path, recipe: Path, teach_recipe: Path, image_folder: Path, taught_folder: Path, run_folder: Path
) -> dict[str, Path]:
    """What the words in BAD stand for."""
    (tmp_path / "empty").mkdir()
    inputs = {"images": image_folder, "shards": taught_folder, "run": run_folder, "published": run_folder / "published"}
    return {**inputs, "tmp": tmp_path, "recipe": recipe, "teach": teach_recipe}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, places: dict[str, Path]
) -> None:
    monkeypatch.chdir(places["tmp"])
    argv, message = BAD[case]
    before = files_below(places["tmp"])
    assert cli.main([word.format(**places) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lgd-timm: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert files_below(places["tmp"]) == before


def files_below(folder: Path) -> set[str]:
    """All files but the cache, which may keep the bank of names that were fine."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if path.parts[0] != "cache"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["evaluate"], "the following arguments are required: WHAT"),
        (["destill", "x"], "invalid choice: 'destill'"),
        (["shards", "write", "a", "b", "--splitt", "x"], "unrecognized arguments: --splitt x"),
        (["save", "a", "b", "--run.seed", "1"], "unrecognized arguments: --run.seed 1"),
        (["push", "a", "me/x", "--dry"], "unrecognized arguments: --dry"),
        (["evaluate", "zero-shot", "m"], "the following arguments are required: --data"),
        (["shards", "write", "a", "b", "--min-shards", "few"], "invalid int value: 'few'"),
        (["distill"], "the following arguments are required: recipe"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_argparse_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(argv)
    assert message in capsys.readouterr().err


def test_a_missing_library_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert cli.main(["distill", str(recipe), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lgd-timm: error: 'open_clip' can't be imported")
    assert error.endswith("Install it with: pip install 'lgd_timm[open_clip]'\n")
    assert issubclass(MissingExtra, ImportError)


def test_what_is_no_bad_input_is_not_hidden(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    """A bug keeps its traceback."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("lgd_timm.training.distill"), "distill", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["distill", str(recipe)])


# ------------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_pairs_or_joined_by_an_equals_sign() -> None:
    words = ["--a.b", "1", "--c=2", "--d", "-3", "--e=", "--f=x=y"]
    assert parse_overrides(words) == {"a.b": "1", "c": "2", "d": "-3", "e": "", "f": "x=y"}
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["x"], "'x' stands alone"), (["--a"], "--a lacks a value"), (["--a", "--b", "1"], "--a lacks a value")],
)
def test_other_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_overrides(words)
