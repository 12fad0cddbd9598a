"""Runs to report on, and the report of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from lgd_timm.evaluate.report import report
from tests.helpers.reported import Make, copy_run, nasty_run, own_cache


@pytest.fixture
def make(run_folder: Path, tmp_path: Path) -> Make:
    """make("name", seed=1, top1=50.0, objective={"preset": "reference"}, metrics={...}): a run folder that says so."""
    return partial(copy_run, run_folder, tmp_path / "runs")


@pytest.fixture
def nasty(run_folder: Path, tmp_path: Path) -> Path:
    """A run whose names are markup, quotes and mathematics; of its visual bank the last name was never seen."""
    return nasty_run(run_folder, tmp_path / "runs")


@pytest.fixture(scope="session")
def run_page(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that run. Read only."""
    with own_cache(tmp_path_factory):
        return report([run_folder], out=tmp_path_factory.mktemp("report") / "out")
