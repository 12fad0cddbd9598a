"""metrics.json is read and written in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm.errors import WeightsError
from lgd_timm.publish.metrics import EVALUATIONS, LINEAR_PROBES, read_metrics, write_metrics


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}
    write_metrics(tmp_path, {"zero_shot": {"top1": 61.25}, "name": "größe"})
    assert read_metrics(tmp_path) == {"zero_shot": {"top1": 61.25}, "name": "größe"}


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "3"])
def test_what_is_no_object_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(WeightsError, match=r"metrics\.json (can't be read|holds (list|int), not an object)"):
        read_metrics(tmp_path)


def test_evaluations_have_keys_of_their_own_and_the_labels_that_their_commands_ask_for() -> None:
    assert len({evaluation.key for evaluation in EVALUATIONS}) == len(EVALUATIONS)
    for probe in LINEAR_PROBES:
        *_, last = probe.command.split()
        assert probe.labels == (1 if last == "linear-probe" else float(last))
