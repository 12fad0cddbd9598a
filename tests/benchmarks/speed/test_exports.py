"""The table of formats: a row each, scored on every picture, timed at every size."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.speed import exports
from lgd_timm.export.loading import open_export_model


@pytest.mark.slow
def test_every_format_is_scored_and_timed(
    published_folder: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "LEAST", 1e-4)
    options = argparse.Namespace(data=str(shard_folder), split="val", sizes=[32, 40], rounds=2, compile=False)
    head, _, *rows = (
        line.strip("| ").split(" | ")
        for line in exports.table(open_export_model(str(published_folder)), options).splitlines()
    )
    assert head == ["format", "size", "top-1, val", "ms at 32 px", "ms at 40 px"]
    assert [row[0] for row in rows] == ["timm, PyTorch", "ONNX", "ONNX int8", "ncnn", "ncnn, half"]
    scores = {row[0]: row[2] for row in rows}
    assert len(set(scores.values())) == 1, "a model this small on pictures this plain loses nothing"
    assert scores["ONNX"].endswith("% of 12")
    sizes = {row[0]: float(row[1].removesuffix(" MB")) for row in rows}
    assert sizes["ONNX int8"] < sizes["ONNX"] / 2
    assert all(float(cell.partition(" ")[0]) > 0 for row in rows for cell in row[3:])


def test_latencies_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "LEAST", 1e-4)
    seen: list[str] = []
    rows = [exports.Format(name, lambda picture, name=name: seen.append(name)) for name in "ab"]
    times = exports.latencies(rows, None, rounds=3)  # type: ignore[arg-type]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    turns = [name for name, before in zip(seen, ["", *seen], strict=False) if name != before]
    assert "".join(turns).endswith("ababab")
