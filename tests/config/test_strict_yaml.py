"""Plain data from YAML, whoever wrote it: one line for whatever is more, never another exception, never a long wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lgd_timm.config import strict_yaml
from lgd_timm.config.strict_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml
from lgd_timm.errors import RecipeError


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"a": [1, -2.5, True, None, "text"], "b": {"c": {}}, "empty": []},
        ["no", "1e-4", "7", "2001-12-14", "=", "<<", "&a", "*a", "!x", "größe", "a: b", "", "null", "\u2028", "🦜"],
        2**63 - 1,
    ],
)
def test_plain_data_reads_back(data: Any) -> None:
    assert parse_yaml(yaml.safe_dump(data, allow_unicode=True), source="x") == data


def test_it_reads_what_the_safe_loader_reads() -> None:
    text = "a: 0x1F\nb: 1_000\nc: .5\nd: yes\ne: ~\nf: [1, {g: 'h'}]\ni: |\n  two\n  lines\nj: 1:30\n# comment\n"
    assert parse_yaml(text, source="x") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: &x 2", "line 2: anchors"),
        ("a: *x", "line 1: anchors"),
        ("a: {<<: {b: 1}}", r"line 1: merge keys \(<<\) are not read"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice. Remove one"),
        ("a:\n  1: b", "line 2: the key '1' is not text"),
        ("? [a]\n: b", "line 1: the key in line 1 is not text"),
        ("true: b", "line 1: the key 'true' is not text"),
        (
            "a: 2001-12-14",
            "line 1: '2001-12-14' is a timestamp, which no field takes. If it is meant as text, quote it",
        ),
        ("a: =", "'=' is a value, which no field takes"),
        ("a: !!binary aGVsbG8=", "the tag 'tag:yaml.org,2002:binary' is not read"),
        ("a: !!set {b, c}", "the tag 'tag:yaml.org,2002:set' is not read"),
        ("a: !!python/tuple [1]", "the tag 'tag:yaml.org,2002:python/tuple' is not read"),
        ("a: !mine b", "the tag '!mine' is not read"),
        ("a: " + "9" * 100_000, "the integer '9{40}' does not fit into 64 bits"),
        ("a: 9223372036854775808", "does not fit into 64 bits"),
        ("a: 0x" + "f" * 70, "does not fit into 64 bits"),
        ("a: 0x_", "x is not YAML: "),
        ('a: "\\0"', r"line 1: the character '\\x00' can't be written"),
        ('a: "\\ud800"', r"line 1: the character '\\ud800' can't be written"),
        ('a: "\\e[31m"', r"line 1: the character '\\x1b' can't be written"),
        ('"\\0": a', r"line 1: the character '\\x00' can't be written"),
        ('a: "\\UFFFFFFFF"', "x is not YAML: "),
        ("a: \0", "x is not YAML: .*special characters are not allowed"),
        ("a: \ud800", "x is not YAML: .*special characters are not allowed"),
        ("a: 1\n---\nb: 2", "x is not YAML: expected a single document"),
        ("%YAML 9.9\n---\na: 1", "x is not YAML: found incompatible YAML document"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_is_more_than_plain_data_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^x(, | is not YAML).*{message.removeprefix('x is not YAML: ')}") as caught:
        parse_yaml(text, source="x")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_depth_is_bounded() -> None:
    within = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(within, source="x")
    for deep in (f"[{within}]", "[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000):
        with pytest.raises(RecipeError, match=f"line 1: nested deeper than {MAX_DEPTH} levels"):
            parse_yaml(deep, source="x")


def test_what_would_take_long_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="line 1: anchors"):
        parse_yaml(laughs, source="x")
    assert time.perf_counter() - start < 1
    monkeypatch.setattr(strict_yaml, "MAX_VALUES", 1000)
    assert len(parse_yaml("[" + "a," * 999 + "]", source="x")) == 999
    with pytest.raises(RecipeError, match="line 1: more than 1,000 values"):
        parse_yaml("[" + "a," * 100_000 + "]", source="x")


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"a: " + b"b" * (MAX_BYTES - 3))
    assert len(read_yaml(path)["a"]) == MAX_BYTES - 3
    path.write_bytes(b"a: " + b"b" * (MAX_BYTES - 2))
    with pytest.raises(RecipeError, match=r"recipe\.yaml is larger than 1,000,000 bytes"):
        read_yaml(path)


def test_files_are_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xb6")
    assert read_yaml(path) == {"a": "ö"}
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not YAML: byte 3 is not UTF-8"):
        read_yaml(path)
    with pytest.raises(RecipeError, match="can't be read"):
        read_yaml(tmp_path)
