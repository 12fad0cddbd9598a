"""JSON is of the types that its reader expects, of bounded size, or one JSONError says why not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, TypedDict

import pytest

from lgd_timm.utils.lfs import POINTER, is_pointer
from lgd_timm.utils.typed_json import JSONError, parse_json, read_json
from tests.helpers.mutations import mutated_json


class Inner(TypedDict):
    size: int


class Outer(Inner, total=False):
    share: float
    names: list[str]
    parts: dict[str, Inner]


GOOD: dict[str, Any] = {"size": 3, "share": 0.5, "names": ["a"], "parts": {"x": {"size": 1}}, "of others": [None]}


def test_what_fits_comes_back_with_the_keys_of_others(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(GOOD), encoding="utf-8")
    assert read_json(path, Outer) == GOOD
    assert parse_json('{"size": 1}', Outer) == {"size": 1}
    assert parse_json("[1, 2]", list[int]) == [1, 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"size": ' + "9" * 5000 + "}", "no JSON"),
        ("[]", "must be an object"),
        ("{}", "lacks size"),
        ('{"size": "3"}', "size = '3' is no int"),
        ('{"size": true}', "size = True is no int"),
        ('{"size": 1, "share": NaN}', "share = nan is not finite"),
        ('{"size": 1, "share": 1e999}', "share = inf is not finite"),
        ('{"size": 1, "names": "abc"}', "names = 'abc'"),
        ('{"size": 1, "names": [null]}', "names = None is no str"),
        ('{"size": 1, "parts": {"x": {}}}', "parts.x lacks size"),
        (POINTER + b"v1\noid sha256:0\n", "git lfs pull"),
        (json.dumps({"size": 1, "names": ["x" * 2000]}), "more than 1000 bytes"),
    ],
)
def test_what_does_not_is_refused_with_the_reason(tmp_path: Path, content: str | bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    limit = 1000 if reason.startswith("more") else 1 << 20
    with pytest.raises(JSONError, match=reason.replace("(", r"\(")):
        read_json(path, Outer, limit=limit)


def test_a_pointer_of_git_lfs_is_known(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(POINTER + b"v1\n")
    (tmp_path / "b").write_bytes(b"{}")
    assert [is_pointer(tmp_path / name) for name in ("a", "b", "none")] == [True, False, False]


def test_mutations_are_read_or_refused() -> None:
    draw, refused = random.Random(0), 0
    for _ in range(500):
        try:
            value = parse_json(mutated_json(GOOD, draw), Outer)
            assert isinstance(value["size"], int)
        except JSONError:
            refused += 1
    assert 100 < refused < 500
