"""onnxruntime-web's tarball, for the tests of pages that run in a browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lgd_timm.export.web import TARBALL, VERSION

KEPT = Path.home() / ".cache" / "lgd_timm_tests" / TARBALL  # the suite's own cache is new in each test


def runtime_tarball(scratch: Path) -> Path:
    """Fetch the tarball with npm, once a machine."""
    if KEPT.is_file():
        return KEPT
    if shutil.which("npm") is None:
        pytest.skip("no npm here, so onnxruntime-web can't be had")
    subprocess.run(
        ["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}", "--pack-destination", str(scratch)],
        check=True,
        timeout=240,
        capture_output=True,
    )
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scratch / TARBALL, KEPT)
    return KEPT
