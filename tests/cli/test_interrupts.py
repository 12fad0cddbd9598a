"""Ctrl-C outside of training: one line, status 130, no traceback, nothing half-written. Real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgd_timm.data.stored_embeddings import open_stored
from tests.helpers.commands import say

# The command line, interrupted at the N-th call of MODULE:FUNCTION, or when MODULE is imported.
STRUCK = """
import importlib, os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background of a script ignores
where, left = sys.argv[1], int(sys.argv[2])
module, _, path = where.partition(":")

class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

if path:
    owner = importlib.import_module(module)
    *parts, last = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    function = getattr(owner, last)

    def struck(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **options)

    setattr(owner, last, struck)
else:
    sys.meta_path.insert(0, Finder())

from lgd_timm import cli
sys.exit(cli.main(sys.argv[3:]))
"""


def struck(where: str, count: int, *words: object) -> str:
    """The line that a struck command ends with."""
    done = subprocess.run(
        [sys.executable, "-c", STRUCK, where, str(count), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lgd-timm: ")]
    return line


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["distill", "RECIPE"], "Go on with --resume."),
        (["teach", "RECIPE"], "Shards that are finished stay; the same command goes on at the next."),
        (["shards", "write", "images", "out"], "Nothing half-written is left; run the same command again."),
        (["evaluate", "knn", "model", "--data", "shards"], "Nothing half-written is left; run the same command again."),
        (["transfer", "detect", "RECIPE"], "Go on with --resume."),
        (["report", "run"], "Nothing half-written is left; run the same command again."),
        (["predict", "model", "picture.png"], "Nothing half-written is left; run the same command again."),
    ],
)
def test_while_libraries_are_imported(words: list[str], advice: str, recipe: Path) -> None:
    line = struck("numpy", 1, *(str(recipe) if word == "RECIPE" else word for word in words))
    assert line == f"lgd-timm: stopped by Ctrl-C. {advice}"


def test_while_shards_are_written(image_folder: Path, tmp_path: Path) -> None:
    struck("webdataset:TarWriter.write", 30, "shards", "write", image_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_while_embeddings_are_stored(teach_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = teach_recipe.parent / "out"
    words = ["teach", teach_recipe, "--out", folder]
    struck("lgd_timm.training.teach:write_sidecar", 2, *words)
    assert [path.suffix for path in folder.iterdir() if not path.name.startswith("_")] == [".tar"]
    say(capsys, *words)
    assert len(list(open_stored(folder).root.glob("*.tar"))) == 3


def test_while_a_model_is_evaluated_within_a_training(recipe: Path, tmp_path: Path) -> None:
    words = ["distill", recipe, "--output", tmp_path / "run"]
    line = struck("lgd_timm.training.state:Run.zero_shot", 1, *words)
    assert line == "lgd-timm: stopped by Ctrl-C. Go on with --resume."
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003"]
