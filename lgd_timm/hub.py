"""Published weights: which exist, where they lie, how they come and go. Every file is checked by its hash.

    manifest()      what this package knows to be published: repository, commit, size and sha256 of every file
    locate(name)    the folder of such a weight: in the local hub folder, else from the Hub
    pull(name)      a published folder, ours or anybody's (`org/name[@revision]`), whole and at one commit
    push(folder)    a published folder to the Hub: one commit, read back, then tagged

The Hub's own client compares sizes only: a byte that flips on the way stays, silently. Here nothing is used
before its hash was compared, and only safetensors are read. Every failure is a WeightsError.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # httpx's in huggingface_hub 1, httpx2's in 2: this name serves both
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from . import settings
from .errors import WeightsError
from .folder import PUBLISHED_FILES, REQUIRED_FILES, FileFacts, StrPath, check_folder, verify, wrong_files

MANIFEST = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True)
class Weight:
    """One row of the manifest. `commit` is None as long as the weight is not on the Hub."""

    name: str
    repo_id: str
    commit: str | None
    files: dict[str, FileFacts]
    metrics: dict[str, Any]
    cfg: dict[str, Any]  # facts for timm's pretrained_cfg: num_classes, input_size, mean, std, interpolation, crop_pct


@dataclass(frozen=True)
class PushResult:
    """What `push` did: `commit` is None after a dry run; `sent` is empty when the Hub already had every file."""

    commit: str | None
    url: str
    files: dict[str, FileFacts]  # every published file, as the manifest wants it
    sent: tuple[str, ...]  # the files that went into the commit (dry run: all that could)


@dataclass(frozen=True)
class _Snapshot:
    """The files of a repository at one commit."""

    repo_id: str
    commit: str
    files: Mapping[str, FileFacts]
    private: bool = False


# --------------------------------------------------------------------------------------------------------- manifest


def manifest() -> dict[str, Weight]:
    """The weights that this package knows to be published, by name. WeightsError when the file is damaged."""
    try:
        rows = json.loads(MANIFEST.read_text(encoding="utf-8"))
        return {name: _weight(name, **row) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{MANIFEST} can't be read as a manifest ({reason}). Reinstall lgd_timm.") from error


def _weight(name: str, *, repo_id: str, commit: str | None, files: Any, metrics: Any, cfg: Any) -> Weight:
    if commit is not None and not re.fullmatch("[0-9a-f]{40}", commit):
        raise ValueError(f"{name}: commit {commit!r} is neither null nor 40 hexadecimal digits")
    facts = {file: FileFacts(size=fact["size"], sha256=fact["sha256"]) for file, fact in files.items()}
    return Weight(name, repo_id, commit, facts, metrics, cfg)


# -------------------------------------------------------------------------------------------------- locate and pull


def locate(name: str, *, cache_dir: StrPath | None = None) -> Path:
    """Verified folder of a manifest weight: `settings.hub_folder()/name` when it exists, else the Hub's cache.

    WeightsError for unknown names, for a folder that is not what was published, and as `pull` does.
    """
    weight = _known(name)
    folder = settings.hub_folder() / name
    if folder.is_dir():
        verify(folder, weight.files)
        return folder
    return pull(name, cache_dir=cache_dir)


def pull(
    name_or_repo: str,
    *,
    revision: str | None = None,
    cache_dir: StrPath | None = None,
    local_dir: StrPath | None = None,
    token: str | None = None,
) -> Path:
    """Download a published folder, all files at one commit and each verified; return the folder.

    `name_or_repo` is a name of the manifest (then at its pinned commit) or `org/name[@revision]`; `revision` is a
    branch, tag or commit. The folder lies in the Hub's cache (`cache_dir`), or is `local_dir`, which appears whole
    or not at all and is never overwritten. WeightsError says what was wrong and what to do.
    """
    target, _, at = name_or_repo.partition("@")
    if at and revision and at != revision:
        raise WeightsError(f"{name_or_repo!r} names another revision than {revision!r}. Give one of them.")
    revision = revision or at or None
    weight = None if "/" in target else _known(target)
    repo_id = weight.repo_id if weight else target
    pinned = None
    if weight and revision in (None, weight.commit):
        revision = _pinned_commit(weight)
        pinned = _Snapshot(repo_id, revision, weight.files)
        if local_dir is None and (folder := _cached(pinned, cache_dir)):
            return folder
    # Asked even when pinned: this call fails at once and says why, where the client's download retries for 24 s.
    snapshot = _published(repo_id, revision, token)
    fetch = partial(HfApi(token=token).hf_hub_download, repo_id, revision=snapshot.commit, cache_dir=cache_dir)
    return _fetch_all(pinned or snapshot, fetch, None if local_dir is None else Path(local_dir))


def _known(name: str) -> Weight:
    weights = manifest()
    if name in weights:
        return weights[name]
    close = difflib.get_close_matches(name, weights)
    raise WeightsError(
        f"{name!r} is not a weight that this version of lgd_timm knows. "
        f"{'Did you mean ' + ' or '.join(close) + '? ' if close else ''}"
        f"It knows: {', '.join(sorted(weights)) or 'none yet'}. Folders of others are named org/name."
    )


def _pinned_commit(weight: Weight) -> str:
    if weight.commit:
        return weight.commit
    folder = settings.hub_folder() / weight.name
    raise WeightsError(
        f"{weight.name} is not on the Hub yet; locally {folder} {'exists' if folder.is_dir() else 'does not exist'}. "
        "Set LGD_TIMM_HUB to a folder that holds it, such as the hub/ of a checkout of lgd_timm, "
        "or make it with its recipe (`lgd-timm distill`)."
    )


def _published(repo_id: str, revision: str | None, token: str | None) -> _Snapshot:
    """The published folder within a repository: its known files, or a WeightsError why it is none."""
    there = _remote(repo_id, revision, token)
    missing = ", ".join(name for name in REQUIRED_FILES if name not in there.files)
    if missing:
        safe = any(name.endswith(".safetensors") for name in there.files)
        reason = f"without {missing}" if safe else "no safetensors, and pickles can run code: they are never downloaded"
        raise WeightsError(
            f"{repo_id} at {there.commit} is no published folder: {reason}. It holds: {', '.join(there.files)}. "
            f"Ask its owner to publish {', '.join(REQUIRED_FILES)} (`lgd-timm push` does)."
        )
    files = {name: there.files[name] for name in PUBLISHED_FILES if name in there.files}
    return _Snapshot(repo_id, there.commit, files)


def _remote(repo_id: str, revision: str | None, token: str | None) -> _Snapshot:
    """Resolve a revision to its commit, with the size and hash of every file there."""
    with _explained(repo_id, revision):
        info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
    files = {}
    for file in info.siblings or []:
        if file.lfs:
            files[file.rfilename] = FileFacts(size=file.lfs.size, sha256=file.lfs.sha256)
        elif file.size is not None and file.blob_id:
            files[file.rfilename] = FileFacts(size=file.size, git_sha1=file.blob_id)
    if info.sha is None or len(files) != len(info.siblings or []):
        raise WeightsError(f"{constants.ENDPOINT} tells no commit or no hashes of {repo_id}. Is HF_ENDPOINT a Hub?")
    return _Snapshot(repo_id, info.sha, files, private=bool(info.private))


def _cached(snapshot: _Snapshot, cache_dir: StrPath | None) -> Path | None:
    """The snapshot's folder in the Hub's cache, if every file is there and right. No request is made."""
    lookup = partial(try_to_load_from_cache, snapshot.repo_id, revision=snapshot.commit)
    path = lookup("config.json", cache_dir=None if cache_dir is None else Path(cache_dir))
    right = isinstance(path, str) and not wrong_files(Path(path).parent, snapshot.files)
    return Path(path).parent if isinstance(path, str) and right else None


def _fetch_all(snapshot: _Snapshot, fetch: Callable[..., str], folder: Path | None) -> Path:
    """Every file of the snapshot, verified, into the cache, or into `folder` that is renamed when whole."""
    if folder is None:
        return {_fetch(name, snapshot, fetch).parent for name in snapshot.files}.pop()
    if folder.is_dir() and any(folder.iterdir()):
        verify(folder, snapshot.files)  # what is there is never overwritten: it is right, or it is refused
        return folder
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file, and published weights are a folder. Give another local_dir.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as staging:
        whole = Path(staging) / folder.name
        for name in snapshot.files:
            _fetch(name, snapshot, partial(fetch, local_dir=whole))
        shutil.rmtree(whole / ".cache")  # the client's notes about its own downloads
        whole.replace(folder)
    return folder


def _fetch(name: str, snapshot: _Snapshot, fetch: Callable[..., str]) -> Path:
    """One verified file. A wrong one, cached or fresh, is removed and fetched once more, then refused."""
    wrong: dict[str, str] = {}
    for force in (False, True):
        with _explained(snapshot.repo_id, snapshot.commit):
            path = Path(fetch(name, force_download=force))
        wrong = wrong_files(path.parent, {name: snapshot.files[name]})
        if not wrong:
            return path
        if path.is_symlink():  # into the cache's blobs: nobody else (timm, transformers) may load these bytes
            (path.parent / path.readlink()).unlink(missing_ok=True)
        path.unlink()
    raise WeightsError(
        f"{snapshot.repo_id} at {snapshot.commit}: {wrong[name]}, also when fetched again; it was deleted. "
        f"Something between {constants.ENDPOINT} and here alters it. Try another network. {_OTHER_WAY}"
    )


# ------------------------------------------------------------------------------------------------------------- push


def push(
    folder: StrPath,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Publish a folder as `org/name`: check it, send it in one commit, read it back, tag it.

    The repository is made when it does not exist. Files that it already has are not sent again, published files
    that the folder no longer has are deleted, other files are left alone. A tag is never moved. `dry_run` checks
    the folder and makes no request. WeightsError says what was wrong and what to do.
    """
    folder, url, api = Path(folder), f"{constants.ENDPOINT}/{repo_id}", HfApi(token=token)
    files = check_folder(folder)
    if dry_run:
        return PushResult(None, url, files, sent=tuple(files))
    with _explained(repo_id, None):
        api.create_repo(repo_id, private=private, exist_ok=True)
        tagged = next((ref.target_commit for ref in api.list_repo_refs(repo_id).tags if ref.name == tag), None)
    before = _remote(repo_id, None, token)
    if private and not before.private:
        raise WeightsError(f"{repo_id} exists and is public. Nothing was sent. Make it private at {url}/settings.")
    commit, sent = before.commit, _changed(folder, files, before)
    stale = [name for name in PUBLISHED_FILES if name in before.files and name not in files]
    if tagged and (sent or stale or tagged != commit):
        raise WeightsError(f"{repo_id}: the tag {tag!r} is at {tagged}, other weights. Give another tag.")
    if sent or stale:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in sent),
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
        ]
        title = message or f"Publish {folder.name}"
        with _explained(repo_id, None):
            commit = api.create_commit(repo_id, operations, commit_message=title, parent_commit=commit).oid
    if wrong := _changed(folder, files, _remote(repo_id, commit, token)):
        raise WeightsError(
            f"{repo_id} at {commit}, read back, has another {', '.join(wrong)} than {folder}. It was not tagged. "
            "Did the folder change meanwhile? Push again."
        )
    if tag and not tagged:
        with _explained(repo_id, commit):
            api.create_tag(repo_id, tag=tag, revision=commit)
    return PushResult(commit, f"{url}/tree/{commit}", files, sent)


def _changed(folder: Path, files: Mapping[str, FileFacts], there: _Snapshot) -> tuple[str, ...]:
    """The files of the folder that the Hub, by its own hashes, does not have."""
    return tuple(n for n in files if n not in there.files or wrong_files(folder, {n: there.files[n]}))


# ----------------------------------------------------------------------------------------------------------- errors

_OTHER_WAY = "Or set LGD_TIMM_HUB to a folder that holds the weights, such as the hub/ of a checkout of lgd_timm."
_LOG_IN = "pass `token`, run `hf auth login` or set HF_TOKEN."

# By exception or by the status of the Hub's answer, first match wins. {page} is the repository's page.
_REASONS: tuple[tuple[type[Exception] | int, str], ...] = (
    (GatedRepoError, "it is gated. Ask for access at {page}, then " + _LOG_IN),
    (RepositoryNotFoundError, "no such repository, or not for this token. Check the name; if private, " + _LOG_IN),
    (RevisionNotFoundError, "it has no such revision. Its branches and tags are listed at {page}."),
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set and it is not in the cache. Unset it. " + _OTHER_WAY),
    (401, "the Hub refuses the token. With a valid one " + _LOG_IN),
    (403, "this token may not do that. With one that may write to {page} " + _LOG_IN),
    (412, "somebody else pushed meanwhile; nothing was changed. Look at {page}, then push again."),
)


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub's client raises into a WeightsError with value, reason and what to do."""
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # The client wraps the true cause when a cache, a forced download or an upload is involved.
        wraps = isinstance(error.__cause__, (HTTPError, OfflineModeIsEnabled)) and not isinstance(error, HTTPError)
        reason = _reason(error.__cause__ if wraps and error.__cause__ else error)
        subject = f"{repo_id} at {revision}" if revision else repo_id
        raise WeightsError(f"{subject}: {reason.replace('{page}', f'{constants.ENDPOINT}/{repo_id}')}") from error


def _reason(error: BaseException) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    for kind, reason in _REASONS:
        if status == kind or (isinstance(kind, type) and isinstance(error, kind)):
            return reason
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, HTTPError) and not status:
        return f"no answer from {constants.ENDPOINT} ({detail}). Check the network, a proxy, HF_ENDPOINT. {_OTHER_WAY}"
    return f"{detail}. If that is no fault of yours, try again later. {_OTHER_WAY}"
