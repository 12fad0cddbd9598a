"""Efficiency on paper: the formula, worked by hand, and its limits."""

from __future__ import annotations

import pytest

from benchmarks.speed.scaling import efficiency

LINE = {"step_ms": 100.0, "machine": 8, "inside": 100.0, "bandwidth": 10.0, "hop": 0.0}


def test_by_hand() -> None:
    """50 MB over 4 ranks at 100 GB/s: 2 * 3/4 * 0.5 ms; over 16 ranks at 10 GB/s: 2 * 15/16 * 5 ms."""
    assert efficiency(4, 50_000_000, **LINE) == pytest.approx(100 / 100.75)
    assert efficiency(16, 50_000_000, **LINE) == pytest.approx(100 / 109.375)


def test_one_rank_pays_nothing_and_more_ranks_pay_more() -> None:
    slow = {**LINE, "hop": 50.0}
    efficiencies = [efficiency(count, 10_000_000, **slow) for count in (1, 2, 8, 16, 64, 512)]
    assert efficiencies[0] == 1
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiency(64, 10_000_000, **slow) < efficiency(64, 10_000_000, **LINE)
