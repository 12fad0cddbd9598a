"""What a run tells: JSON lines, read late."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd_timm.publish.training_curve import read_log
from lgd_timm.utils import logger as module
from lgd_timm.utils.logger import Progress


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def loss(value: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(value)}


class Unread:
    """A loss that must not be read: doing so would wait for the device."""

    def __float__(self) -> float:
        raise AssertionError("the loss was read in its own step")


class Clock:
    """time.perf_counter that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


def test_every_nth_step_is_logged_with_its_own_values(tmp_path: Path) -> None:
    with Progress(tmp_path, total=7, start=0, batch_size=4) as progress:
        for step in range(1, 8):
            progress.step({**loss(step), "loss_text": torch.tensor(-float(step))}, lr=step / 10, every=3)
    logged = [(line["step"], line["loss"], line["loss_text"], line["lr"]) for line in lines(tmp_path)]
    assert logged == [(3, 3.0, -3.0, 0.3), (6, 6.0, -6.0, 0.6)]


def test_a_loss_is_not_read_in_its_own_step(tmp_path: Path) -> None:
    progress = Progress(tmp_path, total=3, start=0, batch_size=1)
    progress.step({"loss": Unread()}, lr=0.1, every=1)  # type: ignore[dict-item]
    with pytest.raises(AssertionError, match="was read"):
        progress.step({"loss": Unread()}, lr=0.1, every=1)  # type: ignore[dict-item]


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    with Progress(tmp_path, total=12, start=10, batch_size=1) as progress:
        progress.step(loss(1), lr=0.1, every=1)
    with Progress(tmp_path, total=12, start=11, batch_size=1) as progress:
        progress.step(loss(2), lr=0.1, every=1)
    assert [line["step"] for line in lines(tmp_path)] == [11, 12]


def test_images_per_second_are_those_since_the_last_log(tmp_path: Path, clock: Clock) -> None:
    with Progress(tmp_path, total=9, start=0, batch_size=8) as progress:
        for step in range(1, 7):
            clock.now += 0.5 if step <= 4 else 0.25
            progress.step(loss(1), lr=0.1, every=2)
    assert [line["images_per_second"] for line in lines(tmp_path)] == [16.0, 16.0, 32.0]


def test_evaluation_does_not_slow_the_rate(tmp_path: Path, clock: Clock) -> None:
    with Progress(tmp_path, total=4, start=0, batch_size=8) as progress:
        for step in range(1, 5):
            clock.now += 1
            progress.step(loss(1), lr=0.1, every=2)
            if step == 2:
                clock.now += 1000
                progress.note({"epoch": 1, "zero_shot_top1": 50.0})
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [2, 2, 4]
    assert logged[1] == {"step": 2, "epoch": 1, "zero_shot_top1": 50.0}
    assert [line["images_per_second"] for line in logged if "loss" in line] == [8.0, 8.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_has_no_line(tmp_path: Path, value: float) -> None:
    """It is of a step that was left out, which the loop names; JSON has no word for such numbers."""
    with Progress(tmp_path, total=9, start=0, batch_size=1) as progress:
        for number in (1.0, value, 3.0):
            progress.step(loss(number), lr=0.1, every=1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_line_that_a_killed_run_left_open_is_ended(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"ste')
    with Progress(tmp_path, total=9, start=1, batch_size=1) as progress:
        progress.step(loss(1), lr=0.1, every=1)
    assert (tmp_path / "log.jsonl").read_text().splitlines()[1] == '{"ste'
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl", until=9)] == [1, 2]


def test_what_was_not_yet_written_is_written_when_the_run_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with Progress(tmp_path, total=9, start=0, batch_size=1) as progress:
            progress.step(loss(5), lr=0.1, every=1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 5.0)]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Progress(None, total=2, start=0, batch_size=1) as progress:
        progress.step(loss(1), lr=0.1, every=1)
        progress.note({"epoch": 1})
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Progress(tmp_path, total=2, start=0, batch_size=1) as progress:
        progress.step(loss(0.5), lr=0.1, every=1)
        progress.step(loss(0.25), lr=0.1, every=1)
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_without_tensorboard_the_log_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Progress(tmp_path, total=1, start=0, batch_size=1) as progress:
        progress.step(loss(0.5), lr=0.1, every=1)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert lines(tmp_path)[0]["loss"] == 0.5


def test_without_a_terminal_lines_say_where_the_run_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), Progress(tmp_path, total=9, start=0, batch_size=4) as progress:
        for step in range(1, 4):
            progress.step(loss(step), lr=0.1, every=1)
        progress.note({"epoch": 1, "zero_shot_top1": 34.25})
    first, second = caplog.messages
    assert first == f"log: {tmp_path / 'log.jsonl'}"
    assert second.startswith("distill: 12 of 36 images (33%), ")
    assert second.endswith(" left, step 3 of 9, loss 3.000, lr 0.1, zero_shot_top1 34.25")
