"""The Hub's cache of one repository, in the layout that every client of the Hub shares. Only verified files enter it.

models--ORG--NAME/blobs/HASH            content of a file
                  snapshots/COMMIT/F    link to it
                  refs/REVISION         commit of a branch or tag, at the last request
                  lgd_timm/COMMIT.json  ours: all files of that commit with their hashes, as the Hub listed them
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from .. import settings
from ..errors import WeightsError
from ..utils.files import fingerprint, write_json
from ..utils.typed_json import read_json
from .api import COMMIT, Snapshot, checked_snapshot
from .verify import StrPath

log = logging.getLogger(__name__)


class RepoCache:
    """One repository in the Hub's cache. No method makes a request.

    Args:
        repo_id: `org/name`.
        cache_dir: cache of all repositories; None: the Hub client's own.
    """

    def __init__(self, repo_id: str, cache_dir: StrPath | None) -> None:
        cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).absolute()
        name = f"models--{repo_id.replace('/', '--')}"
        self.repo_id = repo_id
        self.root = cache / name
        self.blobs = self.root / "blobs"
        self.locks = cache / ".locks" / name

    def folder(self, commit: str) -> Path:
        """Return the folder of a commit's files, whether it exists or not."""
        return self.root / "snapshots" / commit

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock against other processes of this package, and remove the partial downloads of killed ones.

        Raises:
            WeightsError: if another process holds it for `settings.lock_timeout()` seconds.
        """
        self.locks.mkdir(parents=True, exist_ok=True)
        seconds = settings.lock_timeout()
        try:
            with WeakFileLock(self.locks / "lgd_timm.lock", timeout=seconds):
                self._remove_partial_downloads()
                yield
        except Timeout as error:
            raise WeightsError(
                f"{self.repo_id}: another process has been downloading to {self.root} for {seconds:g} s "
                "(LGD_TIMM_LOCK_TIMEOUT). Wait for it, or end it."
            ) from error

    def _remove_partial_downloads(self) -> None:
        """Remove `blobs/HASH.RANDOM.incomplete` files that no client writes: one that does locks the hash."""
        for path in self.blobs.glob("*.incomplete"):
            with suppress(Timeout), FileLock(self.locks / f"{path.name.partition('.')[0]}.lock", timeout=0):
                path.unlink(missing_ok=True)

    def link(self, commit: str, name: str, blob: Path) -> None:
        """Link a file of a snapshot to its blob; where links can't be made (Windows), move the blob there."""
        path = self.folder(commit) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            blob.replace(path)

    def remove(self, path: Path) -> None:
        """Remove a wrong file and the blob that it links to, so that no other library (timm, transformers) loads it."""
        while path.is_symlink():
            target = Path(os.path.normpath(path.parent / path.readlink()))
            path.unlink()
            if not target.is_relative_to(self.root.parent):
                return  # a link that the user made, to a file outside the cache
            path = target
        path.unlink(missing_ok=True)

    def write_file_list(self, snapshot: Snapshot) -> None:
        """Store which files the Hub listed, so that the cache can be verified later without a request."""
        path = self._file_list(snapshot.commit)
        if not path.is_file():
            with _if_writable():
                write_json(path, asdict(snapshot))

    def read_file_list(self, commit: str) -> Snapshot | None:
        """Return which files the Hub listed at a commit, or None if it was never asked or the list is damaged."""
        try:
            listing = read_json(self._file_list(commit), dict)
            if (listing["repo_id"], listing["commit"]) != (self.repo_id, commit):
                return None  # of another repository or commit: the Hub is asked
            private = bool(listing.get("private", False))
            return checked_snapshot(self.repo_id, commit, listing["files"], private=private)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # the caller asks the Hub
            return None

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a revision had at the last request, or None if there was none."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self.root / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def set_commit(self, revision: str, commit: str) -> None:
        """Store the commit of a branch or tag, so that timm and other clients find it without the network too."""
        if self.commit_of(revision) != commit:
            ref, temporary = self.root / "refs" / revision, self.root / "lgd_timm" / f".{secrets.token_hex(4)}"
            with _if_writable():
                ref.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(commit, encoding="utf-8")
                temporary.replace(ref)

    def _file_list(self, commit: str) -> Path:
        return self.root / "lgd_timm" / f"{commit}.json"

    def copy(self, commit: str, names: Iterable[str], folder: Path) -> None:
        """Copy files of a snapshot to a new folder, which appears complete or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.parent / f".{folder.name}.partial"
        with WeakFileLock(self.locks / f"{fingerprint(str(folder))}.lock", timeout=settings.lock_timeout()):
            shutil.rmtree(staging, ignore_errors=True)  # of a copy that was killed
            try:
                for name in names:
                    (staging / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.folder(commit) / name, staging / name)
                staging.replace(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _if_writable() -> Iterator[None]:
    """Log an OSError instead of raising it: a cache that is read-only can still be complete and right."""
    try:
        yield
    except OSError as error:
        log.debug("not stored in the cache: %s", error)
