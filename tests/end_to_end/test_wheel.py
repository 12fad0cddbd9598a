"""What `pip install lgd_timm` brings: from an empty directory, with neither a checkout nor a network.

The wheel goes into a fresh environment that borrows the libraries of this one, as torch alone takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from lgd_timm import settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, timeout=240)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A Python that has the wheel, and this one's libraries but for lgd_timm."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin" / "python"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def run(python: Path, folder: Path, words: Sequence[str]) -> str:
    """What a call says, in a folder, without a network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LGD_TIMM_", "PYTHONPATH", "HF_"))}
    environ = {**kept, "HF_HUB_OFFLINE": "1", "LGD_TIMM_CACHE": str(folder.parent / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = settings.hub_folder().parent / "lgd_timm"
    ours = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {name for name in ours if "__pycache__" not in name} <= inside
    assert "lgd_timm/recipes/quickstart.yaml" in inside
    assert wheel.stat().st_size < 30_000_000


def test_the_readmes_first_lines_work(python: Path, empty: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text[text.index("```python\n") + len("```python\n") :]
    code = code[: code.index("```")]
    script = f"{code}\nimport lgd_timm\nprint(lgd_timm.__file__)\nprint(classifier.pretrained_cfg['label_names'])"
    said = run(python, empty, ["-c", script])
    assert "environment" in said
    assert "airplane" in said


def test_recipes_and_a_student_are_there(python: Path, empty: Path) -> None:
    cli = ["-m", "lgd_timm.cli"]
    assert "quickstart" in run(python, empty, [*cli, "recipes"])
    printed = run(python, empty, [*cli, "distill", "builtin:quickstart", "--print-config"])
    assert "cifar10_small" in printed
    assert "written: mine.yaml" in run(python, empty, [*cli, "init", "mine.yaml"])
    listed = run(python, empty, [*cli, "list"])
    assert "lgd_mobilenetv2.conse_cifar10" in listed


def test_a_picture_is_named(python: Path, empty: Path) -> None:
    make = "from PIL import Image; Image.new('RGB', (64, 64), 'blue').save('blue.png')"
    run(python, empty, ["-c", make])
    said = run(python, empty, ["-m", "lgd_timm.cli", "predict", "lgd_mobilenetv2", "blue.png", "--top-k", "3"])
    assert said.startswith("blue.png: ")
    assert said.count(" %") == 3


@pytest.mark.slow
def test_the_quickstarts_recipe_trains(python: Path, empty: Path) -> None:
    run(python, empty, ["-m", "lgd_timm.cli", "distill", "quickstart", "--schedule.epochs", "1", "--output", "out"])
    assert (empty / "out" / "published" / "model.safetensors").is_file()
