"""Write the pages that come from the code: the command line, the recipe's fields, the objectives' switches.

python docs/generate.py            # writes them
python docs/generate.py --check    # says which are stale; status 1
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import os
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lgd_timm.cli.main import build_parser
from lgd_timm.config import recipe as recipes
from lgd_timm.data.views import Views
from lgd_timm.objectives.registry import OBJECTIVES
from lgd_timm.teachers import Conse, OpenCLIP, Stored

DOCS = Path(__file__).resolve().parent
SECTIONS: list[tuple[str, str, type]] = [
    ("Student", "student", recipes.StudentRecipe),
    ("Data", "data", recipes.DataRecipe),
    ("Vocabulary", "vocabulary", recipes.VocabularyRecipe),
    ("Views", "views", Views),
    ("Teacher: open_clip", "teacher", OpenCLIP),
    ("Teacher: ConSE", "teacher", Conse),
    ("Teacher: stored embeddings", "teacher", Stored),
    ("Optimizer", "optimizer", recipes.OptimizerRecipe),
    ("Schedule", "schedule", recipes.ScheduleRecipe),
    ("Run", "run", recipes.MachineRecipe),
    ("A recipe of `lgd-timm teach`", "", recipes.TeachRecipe),
]


def comments(cls: type) -> dict[str, str]:
    """The comment beside or above each field of a dataclass, else its text under Args: of the docstring."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    found = {token.start[0]: token.string.lstrip("# ") for token in tokens}
    whole = {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}  # lines of nothing else
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = _args_of(cls)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in whole:
                first -= 1
            lines = range(first, (node.end_lineno or node.lineno) + 1)
            if text := " ".join(found[line] for line in lines if line in found):
                texts[node.target.id] = text
    return texts


def _args_of(cls: type) -> dict[str, str]:
    """What a Google docstring says of each argument."""
    _, _, section = (cls.__doc__ or "").partition("Args:\n")
    section = textwrap.dedent(section.partition("\n\n")[0])
    found = re.findall(r"^(\w+): (.+(?:\n +.+)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def field_table(cls: type, prefix: str) -> str:
    """A Markdown table of a dataclass: field, type, default, meaning."""
    texts = {name: text for base in reversed(cls.__mro__[:-1]) for name, text in _comments_of(base).items()}
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        cells = (f"`{prefix}{item.name}`", f"`{_type(hints[item.name])}`", _default(item), texts.get(item.name, ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _comments_of(cls: type) -> dict[str, str]:
    return comments(cls) if dataclasses.is_dataclass(cls) else {}


def _type(hint: Any) -> str:
    """A type as one writes it; what `Annotated` says beside it is left out."""
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(_type, get_args(hint)))
    if hint is type(None):
        return "None"
    return hint.__name__ if get_origin(hint) is None else str(hint).replace("typing.", "")


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        return f"`{item.default!r}`"
    return "required" if item.default_factory is dataclasses.MISSING else f"`{item.default_factory()!r}`"


def recipe_page() -> str:
    """docs/concepts/recipes.md."""
    parts = [
        "# Recipes",
        "A recipe is a YAML file; a section of it is a mapping. Any field is overridden on the command line as\n"
        "`--section.field value`. This page is generated from `lgd_timm/config/recipe.py` by `docs/generate.py`.",
    ]
    for title, section, cls in SECTIONS:
        first = (inspect.getdoc(cls) or "").splitlines()[0]
        parts += [f"## {title}", first, field_table(cls, f"{section}." if section else "")]
    parts += ["## Objective", "`objective.kind` and its switches: [Objectives](../guides/objectives.md#switches)."]
    return "\n\n".join(parts) + "\n"


def switch_tables() -> str:
    """The switches of each objective, with the values of its presets."""
    parts = []
    for kind, cls in OBJECTIVES.items():
        presets = cls.presets
        config = type(next(iter(presets.values())))
        texts = comments(config)
        rows = ["| switch | " + " | ".join(presets) + " | |", "|---" * (len(presets) + 2) + "|"]
        for item in dataclasses.fields(config):
            values = [f"`{getattr(preset, item.name)!r}`" for preset in presets.values()]
            rows.append(
                "| " + " | ".join([f"`{item.name}`", *values, texts.get(item.name, "").replace("|", "\\|")]) + " |"
            )
        parts.append(f"### `{kind}`\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser's commands, at any depth, in their order; those that only hold others are left out."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for command in group.choices.values():
            yield from parsers(command)


def cli_page() -> str:
    """docs/reference/cli.md."""
    parts = ["# Command line", "Generated from the parsers by `docs/generate.py`."]
    for parser in parsers(build_parser()):
        parts += [f"## `{parser.prog}`", f"```text\n{parser.format_help().rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def between(text: str, name: str, content: str) -> str:
    """A page with what stands between its two markers replaced."""
    start, end = f"<!-- generated: {name} -->", f"<!-- /generated: {name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    os.environ["COLUMNS"] = "100"  # as wide as argparse writes its help
    objectives = DOCS / "guides" / "objectives.md"
    return {
        DOCS / "reference" / "cli.md": cli_page(),
        DOCS / "concepts" / "recipes.md": recipe_page(),
        objectives: between(objectives.read_text(encoding="utf-8"), "switches", switch_tables()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a page is stale")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(DOCS.parent)}")
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
