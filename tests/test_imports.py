"""`import lgd_timm` stays light: what it may not import, and a test that this test would notice."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import lgd_timm

HEAVY = {"open_clip", "webdataset", "transformers", "sentence_transformers", "matplotlib", "tensorboard"}


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh process holds after a statement."""
    script = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_and_its_command_line_stays_light() -> None:
    names = imported_by("import lgd_timm, lgd_timm.cli")
    assert "timm" in names
    assert names & HEAVY == set()


def test_the_hubs_client_comes_when_it_is_used() -> None:
    module = "'lgd_timm.hub.snapshot_download' in sys.modules"
    script = f"import sys, lgd_timm; assert not {module}; assert lgd_timm.hub.pull; assert {module}"
    assert "lgd_timm" in imported_by(script)
    with pytest.raises(AttributeError, match="'lgd_timm' has no attribute 'nothing'"):
        _ = lgd_timm.nothing


def test_the_test_above_would_notice() -> None:
    assert "webdataset" in imported_by("import lgd_timm, lgd_timm.data.writer")


def test_public_names_exist_and_are_sorted() -> None:
    assert sorted(lgd_timm.__all__) == lgd_timm.__all__
    assert all(hasattr(lgd_timm, name) for name in lgd_timm.__all__)
    assert issubclass(lgd_timm.LGDError, ValueError)
    assert issubclass(lgd_timm.MissingExtra, ImportError)
