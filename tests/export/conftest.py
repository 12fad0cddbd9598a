"""What is exported once for all tests of the runtimes: torch's exporter takes seconds for each model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm.export.loading import open_export_model
from lgd_timm.export.targets import export


@pytest.fixture(scope="session")
def mobilenet_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published MobileNetV2 as `--to onnx`. Read only."""
    path = tmp_path_factory.mktemp("onnx") / "mobilenet.onnx"
    export(open_export_model("lgd_mobilenetv2"), path, to="onnx")
    return path
