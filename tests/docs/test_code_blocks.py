"""Code in README and docs: Python blocks run; `lgd-timm` lines, overrides and named modules are what the code has.

A block that can't run here has a comment above it, `<!-- not run: needs ... -->`. Shell blocks are read, not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pytest
import pytorch_lightning
import timm
import torch
from torch.nn.functional import normalize

from lgd_timm.cli.common import parse_overrides
from lgd_timm.cli.main import build_parser
from lgd_timm.config import read_recipe, read_teach_recipe
from lgd_timm.transfer.recipe import read_transfer
from lgd_timm.transfer.tasks import find_task
from lgd_timm.vision_language.recipe import read_vl_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?ms)^(<!-- not run: (?P<reason>[^\n]*) -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```")


INLINE = re.compile(r"(?<!`)`(lgd-timm [^`\n]+)`(?!`)")
RUN_AS_MODULE = re.compile(r"python -m ((?:benchmarks|lgd_timm)(?:\.\w+)*)")
DOTTED = re.compile(r"`(lgd_timm(?:\.\w+)+)(?:\(\))?`")
FILES_OF_THE_READER = ("RECIPE", "hub://")  # recipes that a page does not mean to be found here


class Block(NamedTuple):
    """A fenced block of a page."""

    name: str
    language: str
    code: str
    reason: str | None  # why it can't run here


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start("code"))
            yield Block(f"{page.relative_to(ROOT)}:{line}", found["language"], found["code"], found["reason"])


def commands(code: str) -> Iterator[list[str]]:
    """The `lgd-timm` calls of a shell block, as words."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"] and "lgd_timm.cli" in words:
            words = ["lgd-timm", *words[words.index("lgd_timm.cli") + 1 :]]
        if words[:1] == ["lgd-timm"]:
            yield words[1:]


ALL = list(blocks())
PYTHON = [block for block in ALL if block.language == "python" and block.reason is None]
SHELL = [(block.name, words) for block in ALL if block.language == "bash" for words in commands(block.code)]


@pytest.fixture
def names() -> dict[str, Any]:
    """What a block may take as given."""
    torch.manual_seed(0)
    student = torch.randn(4, 8, requires_grad=True)
    bank = normalize(torch.randn(3, 8), dim=1)
    folder = str(ROOT / "hub" / "lgd_mobilenetv2.conse_cifar10")
    return {
        **{"text_bank": bank, "student_embedding": student, "teacher_embedding": torch.randn(4, 8)},
        **{"torch": torch, "timm": timm, "lightning": pytorch_lightning},
        **{"FOLDER": folder, "pixels": torch.rand(1, 3, 48, 48)},
    }


@pytest.mark.parametrize("block", PYTHON, ids=[block.name for block in PYTHON])
def test_python_runs(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.code, block.name, "exec"), names)


@pytest.mark.parametrize(("name", "words"), SHELL, ids=[f"{name} {' '.join(words[:3])}" for name, words in SHELL])
def test_the_command_line_takes_it(name: str, words: list[str]) -> None:
    options, rest = build_parser().parse_known_args(words)
    assert not rest or options.takes_overrides, f"{name}: {rest}"
    recipe = getattr(options, "recipe", "")
    if recipe and not recipe.startswith(FILES_OF_THE_READER):
        read_as_documented(options, parse_overrides(rest))


def read_as_documented(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Read a command's recipe with the fields that it overrides; an unknown field or a missing file is an error."""
    recipe = ROOT / options.recipe
    if options.command.__module__ == "lgd_timm.cli.vl":
        read_vl_recipe(recipe, overrides=overrides)
    elif hasattr(options, "task"):
        read_transfer(find_task(options.task).RECIPE, recipe, overrides=overrides)
    elif hasattr(options, "vocabulary"):
        read_recipe(recipe, overrides=overrides)
    else:
        read_teach_recipe(recipe, overrides=overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_within_sentences_exist(page: Path) -> None:
    for command in INLINE.findall(page.read_text(encoding="utf-8")):
        parser = build_parser()
        for word in shlex.split(command.split("|")[0])[1:]:
            groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            if word.startswith("-") or not groups:
                break
            assert word in groups[0].choices, command
            parser = groups[0].choices[word]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_and_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [name for name in RUN_AS_MODULE.findall(text) if importlib.util.find_spec(name) is None] == []
    for name in DOTTED.findall(text):
        resolve_name(name)


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 4
    assert len(SHELL) >= 30
