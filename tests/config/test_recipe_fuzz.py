"""A recipe is anybody's text.

Every input is a recipe or an LGDError in one line, never another exception, never a wait.
"""

from __future__ import annotations

import copy
import random
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgd_timm.config.reader import read_recipe, read_teach_recipe, read_teacher, read_value, recipe_from_dict
from lgd_timm.config.recipe import Recipe, TeachRecipe
from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.objectives.lgd import LGDConfig
from lgd_timm.teachers import TeacherSpec
from tests.helpers import ROOT

REAL = [
    path.read_bytes()
    for path in [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "hub").glob("*/recipe.yaml"))]
]
quick = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check_message(error: LGDError) -> None:
    assert len(str(error).splitlines()) == 1, str(error)
    assert len(str(error)) < 1000


def survive(folder: Path, content: bytes) -> None:
    """Read the content every way in which a recipe is read.

    What is a recipe reads back equal from what is written of it.
    """
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    for read in (read_recipe, read_teach_recipe, read_teacher):
        for source in (path, folder):
            try:
                recipe = read(source)
            except LGDError as error:
                check_message(error)
                continue
            if isinstance(recipe, Recipe):
                (folder / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
                assert read_recipe(folder / "again.yaml") == recipe


# ------------------------------------------------------------------------------------------------------------ any bytes


@quick
@given(content=st.binary(max_size=200))
def test_any_bytes(folder: Path, content: bytes) -> None:
    survive(folder, content)


WORDS = [
    "name",
    "teacher",
    "data",
    "views",
    "kind",
    "stored",
    "conse",
    "a",
    "1",
    "1e-4",
    ".nan",
    "-.inf",
    "0x_",
    "1:2",
    "~",
    "yes",
    "=",
    "<<",
]
MARKS = [
    ":",
    ": ",
    "- ",
    "? ",
    ", ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!!int ",
    "!x ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "---",
    "...",
    "\n",
]
SPACES = ["\n  ", "\n", " ", "\t", "\\", "\\x", "\\u12", "\ufeff", "\0", "\x85", "\u2028", "é", "🦜", "\r\n"]


@quick
@given(text=st.lists(st.sampled_from([*WORDS, *MARKS, *SPACES]), max_size=40).map("".join))
def test_what_looks_like_yaml(folder: Path, text: str) -> None:
    survive(folder, text.encode())
    try:
        read_value("field", text)
    except RecipeError as error:
        check_message(error)


@quick
@given(seed=st.integers(0, 2**32), content=st.sampled_from(REAL))
def test_real_recipes_with_some_bytes_changed(folder: Path, seed: int, content: bytes) -> None:
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(draw.randint(1, 6)):
        start = draw.randrange(len(changed))
        length = draw.choice((0, 1, 1, 5, 40))
        piece = draw.choice(
            (
                b"",
                bytes([draw.randrange(256)]),
                bytes(changed[start : start + 30]),
                draw.choice([*WORDS, *MARKS]).encode(),
            )
        )
        changed[start : start + length] = piece
    survive(folder, bytes(changed))


# ----------------------------------------------------------------------------------------------------------- any values

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "none",
            "paper",
            "openai",
            "1e999",
            "nan",
            "a.pt",
            "local-dir:/x",
            "hf-hub:",
            "package:os/..",
            "coco:../x",
            "x" * 99,
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def dotted(kind: Any, where: str = "") -> list[str]:
    """Every field of a dataclass and of those within it."""
    hints, found = get_type_hints(kind), []
    for field in fields(kind):
        name, hint = where + field.name, hints[field.name]
        found.append(name)
        for option in (hint, *get_args(hint)):
            found += dotted(option, f"{name}.") if is_dataclass(option) else []
    return found


FIELDS = sorted(
    {
        *dotted(Recipe),
        *(f"objective.{field.name}" for field in fields(LGDConfig)),
        "objective.preset",
        "teacher.kind",
        "nonsense",
    }
)
TEACHERS = [
    {"kind": "open_clip", "model": "RN50", "pretrained": "openai"},
    {"kind": "conse", "classifier": "resnet18", "encoder": "some/encoder"},
    {"kind": "stored", "embeddings": "e", "taught_by": {"kind": "open_clip", "model": "RN50"}},
]
BASE: dict[str, Any] = {
    "name": "small",
    "vocabulary": {"source": ["cat", "dog"]},
    "data": {"shards": "s"},
    "views": {},
    "objective": {},
}


@settings(parent=quick, max_examples=200)
@given(teacher=st.sampled_from(TEACHERS), field=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_in_any_field(folder: Path, teacher: dict[str, Any], field: str, value: Any) -> None:
    data = copy.deepcopy({**BASE, "teacher": teacher})
    *parents, last = field.split(".")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    try:
        recipe = recipe_from_dict(data)
    except LGDError as error:
        check_message(error)
    else:
        assert recipe_from_dict(recipe.to_dict()) == recipe
    survive(folder, yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))


@quick
@given(
    key=st.lists(st.sampled_from([*WORDS, "", "objective", "alpha", "source", "vocabulary"]), max_size=30).map(
        ".".join
    ),
    value=VALUES,
)
def test_any_override(folder: Path, key: str, value: Any) -> None:
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump({**BASE, "teacher": TEACHERS[0]}))
    for read in (read_recipe, read_teach_recipe):
        try:
            assert isinstance(read(path, overrides={key: value}), (Recipe, TeachRecipe))
        except LGDError as error:
            check_message(error)


# ---------------------------------------------------------------------------------------------------------- nasty files

NASTY: dict[str, bytes] = {
    "billion laughs": b"a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nname: *c\n",
    "endless": b"&a [*a]",
    "brackets": b"[" * 500_000,
    "braces": b"{a: " * 250_000,
    "dashes": b"- " * 250_000,
    "code": b"!!python/object/apply:os.system ['touch executed']",
    "code in a field": b"name: !!python/object/apply:os.system ['touch executed']",
    "bytes": b"name: !!binary aGVsbG8=",
    "a set": b"name: !!set {a, b}",
    "twice": b"name: a\nname: b",
    "a date": b"name: 2001-12-14 21:59:43.10 -05:00",
    "an impossible date": b"name: 2001-99-99",
    "digits": b"run: {seed: " + b"9" * 100_000 + b"}",
    "hexadecimal digits": b"run: {seed: 0x" + b"f" * 100_000 + b"}",
    "sexagesimal digits": b"run: {seed: 1" + b":59" * 30_000 + b"}",
    "an empty number": b"run: {seed: 0b_}",
    "a large float": b"optimizer: {lr: 1" + b"0" * 400 + b".5}",
    "not a number": b"optimizer: {lr: .nan}",
    "NUL": b"name: a\0b",
    "NUL by escape": b'name: "a\\0b"',
    "no character": b'name: "\\UFFFFFFFF"',
    "a mark": b"\xef\xbb\xbfname: a",
    "UTF-16": "name: a".encode("utf-16"),
    "half a pair": b"name: \xed\xa0\x80",
    "half a pair by escape": b'name: "\\ud800"',
    "class": b"__class__: {__init__: {__globals__: a}}\n__reduce__: [os.system, [ls]]",
    "class in a field": b"teacher: {kind: conse, classifier: a, encoder: b, __class__: os, __dict__: {}}",
    "keys": b"{1: a, 2.5: b, null: c, true: d, [e]: f, {g: h}: i}",
    "a merge": b"name: a\n<<: {data: {shards: /etc}}",
    "a long key": b"? " + b"k" * 900_000 + b"\n: v",
    "a long text": b"name: " + b"n" * 900_000,
    "large": b"# " + b"x" * 2_000_000,
    "two documents": b"name: a\n---\nname: b",
    "directives": b"%TAG ! tag:yaml.org,2002:python/\n---\nname: !object/apply:os.system [ls]",
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("nasty", NASTY)
def test_nasty_files_are_refused(nasty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(NASTY[nasty])
    for read in (read_recipe, read_teach_recipe, read_teacher):
        with pytest.raises(RecipeError) as caught:
            read(tmp_path / "recipe.yaml")
        check_message(caught.value)
    assert not (tmp_path / "executed").exists()


def test_every_kind_of_teacher_is_tried() -> None:
    assert {teacher["kind"] for teacher in TEACHERS} == {spec.kind for spec in get_args(TeacherSpec)}
