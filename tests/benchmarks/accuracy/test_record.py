"""The record's tables are those of the notes, and show all of them."""

from __future__ import annotations

import shlex

import pytest

from benchmarks.accuracy import record
from benchmarks.accuracy.__main__ import selected
from benchmarks.accuracy.runs import identity, noted

TEXT = record.RECORD.read_text(encoding="utf-8")
TABLES = {found["words"]: found["table"] for found in record.TABLE.finditer(TEXT)}


@pytest.mark.parametrize("words", TABLES)
def test_the_record_shows_what_is_noted(words: str) -> None:
    shown = TABLES[words]
    assert len(shown.splitlines()) > 2
    assert record.renewed(f"<!-- evidence: {words} -->\n\n") == f"<!-- evidence: {words} -->\n\n{shown}"


def test_no_note_is_left_out_of_the_record() -> None:
    arguments, _ = selected(["rivals"])
    shown = {identity(recipe) for words in TABLES for recipe in selected(shlex.split(words))[1].values()}
    assert [note for note in noted(arguments.notes) if note["identity"] not in shown] == []


def test_tables_are_written_anew_and_nothing_else() -> None:
    stale = record.TABLE.sub(lambda found: f"<!-- evidence: {found['words']} -->\n\n| | n |\n|---|---|\n", TEXT)
    assert stale != TEXT
    assert record.renewed(stale) == TEXT
