"""The benchmark of vision-language models: what is scored, in which order it learns, and that all of it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.accuracy import vl
from tests.helpers.vl_files import write_tiles


@pytest.fixture(autouse=True)
def _logs_again() -> Iterator[None]:
    """The command silences other libraries' logs, for as long as its process lives."""
    yield
    logging.disable(logging.NOTSET)


def test_the_rows_are_those_of_the_papers_claims() -> None:
    rows = vl.ROWS
    assert not rows["no teacher"].taught
    assert not rows["no teacher, four times the steps"].taught
    assert sum(row.taught for row in rows.values()) == len(rows) - 2
    assert {row.queue for name, row in rows.items() if "queue" in name} == {256, 1024, 4096}
    recipe = rows["full, unadapted teacher"].recipe
    assert (recipe.attention.weight, recipe.nce.weight, recipe.logits.weight, recipe.hidden_mse.weight) == (1, 1, 1, 0)


SCALE = vl.Scale(
    train_tiles=12,
    test_tiles=8,
    teacher_scenes=16,
    student_scenes=8,
    test_scenes=4,
    teacher_steps=2,
    student_steps=2,
    teacher_batch=4,
    student_batch=4,
    variants=2,
    teacher_width=16,
    student_width=8,
    heads=2,
    teacher_pixels=32,
    student_pixels=32,
)


def test_every_row_trains_and_is_scored(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap", reason="comes with lgd_timm[vl]")
    root = write_tiles(tmp_path / "s")
    lab = vl.Lab(SCALE, shards=str(root), teacher="lgd_mobilenetv2", output=tmp_path / "o")
    scores = [lab.student(row, 0) for row in vl.ROWS.values()]
    assert all(vl.COLUMNS.keys() <= one.keys() for one in scores)
    assert [one["steps"] for one in scores] == [2 * row.length for row in vl.ROWS.values()]
    again = vl.Lab(
        SCALE, shards=str(root), teacher="lgd_mobilenetv2", output=tmp_path / "o"
    )  # finds all that is stored
    assert {**again.student(vl.ROWS["full"], 0), "cpu_seconds": 0} == {
        **scores[[*vl.ROWS].index("full")],
        "cpu_seconds": 0,
    }
    assert again.teacher_scores("unadapted")["parameters"] > scores[0]["parameters"]


class _NoLab:
    """Scores without a training."""

    runs = 0

    def __init__(self, scale: vl.Scale, **_: object) -> None:
        self.scale = scale

    def student(self, row: vl.Row, seed: int) -> dict[str, float]:
        _NoLab.runs += 1
        return {**dict.fromkeys(vl.COLUMNS, 10.0 * seed), "cpu_seconds": 1.0}

    def teacher_scores(self, kind: str) -> dict[str, float]:
        return dict.fromkeys(vl.COLUMNS, 50.0)


def test_a_run_that_is_noted_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vl, "Lab", _NoLab)
    line = f"vl --notes {tmp_path / 'n'} --output {tmp_path / 'o'} --seeds 0 1"
    monkeypatch.setattr("sys.argv", line.split())
    _NoLab.runs = 0
    assert vl.main() == 0
    table = capsys.readouterr().out
    assert _NoLab.runs == 2 * len(vl.ROWS)
    assert table.count("5.00 ± 7.07") == len(vl.COLUMNS) * len(vl.ROWS)
    assert table.splitlines()[2].startswith("| teacher, adapted | 50.00 |")
    assert vl.main() == 0
    assert _NoLab.runs == 2 * len(vl.ROWS)
    assert capsys.readouterr().out == table
    monkeypatch.setattr("sys.argv", [*line.split(), "--steps", "7", "--show"])
    assert vl.main() == 0
    assert "5.00" not in capsys.readouterr().out  # another scale: other runs


def test_batches_cover_each_epoch_once() -> None:
    batches = list(vl._items(10, 3, 6, 0))
    for epoch, part in enumerate((batches[:3], batches[3:])):
        items = [item for batch in part for item in batch]
        assert len(set(items)) == 9
        assert {item[1] for item in items} == {epoch}
