"""Write a published weight into the package's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..hub import weights
from ..hub.timm_models import check_config
from ..students.entrypoints import STUDENTS
from ..utils.files import write_json
from ..utils.typed_json import read_json
from .check import check_folder, is_vision_language
from .metrics import read_metrics

FASTVLM = "fastvlm_"  # how names of vision-language models of transformers' class begin


def check_name(name: str) -> None:
    """Check a weight's name, `<entry>.<tag>`, or `fastvlm_<backbone>.<tag>`, which is no entry of timm.

    Raises:
        WeightsError: it can't be one.
    """
    if name.startswith(FASTVLM) and "." in name:
        return
    if name.partition(".")[0] not in STUDENTS or "." not in name:
        raise WeightsError(
            f"{name!r} is no weight's name. Name the folder <entry>.<tag>; entries are {', '.join(STUDENTS)}."
        )


def register(folder: str | Path, *, repo_id: str, commit: str | None = None) -> None:
    """Write a published folder's row into the package's manifest, so that its name becomes a pretrained weight.

    Args:
        folder: the published folder; its name is the weight's, as `check_name` has it.
        repo_id: the repository on the Hub, `org/name`.
        commit: the commit there; None as long as it is not on the Hub.

    Raises:
        WeightsError: the folder can't be published, or is not named after one of our entries.
    """
    folder = Path(folder)
    check_name(folder.name)
    files = check_folder(folder)
    rows = read_json(weights.MANIFEST, dict)
    rows[folder.name] = manifest_row(
        folder, repo_id=repo_id, commit=commit, files=files
    )  # an old row keeps its position
    write_json(weights.MANIFEST, rows)


def manifest_row(folder: Path, *, repo_id: str, commit: str | None, files: Mapping[str, Any]) -> dict[str, Any]:
    """Make the manifest's row of a published folder; one of a vision-language model says nothing for timm."""
    row = {
        "repo_id": repo_id,
        "commit": commit,
        "files": dict(files),
        "metrics": read_metrics(folder).get("summary", {}),
    }
    if is_vision_language(folder):
        return {**row, "cfg": {}}
    config = check_config(folder, published=True)
    keep = ("num_classes", "input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "origin_url")
    cfg: dict[str, Any] = {key: config["pretrained_cfg"][key] for key in keep if key in config["pretrained_cfg"]}
    cfg["num_classes"] = config["num_classes"]
    if "label_names" in config:
        cfg["label_names"] = config["label_names"]
    return {**row, "cfg": cfg}
