"""List what is published, where it is on this disk, and whether it is right. No request is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import constants

from .. import settings
from ..utils.typed_json import JSONError, read_json
from .api import Snapshot
from .cache import RepoCache
from .verify import StrPath, wrong_files
from .weights import PUBLISHED_FILES, REQUIRED_FILES, Weight, manifest


@dataclass(frozen=True)
class Row:
    """One published folder.

    Attributes:
        name: key of the manifest, folder name, or `org/name@commit`.
        repo_id: `org/name`; None for a folder in the local hub folder that the manifest does not have.
        commit: 40 hexadecimal digits; None while it is not on the Hub.
        size: bytes of all its files.
        metrics: the summary of its metrics.json, such as `zero_shot_top1` in percent.
        places: `local`, `cached` or `remote` -> path or address.
        wrong: file -> how it differs from what was published, in words.
        verified: whether its files are what was published; None if no file is here, or no hash is known.
    """

    name: str
    repo_id: str | None
    commit: str | None
    size: int
    metrics: dict[str, Any]
    places: dict[str, str]
    wrong: dict[str, str]
    verified: bool | None

    @property
    def state(self) -> str:
        """`verified`, `not verified`, or `WRONG: ` and how files differ."""
        return {True: "verified", False: "WRONG: " + "; ".join(self.wrong.values()), None: "not verified"}[
            self.verified
        ]


def listing(*, cache_dir: StrPath | None = None) -> list[Row]:
    """List the manifest's weights, then other folders in the local hub folder, then what was pulled from others.

    The first call takes longer, as it hashes every file that has no stamp yet. The place `remote` means that a commit
    is known, not that the Hub was asked.

    Args:
        cache_dir: cache of all repositories; None: the Hub client's own.

    Raises:
        WeightsError: if the manifest is damaged.
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
    for path in sorted(cache.glob("models--*--*/lgd_timm/*.json")):
        repo = RepoCache(path.parent.parent.name.removeprefix("models--").replace("--", "/", 1), cache_dir)
        pulled = repo.read_file_list(path.stem)
        if pulled and repo.folder(pulled.commit).is_dir() and all(name in pulled.files for name in REQUIRED_FILES):
            yield _pulled_row(repo, pulled)


def _pulled_row(repo: RepoCache, pulled: Snapshot) -> Row:
    folder = repo.folder(pulled.commit)
    files = {name: pulled.files[name] for name in PUBLISHED_FILES if name in pulled.files}
    wrong = wrong_files(folder, files)
    return Row(
        name=f"{pulled.repo_id}@{pulled.commit}",
        repo_id=pulled.repo_id,
        commit=pulled.commit,
        size=sum(facts["size"] for facts in files.values()),
        metrics=_metrics(folder),
        places={"cached": str(folder), "remote": f"{constants.ENDPOINT}/{pulled.repo_id}/tree/{pulled.commit}"},
        wrong=wrong,
        verified=not wrong,
    )


class _Metrics(TypedDict, total=False):
    summary: dict[str, float | None]


def _metrics(folder: Path) -> dict[str, Any]:
    """Return the `summary` of a folder's metrics.json, {} if none can be read: one broken folder must not end the list.

    `publish.metrics.read_metrics` is not used, as `hub` may not import `publish`.
    """
    path = folder / "metrics.json"
    try:
        summary: dict[str, Any] = read_json(path, _Metrics).get("summary", {})
    except (OSError, JSONError):
        return {}
    return summary
