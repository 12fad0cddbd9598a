"""README and docs: their size, their links, their generated pages, and what they may not cite."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
TEXT = {".cfg", ".html", ".j2", ".jsonl", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}
FILE = re.compile(r"(?<![\w/.-])(?:tests|benchmarks|recipes)/[\w/.-]+\.(?:py|yaml|sh|tsv|png)\b")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_is_of_three_minutes() -> None:
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit_120_columns(page: str) -> None:
    """A row of a table is as long as it must be: Markdown can't break it."""
    assert [line for line in text_of(page).splitlines() if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    folder = (ROOT / page).parent
    assert [link for link in LINK.findall(text_of(page)) if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    moved = page == "CHANGELOG.md"  # it also names what was before
    assert moved or [name for name in FILE.findall(text_of(page)) if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", text_of("mkdocs.yml")))
    assert listed == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(text_of(page) for page in PAGES if page.startswith("docs/reference/"))
    documented = set(re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE))
    missing = []
    for room in ("evaluate", "evaluate.report", "objectives", "publish", "students", "teachers", "training"):
        package = importlib.import_module(f"lgd_timm.{room}")
        for name in package.__all__:
            module = getattr(getattr(package, name), "__module__", "")  # a constant has none
            if module.startswith("lgd_timm.") and not documented & {module, f"{module}.{name}"}:
                missing.append(f"lgd_timm.{room}.{name} of {module}")
    assert missing == []


def test_the_architecture_page_has_the_rooms_of_its_guard() -> None:
    guard = ast.parse(text_of("tests/test_architecture.py"))
    (rooms,) = [
        ast.literal_eval(node.value)
        for node in guard.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT"
    ]
    rows = re.findall(r"^\| `(\w+)/` \| .* \| (.*) \|$", text_of("docs/develop/architecture.md"), flags=re.MULTILINE)
    page = {room: set(re.findall(r"\w+", allowed)) for room, allowed in rows if allowed != "everything"}
    folders = {path.name for path in (ROOT / "lgd_timm").iterdir() if (path / "__init__.py").exists()}
    assert {room for room, _ in rows} == folders
    assert page == {room: set(rooms[room].split()) for room in folders - {"cli"}}


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), f"{done.stdout}{done.stderr}Run python docs/generate.py."


def test_no_file_cites_notes_that_are_not_in_the_repository() -> None:
    notes = ["facts", "mechanics"]
    cited = re.compile("|".join([*(rf"\b{name}\.md" for name in notes), "shared" + "/reference"]))
    folders = ("lgd_timm", "tests", "benchmarks", "recipes", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in TEXT]
    files += [path for path in ROOT.iterdir() if path.suffix in TEXT]
    assert [path.relative_to(ROOT).as_posix() for path in files if cited.search(path.read_text(encoding="utf-8"))] == []
