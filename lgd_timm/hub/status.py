"""What is published, where it lies, and whether it is right. No request is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .. import settings
from .api import Snapshot
from .cache import RepoCache
from .verify import StrPath, wrong_files
from .weights import PUBLISHED_FILES, REQUIRED_FILES, Weight, manifest


@dataclass(frozen=True)
class Row:
    """One published folder. `places`: where it is, `local`, `cached` or `remote`, and the path or address."""

    name: str
    repo_id: str | None  # None: a folder in the local hub folder that the manifest does not have
    commit: str | None
    size: int  # bytes
    metrics: dict[str, Any]
    places: dict[str, str]
    wrong: dict[str, str]  # file -> how it differs from what was published
    verified: bool | None  # None: there is nothing to compare, or nothing to compare it with

    @property
    def state(self) -> str:
        return {True: "verified", False: "WRONG: " + "; ".join(self.wrong.values()), None: "not verified"}[
            self.verified
        ]


def listing(*, cache_dir: StrPath | None = None) -> list[Row]:
    """The manifest's weights, then other folders in the local hub folder, then what was pulled from others.

    Hashes of files without a stamp are computed, so the first call takes longer. `remote` says that the manifest knows a
    commit, not that the Hub was asked.
    """
    weights = manifest()
    rows = [_manifest_row(weight, cache_dir) for weight in weights.values()]
    home = settings.hub_folder()
    local = sorted(path for path in home.iterdir() if (path / "config.json").is_file()) if home.is_dir() else []
    rows += [_folder_row(path) for path in local if path.name not in weights]
    ours = {weight.repo_id for weight in weights.values()}
    return rows + [row for row in _pulled_rows(cache_dir) if row.repo_id not in ours]


def _manifest_row(weight: Weight, cache_dir: StrPath | None) -> Row:
    places: dict[str, str] = {}
    wrong: dict[str, str] = {}
    local = settings.hub_folder() / weight.name
    if local.is_dir():
        places["local"] = str(local)
        wrong |= wrong_files(local, weight.files)
    if weight.commit:
        cached = RepoCache(weight.repo_id, cache_dir).folder(weight.commit)
        if cached.is_dir():
            places["cached"] = str(cached)
            wrong |= wrong_files(cached, weight.files)
        places["remote"] = f"{constants.ENDPOINT}/{weight.repo_id}/tree/{weight.commit}"
    return Row(
        name=weight.name,
        repo_id=weight.repo_id,
        commit=weight.commit,
        size=sum(facts["size"] for facts in weight.files.values()),
        metrics=weight.metrics,
        places=places,
        wrong=wrong,
        verified=not wrong if places.keys() & {"local", "cached"} else None,
    )


def _folder_row(path: Path) -> Row:
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return Row(path.name, None, None, size, _metrics(path), {"local": str(path)}, {}, None)


def _pulled_rows(cache_dir: StrPath | None) -> Iterator[Row]:
    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    for listed in sorted(cache.glob("models--*--*/lgd_timm/*.json")):
        repo = RepoCache(listed.parent.parent.name.removeprefix("models--").replace("--", "/", 1), cache_dir)
        there = repo.remembered(listed.stem)
        if there and repo.folder(there.commit).is_dir() and all(name in there.files for name in REQUIRED_FILES):
            yield _pulled_row(repo, there)


def _pulled_row(repo: RepoCache, there: Snapshot) -> Row:
    folder = repo.folder(there.commit)
    files = {name: there.files[name] for name in PUBLISHED_FILES if name in there.files}
    wrong = wrong_files(folder, files)
    return Row(
        name=f"{there.repo_id}@{there.commit}",
        repo_id=there.repo_id,
        commit=there.commit,
        size=sum(facts["size"] for facts in files.values()),
        metrics=_metrics(folder),
        places={"cached": str(folder), "remote": f"{constants.ENDPOINT}/{there.repo_id}/tree/{there.commit}"},
        wrong=wrong,
        verified=not wrong,
    )


def _metrics(folder: Path) -> dict[str, Any]:
    """Read the `summary` of a folder's metrics.json; {} where there is none: one broken folder must not end the list.

    Not by `publish.metrics.read_metrics`: `hub` may not import `publish`.
    """
    path = folder / "metrics.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")).get("summary", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return summary if isinstance(summary, dict) else {}
