"""The training curve: what is read from a log, what is drawn of it, and that equal runs give equal pictures."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgd_timm.errors import MissingExtra
from lgd_timm.publish import training_curve as curve
from lgd_timm.publish.training_curve import read_log, training_curve, training_seconds

METRICS = {"zero_shot": {"top1": 58.35, "chance": 10.0}, "teacher_zero_shot": {"top1": 67.11}}


def step(number: int, loss: float = 1.0, rate: float = 100.0) -> dict[str, Any]:
    return {
        "step": number,
        "loss": loss,
        "loss_text": loss / 2,
        "loss_visual": loss / 2,
        "lr": 0.1,
        "images_per_second": rate,
    }


def score(number: int, epoch: int, top1: float) -> dict[str, Any]:
    return {"step": number, "epoch": epoch, "zero_shot_top1": top1, "zero_shot_top5": 90.0}


ROWS = [step(10, 4.0), score(10, 1, 20.0), step(20, 3.0), score(20, 2, 40.0), step(30, 2.0)]


def write_log(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(rows: list[dict[str, Any]], metrics: dict[str, Any], epochs: float = 3) -> bytes:
    picture = training_curve(rows, metrics, epochs=epochs)
    assert picture is not None
    return picture


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_resumed_runs_log_counts_each_step_once_and_ends_where_the_weights_do(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        [step(10, 4.0), step(20, 9.0), step(30, 9.0), step(20, 3.0), score(20, 2, 40.0), step(30, 2.0), step(40)],
    )
    rows = read_log(log, until=30)
    assert [(row["step"], row.get("loss")) for row in rows] == [(10, 4.0), (20, None), (20, 3.0), (30, 2.0)]


def test_a_line_that_ends_early_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = write_log(tmp_path / "log.jsonl", [step(10)])
    log.write_text(log.read_text() + '{"step": 20, "lo\n' + json.dumps(step(30)) + "\n")
    assert [row["step"] for row in read_log(log, until=99)] == [10, 30]
    assert "log.jsonl, line 2 can't be read" in caplog.text


def test_no_log_has_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl", until=99) == []


def test_the_time_is_that_of_all_images_at_the_rates_that_were_logged() -> None:
    rows = [step(10, rate=100.0), score(10, 1, 20.0), step(20, rate=50.0)]
    assert training_seconds(rows, images=2000) == 2000 * (1 / 100 + 1 / 50) / 2
    assert training_seconds(rows[1:2], images=2000) is None
    assert training_seconds([step(1, rate=0.0)], images=2000) is None  # slower than the log can say


# -------------------------------------------------------------------------------------------------------------- drawing


def test_the_picture_is_small_and_equal_rows_give_equal_bytes() -> None:
    picture = drawn(ROWS, METRICS)
    assert picture == drawn(ROWS, METRICS)
    assert len(picture) < 100_000
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.size) == ("PNG", (880, 330))
    assert set(image.info) <= {"dpi"}  # neither a date nor a version
    assert picture != drawn(ROWS[:-1], METRICS)


def test_many_steps_make_no_larger_a_picture() -> None:
    assert len(drawn([step(i, 1 + (i % 7) / 10) for i in range(1, 20_000)], METRICS)) < 100_000


def texts(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], metrics: dict[str, Any], epochs: float = 3
) -> list[str]:
    """Every label that is drawn."""
    from matplotlib.axes import Axes

    labels: list[str] = []

    def watch(name: str, taken: str | int) -> None:
        original = getattr(Axes, name)

        def watched(self: Axes, *args: Any, **kwargs: Any) -> Any:
            labels.append(str(args[taken] if isinstance(taken, int) else kwargs.get(taken)))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, watched)

    for name, taken in (("plot", "label"), ("axhline", "label"), ("set_xlabel", 0), ("set_ylabel", 0)):
        watch(name, taken)
    drawn(rows, metrics, epochs)
    return labels


def test_losses_and_scores_are_drawn_with_teacher_and_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = texts(monkeypatch, ROWS, METRICS)
    assert labels[:3] == ["loss", "text", "visual"]
    assert labels[5:8] == ["student, at last 58.35 %", "teacher, 67.11 %", "chance, 10.00 %"]
    assert {"step", "loss", "epoch", "zero-shot top-1 (%)"} <= set(labels)


def test_what_was_not_measured_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts(monkeypatch, [step(10), step(20)], {}) == ["loss", "text", "visual", "step", "loss"]
    labels = texts(monkeypatch, [step(10)], {"zero_shot": {"top1": 50.0, "chance": 10.0}, "teacher_zero_shot": None})
    assert not any("teacher" in label for label in labels)


def test_scores_after_the_weights_that_are_published_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved from a checkpoint after one epoch: what is published was scored then, and its score is the last point."""
    assert "student, at last 58.35 %" in texts(monkeypatch, ROWS, METRICS, epochs=1)


def test_a_score_without_its_epoch_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, {"step": 30, "zero_shot_top1": 60.0}]
    assert training_curve(rows, METRICS, epochs=3) == training_curve(ROWS, METRICS, epochs=3)


def test_nothing_to_draw_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert training_curve([score(10, 1, 20.0)], METRICS, epochs=1) is None
    assert "no training.png: the run's log.jsonl holds no losses" in caplog.text


def test_without_matplotlib_the_log_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(module: str, *, extra: str) -> None:
        raise MissingExtra(f"{module!r} can't be imported. Install it with: pip install 'lgd_timm[{extra}]'")

    monkeypatch.setattr(curve, "require", missing)
    with caplog.at_level(logging.INFO):
        assert training_curve(ROWS, METRICS, epochs=3) is None
    assert (
        "no training.png: 'matplotlib' can't be imported. Install it with: pip install 'lgd_timm[plot]'" in caplog.text
    )


def test_no_display_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # now importing it fails
    assert drawn(ROWS, METRICS)
