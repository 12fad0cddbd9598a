"""What commands share: overrides, help, tables."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from lgd_timm.cli.common import Parser, number, parse_overrides, plain, table
from lgd_timm.cli.main import build_parser
from lgd_timm.errors import RecipeError
from lgd_timm.utils.schema import Rate, Workers


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


WITHOUT_DEFAULT = {"subset", "register", "model_name", "compare"}  # nothing stands in for them


def options_below(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_below(command)
        else:
            yield parser.prog, action


def test_every_argument_has_a_help_and_every_value_a_default() -> None:
    for program, action in options_below(build_parser()):
        assert action.help, f"{program} {action.dest}"
        text = Parser()._get_formatter()._get_help_string(action)  # type: ignore[attr-defined]
        takes_value = action.option_strings and action.nargs != 0 and action.default != argparse.SUPPRESS
        if takes_value and not action.required and action.dest not in WITHOUT_DEFAULT:
            assert "(default: " in text, f"{program} {action.dest}"


def test_a_table_fits_and_a_long_name_has_a_line_of_its_own() -> None:
    rows = [["lgd_a", "1 MB", "local"], ["o/" + "n" * 30, "20 MB", ""]]
    lines = table(["name", "size", "where"], rows, width=30)
    assert lines == [
        "name   size   where",
        "lgd_a  1 MB   local",
        "o/" + "n" * 30,
        "       20 MB",
    ]
    assert table(["name"], []) == ["name"]


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[2J", r"a\x1b[2J"), ("a\nb", r"a\nb"), ("é", "é"), ("\u202e", r"\u202e"), (99.5, "99.5")]
)
def test_foreign_text_moves_no_cursor_and_forges_no_line(text: object, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize("text", ["-1", "1025", "1e3", "9" * 50, "x", "", "nan"])
def test_numbers_out_of_their_bounds_are_refused_with_them(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        number(Workers)(text)
    assert number(Workers)("1024") == 1024
    assert number(Rate)("1e-3") == 0.001
    with pytest.raises(argparse.ArgumentTypeError, match="not finite"):
        number(Rate)("nan")


def test_every_number_of_the_command_line_has_bounds() -> None:
    read = [(where, action) for where, action in options_below(build_parser()) if action.type is not None]
    assert len(read) > 30
    for program, action in read:
        assert action.type not in (int, float), f"{program} {action.dest}"
        for text in ("-1", "nan", "inf", "1e30", "-1e30", "9" * 40):
            with pytest.raises(argparse.ArgumentTypeError):
                action.type(text)


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "knn", "m", "--data", "d", "--temperature", "0"],
        ["evaluate", "linear-probe", "m", "--data", "d", "--fraction", "0"],
        ["evaluate", "linear-probe", "m", "--data", "d", "--fraction", "1.5"],
        ["evaluate", "linear-probe", "m", "--data", "d", "--sgd-batch-size", "0"],
        ["evaluate", "fine-tune", "m", "--data", "d", "--layer-decay", "2"],
        ["shards", "write", "i", "o", "--quality", "101"],
        ["shards", "resize", "s", "o", "--short-side", "0"],
        ["demo", "m", "--port", "65536"],
        ["vl", "caption", "m", "i", "--grid", "0"],
        ["export", "m", "o", "--to", "onnx-int8", "--calibration-images", "0"],
    ],
)
def test_a_number_out_of_its_bounds_is_one_line_and_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(words)
    assert ended.value.code == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"argument {words[-2]}: the value = " in said
    assert "is outside [" in said
