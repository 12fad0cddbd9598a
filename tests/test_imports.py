"""`import lgd_timm` stays light and registers its students all the same, and a test that these tests would notice."""

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


@pytest.mark.parametrize("words", [["--help"], ["distill", "--help"], ["shards", "write", "--help"]])
def test_help_takes_no_time(words: list[str]) -> None:
    script = f"import contextlib, lgd_timm.cli\nwith contextlib.suppress(SystemExit): lgd_timm.cli.main({words})"
    assert imported_by(script) & {*HEAVY, "timm", "torch", "numpy", "PIL"} == set()


def test_importing_the_students_stays_light() -> None:
    names = imported_by("import lgd_timm.students")
    assert "timm" in names
    assert names & HEAVY == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import timm, lgd_timm",
        "import lgd_timm, timm",
        "import lgd_timm; from timm.models import is_model",
        "import lgd_timm; from importlib.util import find_spec as f; assert f('timm').loader.get_source('timm')",
        "import importlib, timm; importlib.import_module('lgd_timm')",  # as timm's --device-modules
        "import lgd_timm.cli, timm",
        "from lgd_timm import students; import timm",
    ],
)
def test_students_are_registered_in_whatever_order(statement: str) -> None:
    script = (
        f"{statement}\nimport sys, timm, inspect\nassert timm.create_model('lgd_mobilenetv2', num_classes=3)"
        "\nassert timm.is_model('lgd_resnet18') and 'lgd_timm' in sys.modules"
        "\nassert inspect.getsource(timm) and type(timm.__loader__).__name__ == 'SourceFileLoader'"
        "\nassert timm.__spec__.loader is timm.__loader__"
    )
    assert "timm" in imported_by(script)


@pytest.mark.parametrize("name", ["students", "load", "hub"])
def test_public_names_come_when_they_are_used(name: str) -> None:
    script = f"import sys, lgd_timm; assert 'timm' not in sys.modules; assert lgd_timm.{name}"
    assert "lgd_timm" in imported_by(script)


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
