"""The entry point: help, version, and one line with status 2 for bad input."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lgd_timm
from lgd_timm import cli
from lgd_timm.cli.main import _escape_what_stdout_cant_spell
from lgd_timm.errors import MissingExtra

# The package's `__init__` registers the students with timm, and so imports it; the parser itself is to be light.
LIGHT = """
import sys, types
package = types.ModuleType("lgd_timm")
package.__path__, package.__version__ = [{path!r}], "0"
sys.modules["lgd_timm"] = package
from lgd_timm.cli.main import build_parser
build_parser()
print(*{{"torch", "timm", "numpy", "huggingface_hub"}} & sys.modules.keys())
"""


def test_the_parser_imports_neither_torch_nor_timm() -> None:
    script = LIGHT.format(path=str(Path(lgd_timm.__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"lgd-timm {lgd_timm.__version__}\n"
    assert importlib.metadata.version("lgd_timm") == lgd_timm.__version__


def test_the_help_has_a_line_for_each_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--help"])
    lines = capsys.readouterr().out.partition("  COMMAND\n")[2].partition("\n\n")[0].splitlines()
    names = (
        "auto shards teach distill save teacher evaluate predict demo push pull list transfer vl export report recipes "
        "init"
    )
    assert [line.split()[0] for line in lines] == names.split()


def test_the_console_script_is_this_function() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="lgd-timm")
    assert script.load() is cli.main


# ---------------------------------------------------------------------------------------------------------- bad input

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
        (["shards"], "the following arguments are required: ACTION"),
        (["destill", "x"], "invalid choice: 'destill'"),
        (["shards", "write", "a", "b", "--splitt", "x"], "unrecognized arguments: --splitt x"),
        (["save", "a", "b", "--run.seed", "1"], "unrecognized arguments: --run.seed 1"),
        (["push", "a", "me/x", "--dry"], "unrecognized arguments: --dry"),
        (["evaluate", "zero-shot", "m"], "the following arguments are required: --data"),
        (["shards", "write", "a", "b", "--min-shards", "few"], "the value = 'few' is no int"),
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
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert cli.main(["distill", str(recipe), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lgd-timm: error: 'open_clip' can't be imported")
    assert error.endswith("Install it with: pip install 'lgd_timm[open-clip]'\n")
    assert issubclass(MissingExtra, ImportError)


def test_what_is_no_bad_input_is_not_hidden(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    """A bug keeps its traceback."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("lgd_timm.training.distill"), "distill", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["distill", str(recipe)])


def test_names_that_stdout_cant_spell_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    _escape_what_stdout_cant_spell()
    print("\u00e9lan \udce8", flush=True)
    assert written.getvalue() == b"\\xe9lan \\udce8\n"


def ended(*words: str, stdout: Any) -> tuple[int, str]:
    """Status and standard error of a command whose standard output is what is given."""
    command = [sys.executable, "-m", "lgd_timm.cli", *words]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert ended("recipes", stdout=writer) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_below_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        status, said = ended("recipes", stdout=full)
    assert (status, said) == (2, "lgd-timm: error: [Errno 28] No space left on device\n")


def test_a_closed_stdout_is_no_error() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" -m lgd_timm.cli recipes >&-', sys.executable],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
