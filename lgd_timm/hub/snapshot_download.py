"""Download files of a repository at one commit, or find them on the disk, and verify each of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from .. import settings
from ..errors import WeightsError
from ..utils.progress import progress_bar
from .api import OTHER_WAY, Snapshot, Unreachable, as_weights_error, resolve
from .cache import RepoCache
from .file_download import download
from .verify import FileFacts, StrPath, hash_of, is_path_below, stamp_verified, verify, wrong_files
from .weights import OPEN_CLIP_FILES, PUBLISHED_FILES, REQUIRED_FILES, get_weight, local_folder, pinned_commit

log = logging.getLogger(__name__)


def locate(name: str, *, cache_dir: StrPath | None = None) -> Path:
    """Return the verified folder of a weight of the manifest: `settings.hub_folder()/name`, else the Hub's cache.

    The files of open_clip, which can be large and which no timm model needs, are neither downloaded nor verified.

    Args:
        name: a key of `manifest()`.
        cache_dir: cache of all repositories; None: the Hub client's own.

    Raises:
        WeightsError: for an unknown name, for a folder that differs from what was published, and as `pull`.
    """
    timm_files = [file for file in PUBLISHED_FILES if file not in OPEN_CLIP_FILES]
    return local_folder(name) or snapshot(name, require=REQUIRED_FILES, allow=timm_files, cache_dir=cache_dir)


def pull(
    name_or_repo: str,
    *,
    revision: str | None = None,
    cache_dir: StrPath | None = None,
    local_dir: StrPath | None = None,
    token: str | None = None,
) -> Path:
    """Download a published folder, all files at one commit and each of them verified.

    Files that are in the cache and right are not downloaded again: a commit needs no request at all, a branch or tag
    one. If the Hub does not answer, the commit of the last request is used, and a warning says so.

    Args:
        name_or_repo: a key of `manifest()`, then at its pinned commit, or `org/name[@revision]`.
        revision: branch, tag or commit.
        cache_dir: cache of all repositories; None: the Hub client's own.
        local_dir: a new folder for the files; it appears complete or not at all and is never overwritten.
        token: access token; None: the one that `hf auth login` stored, or HF_TOKEN.

    Returns:
        The folder: `local_dir`, or that of the commit in the cache.

    Raises:
        WeightsError: says what was wrong and what to do.
    """
    cache, found = _fetch(
        name_or_repo, require=REQUIRED_FILES, allow=PUBLISHED_FILES, revision=revision, cache_dir=cache_dir, token=token
    )
    folder = cache.folder(found.commit)
    return folder if local_dir is None else _copy_out(cache, found, Path(local_dir).absolute())


def snapshot(
    name: str,
    *,
    require: Sequence[str],
    allow: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: StrPath | None = None,
    token: str | None = None,
) -> Path:
    """Download the files of any repository that match a pattern, all at one commit and each of them verified.

    Args:
        name: `org/name[@revision]`, or a key of `manifest()`.
        require: patterns of `fnmatch` (`*` matches slashes too), each of which must match a file.
        allow: patterns of further files.
        revision: branch, tag or commit.
        cache_dir: cache of all repositories; None: the Hub client's own.
        token: access token; None: the one that `hf auth login` stored, or HF_TOKEN.

    Returns:
        The folder of the commit in the cache.

    Raises:
        WeightsError: as `pull`, and where no file matches a required pattern.
    """
    cache, found = _fetch(name, require=require, allow=allow, revision=revision, cache_dir=cache_dir, token=token)
    return cache.folder(found.commit)


def _fetch(
    name: str,
    *,
    require: Sequence[str],
    allow: Sequence[str],
    revision: str | None,
    cache_dir: StrPath | None,
    token: str | None,
) -> tuple[RepoCache, Snapshot]:
    """Bring the wanted files of a repository at one commit into its cache, and verify them."""
    target, revision = _parse(name, revision)
    command = f"lgd-timm pull {target}{f'@{revision}' if revision else ''}"
    weight = None if "/" in target else get_weight(target)
    if weight and revision in (None, weight.commit):
        cache = RepoCache(weight.repo_id, cache_dir)
        found = _select(Snapshot(weight.repo_id, pinned_commit(weight), weight.files), require, allow)
        _complete(cache, found, token, command)
        return cache, found
    repo_id = weight.repo_id if weight else target
    cache = RepoCache(repo_id, cache_dir)
    found = _select(_list_files(cache, revision, token, command), require, allow)
    _complete(cache, found, token, command)
    cache.set_commit(revision or "main", found.commit)
    return cache, found


def _parse(name: str, revision: str | None) -> tuple[str, str | None]:
    """Split `[hub://]name[@revision]` into name and revision."""
    target, _, at = name.removeprefix("hub://").partition("@")
    if at and revision and at != revision:
        raise WeightsError(f"{name!r} names another revision than {revision!r}. Give one of them.")
    revision = revision or at or None
    if revision and not re.fullmatch(r"(?!.*\.\.)[\w][\w./+-]*", revision):
        raise WeightsError(f"{revision!r} is no revision: a branch, a tag or a commit.")
    return target, revision


def _list_files(cache: RepoCache, revision: str | None, token: str | None, command: str) -> Snapshot:
    """Return all files at a revision with their hashes, as the Hub lists them, or did at the last request."""
    commit = cache.commit_of(revision or "main")
    last = cache.read_file_list(commit) if commit else None
    if last and (settings.offline() or revision == commit):
        return last
    if settings.offline():
        raise WeightsError(
            f"{cache.repo_id}{f'@{revision}' if revision else ''}: HF_HUB_OFFLINE is set, and {cache.root} holds no "
            f"folder that lgd_timm pulled whole. Where there is a network: `{command}`. {OTHER_WAY}"
        )
    try:
        listed = resolve(cache.repo_id, revision, token)
    except Unreachable as error:
        if last is None:
            raise
        log.warning("%s Using commit %s, which it was when it was last pulled.", error, last.commit)
        return last
    cache.write_file_list(listed)
    return listed


def _select(listed: Snapshot, require: Sequence[str], allow: Sequence[str]) -> Snapshot:
    """Select the wanted files. Raises: WeightsError if a required one is missing, or a path leads out of the folder."""
    missing = ", ".join(pattern for pattern in require if not any(fnmatch(name, pattern) for name in listed.files))
    if missing:
        safe = any(name.endswith(".safetensors") for name in listed.files)
        reason = f"without {missing}" if safe else "no safetensors, and pickles can run code: they are never downloaded"
        raise WeightsError(
            f"{listed.repo_id} at {listed.commit} is no published folder: {reason}. "
            f"It holds: {', '.join(ascii(name)[1:-1] for name in list(listed.files)[:100])}. "
            f"Ask its owner to publish {', '.join(require)} (`lgd-timm push` does)."
        )
    files: dict[str, FileFacts] = {}
    for name, facts in listed.files.items():
        if any(fnmatch(name, pattern) for pattern in (*require, *allow)):
            if not is_path_below(name):
                raise WeightsError(
                    f"{listed.repo_id} at {listed.commit} holds {ascii(name)[:200]}, "
                    "which leads out of the folder. Don't use it."
                )
            files[name] = facts
    return Snapshot(listed.repo_id, listed.commit, files, private=listed.private)


def _complete(cache: RepoCache, wanted: Snapshot, token: str | None, command: str) -> None:
    """Download what is missing or wrong in the snapshot's folder in the cache. If nothing is, make no request."""
    folder = cache.folder(wanted.commit)
    wrong = wrong_files(folder, wanted.files)
    if wrong and settings.offline():
        raise WeightsError(
            f"{wanted.repo_id}: HF_HUB_OFFLINE is set, and {folder} is not whole: {'; '.join(wrong.values())}. "
            f"Where there is a network: `{command}`. {OTHER_WAY}"
        )
    if not wrong:
        return
    with as_weights_error(wanted.repo_id, wanted.commit), cache.locked():
        wrong = wrong_files(folder, wanted.files)  # another process may have downloaded them meanwhile
        total = sum(wanted.files[name]["size"] for name in wrong)
        with progress_bar(total=total, unit="B", unit_scale=True, desc=f"pull {wanted.repo_id}") as bar:
            for name in wrong:
                cache.remove(folder / name)
                cache.link(wanted.commit, name, _blob(name, wanted, cache, token, bar.update))
        stamp_verified(folder, {name: wanted.files[name] for name in wrong})


def _blob(name: str, wanted: Snapshot, cache: RepoCache, token: str | None, progress: Callable[[int], object]) -> Path:
    """Return the verified content of a file: one that another commit or client left in the cache, else downloaded."""
    facts = wanted.files[name]
    blob = cache.blobs / hash_of(facts)[1]
    if not wrong_files(cache.blobs, {blob.name: facts}):
        progress(facts["size"])
        return blob
    cache.remove(blob)
    return download(name, wanted, cache.blobs, token=token, progress=progress)


def _copy_out(cache: RepoCache, found: Snapshot, folder: Path) -> Path:
    """Copy the files to a folder of the user's. One that has files is verified instead, and never overwritten."""
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file, and published weights are a folder. Give another local_dir.")
    if not folder.is_dir() or not any(folder.iterdir()):
        with as_weights_error(found.repo_id, found.commit):
            cache.copy(found.commit, found.files, folder)
    verify(folder, found.files)
    return folder
