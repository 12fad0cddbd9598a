"""From the Hub, or from where it was put before, to a folder of files that are what was published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from .. import settings
from ..errors import WeightsError
from .api import OTHER_WAY, Snapshot, Unreachable, as_weights_error, resolve
from .cache import RepoCache
from .file_download import download
from .verify import FileFacts, StrPath, hash_of, stamp_verified, verify, wrong_files
from .weights import OPEN_CLIP_FILES, PUBLISHED_FILES, REQUIRED_FILES, get_weight, local_folder, pinned_commit

log = logging.getLogger(__name__)


def locate(name: str, *, cache_dir: StrPath | None = None) -> Path:
    """Verified folder of a manifest weight: `settings.hub_folder()/name` when it exists, else the Hub's cache.

    The files of open_clip, which no timm model needs and which can be large, are not looked at.
    WeightsError for unknown names, for a folder that is not what was published, and as `pull` does.
    """
    timms = [file for file in PUBLISHED_FILES if file not in OPEN_CLIP_FILES]
    return local_folder(name) or snapshot(name, require=REQUIRED_FILES, allow=timms, cache_dir=cache_dir)


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
    or not at all and is never overwritten. What is there and right is not asked for again: a commit makes no request at all,
    a branch or tag one, and if the Hub is out of reach, what it was before is used and a warning says so.
    WeightsError says what was wrong and what to do.
    """
    cache, snapshot = _obtain(
        name_or_repo, require=REQUIRED_FILES, allow=PUBLISHED_FILES, revision=revision, cache_dir=cache_dir, token=token
    )
    folder = cache.folder(snapshot.commit)
    return folder if local_dir is None else _placed(cache, snapshot, Path(local_dir).absolute())


def snapshot(
    name: str,
    *,
    require: Sequence[str],
    allow: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: StrPath | None = None,
    token: str | None = None,
) -> Path:
    """The same for any repository `org/name[@revision]`: its files that match a pattern of `require` or `allow`.

    Patterns are those of `fnmatch`, and `*` matches slashes too. WeightsError as of `pull`, and where nothing matches a
    required pattern.
    """
    cache, found = _obtain(name, require=require, allow=allow, revision=revision, cache_dir=cache_dir, token=token)
    return cache.folder(found.commit)


def _obtain(
    name: str,
    *,
    require: Sequence[str],
    allow: Sequence[str],
    revision: str | None,
    cache_dir: StrPath | None,
    token: str | None,
) -> tuple[RepoCache, Snapshot]:
    """The wanted files of a repository at one commit, all in its cache and right."""
    target, revision = _parse(name, revision)
    command = f"lgd-timm pull {target}{f'@{revision}' if revision else ''}"
    weight = None if "/" in target else get_weight(target)
    if weight and revision in (None, weight.commit):
        cache = RepoCache(weight.repo_id, cache_dir)
        found = _selected(Snapshot(weight.repo_id, pinned_commit(weight), weight.files), require, allow)
        _fill(cache, found, token, command)
        return cache, found
    repo_id = weight.repo_id if weight else target
    cache = RepoCache(repo_id, cache_dir)
    found = _selected(_stated(cache, revision, token, command), require, allow)
    _fill(cache, found, token, command)
    cache.set_commit(revision or "main", found.commit)
    return cache, found


def _parse(name: str, revision: str | None) -> tuple[str, str | None]:
    """`[hub://]name[@revision]` -> name, revision."""
    target, _, at = name.removeprefix("hub://").partition("@")
    if at and revision and at != revision:
        raise WeightsError(f"{name!r} names another revision than {revision!r}. Give one of them.")
    revision = revision or at or None
    if revision and not re.fullmatch(r"(?!.*\.\.)[\w][\w./+-]*", revision):
        raise WeightsError(f"{revision!r} is no revision: a branch, a tag or a commit.")
    return target, revision


def _stated(cache: RepoCache, revision: str | None, token: str | None, command: str) -> Snapshot:
    """All files at a revision with their hashes: as the Hub states them, now or, where it can't be asked, when it last was."""
    commit = cache.commit_of(revision or "main")
    before = cache.remembered(commit) if commit else None
    if before and (settings.offline() or revision == commit):
        return before
    if settings.offline():
        raise WeightsError(
            f"{cache.repo_id}{f'@{revision}' if revision else ''}: HF_HUB_OFFLINE is set, and {cache.root} holds no folder that lgd_timm "
            f"pulled whole. Where there is a network: `{command}`. {OTHER_WAY}"
        )
    try:
        stated = resolve(cache.repo_id, revision, token)
    except Unreachable as error:
        if before is None:
            raise
        log.warning("%s Using commit %s, which it was when it was last pulled.", error, before.commit)
        return before
    cache.remember(stated)
    return stated


def _selected(stated: Snapshot, require: Sequence[str], allow: Sequence[str]) -> Snapshot:
    """The wanted ones of a repository's files. WeightsError when a required one is missing, or a name leads out of the folder."""
    missing = ", ".join(pattern for pattern in require if not any(fnmatch(name, pattern) for name in stated.files))
    if missing:
        safe = any(name.endswith(".safetensors") for name in stated.files)
        reason = f"without {missing}" if safe else "no safetensors, and pickles can run code: they are never downloaded"
        raise WeightsError(
            f"{stated.repo_id} at {stated.commit} is no published folder: {reason}. It holds: {', '.join(stated.files)}. "
            f"Ask its owner to publish {', '.join(require)} (`lgd-timm push` does)."
        )
    files: dict[str, FileFacts] = {}
    for name, facts in stated.files.items():
        if any(fnmatch(name, pattern) for pattern in (*require, *allow)):
            if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
                raise WeightsError(
                    f"{stated.repo_id} at {stated.commit} holds {name!r}, which leads out of the folder. Don't use it."
                )
            files[name] = facts
    return Snapshot(stated.repo_id, stated.commit, files, private=stated.private)


def _fill(cache: RepoCache, wanted: Snapshot, token: str | None, command: str) -> None:
    """Make the snapshot's folder in the cache complete and right. Where it is already, nothing is written and nobody asked."""
    folder = cache.folder(wanted.commit)
    wrong = wrong_files(folder, wanted.files)
    if wrong and settings.offline():
        raise WeightsError(
            f"{wanted.repo_id}: HF_HUB_OFFLINE is set, and {folder} is not whole: {'; '.join(wrong.values())}. "
            f"Where there is a network: `{command}`. {OTHER_WAY}"
        )
    if not wrong:
        return
    with as_weights_error(wanted.repo_id, wanted.commit), cache.alone():
        wrong = wrong_files(folder, wanted.files)  # again: another process may have been at it
        total = sum(wanted.files[name]["size"] for name in wrong)
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"pull {wanted.repo_id}", disable=None) as bar:
            for name in wrong:
                cache.drop(folder / name)
                cache.link(wanted.commit, name, _blob(name, wanted, cache, token, bar.update))
        stamp_verified(folder, {name: wanted.files[name] for name in wrong})


def _blob(name: str, wanted: Snapshot, cache: RepoCache, token: str | None, progress: Callable[[int], object]) -> Path:
    """The verified content of a file: another commit or another client may have brought it already, else it is downloaded."""
    facts = wanted.files[name]
    blob = cache.blobs / hash_of(facts)[1]
    if not wrong_files(cache.blobs, {blob.name: facts}):
        progress(facts["size"])
        return blob
    cache.drop(blob)
    return download(name, wanted, cache.blobs, token=token, progress=progress)


def _placed(cache: RepoCache, there: Snapshot, folder: Path) -> Path:
    """The files in a folder of the user's, which is never overwritten: what is there is right, or it is refused."""
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file, and published weights are a folder. Give another local_dir.")
    if not folder.is_dir() or not any(folder.iterdir()):
        with as_weights_error(there.repo_id, there.commit):
            cache.copy(there.commit, there.files, folder)
    verify(folder, there.files)
    return folder
