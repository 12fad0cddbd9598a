"""The Hub's cache of one repository, in the layout that every client of the Hub shares, entered only by verified files.

models--ORG--NAME/blobs/HASH            a file's content
                  snapshots/COMMIT/F    a link to it
                  refs/REVISION         the commit of a branch or tag, when it was last asked for
                  lgd_timm/COMMIT.json  ours: all files of that commit with their hashes, as the Hub stated them
"""

from __future__ import annotations

import json
import logging
import os
import re
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
from .api import Snapshot
from .verify import FileFacts, StrPath

log = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")


class RepoCache:
    """One repository in the Hub's cache. Nothing here makes a request."""

    def __init__(self, repo_id: str, cache_dir: StrPath | None) -> None:
        cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).absolute()
        name = f"models--{repo_id.replace('/', '--')}"
        self.repo_id = repo_id
        self.root = cache / name
        self.blobs = self.root / "blobs"
        self.locks = cache / ".locks" / name

    def folder(self, commit: str) -> Path:
        return self.root / "snapshots" / commit

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of ours out, and clear away what killed ones of any client left half-written."""
        self.locks.mkdir(parents=True, exist_ok=True)
        seconds = settings.lock_timeout()
        try:
            with WeakFileLock(self.locks / "lgd_timm.lock", timeout=seconds):
                self._sweep()
                yield
        except Timeout as error:
            raise WeightsError(
                f"{self.repo_id}: another process has been downloading to {self.root} for {seconds:g} s (LGD_TIMM_LOCK_TIMEOUT). "
                "Wait for it, or end it."
            ) from error

    def _sweep(self) -> None:
        """Remove `blobs/HASH.RANDOM.incomplete` files that nobody writes: a client that does holds the lock of that hash."""
        for path in self.blobs.glob("*.incomplete"):
            with suppress(Timeout), FileLock(self.locks / f"{path.name.partition('.')[0]}.lock", timeout=0):
                path.unlink(missing_ok=True)

    def link(self, commit: str, name: str, blob: Path) -> None:
        """Let a file of a snapshot be that blob. Where links can't be made (Windows), the content moves there itself."""
        path = self.folder(commit) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            blob.replace(path)

    def drop(self, path: Path) -> None:
        """Remove a wrong file, and its content wherever in the cache the links lead: nobody else (timm, transformers) may load it."""
        while path.is_symlink():
            target = Path(os.path.normpath(path.parent / path.readlink()))
            path.unlink()
            if not target.is_relative_to(self.root.parent):
                return  # a file of the user's own, to which the user made a link
            path = target
        path.unlink(missing_ok=True)

    def remember(self, snapshot: Snapshot) -> None:
        """Keep what the Hub stated, so that later the cache can be told complete and right without it."""
        if not self._listing(snapshot.commit).is_file():
            with _if_writable():
                write_json(self._listing(snapshot.commit), asdict(snapshot))

    def remembered(self, commit: str) -> Snapshot | None:
        """What the Hub stated of a commit, or None when this package never asked."""
        try:
            listing = json.loads(self._listing(commit).read_text(encoding="utf-8"))
            return Snapshot(
                **{**listing, "files": {name: FileFacts(**facts) for name, facts in listing["files"].items()}}
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or damaged: then the Hub is asked
            return None

    def commit_of(self, revision: str) -> str | None:
        """The commit of a revision, when it was last asked for."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self.root / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def set_commit(self, revision: str, commit: str) -> None:
        """Say which commit a branch or tag is, so that timm and other clients find it without the network too."""
        if self.commit_of(revision) != commit:
            ref, temporary = self.root / "refs" / revision, self.root / "lgd_timm" / f".{secrets.token_hex(4)}"
            with _if_writable():
                ref.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(commit, encoding="utf-8")
                temporary.replace(ref)

    def _listing(self, commit: str) -> Path:
        return self.root / "lgd_timm" / f"{commit}.json"

    def copy(self, commit: str, names: Iterable[str], folder: Path) -> None:
        """Copy files of a snapshot into a new folder, which appears when it is whole. What a killed copy left is cleared away."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.parent / f".{folder.name}.partial"
        with WeakFileLock(self.locks / f"{fingerprint(str(folder))}.lock", timeout=settings.lock_timeout()):
            shutil.rmtree(staging, ignore_errors=True)
            try:
                for name in names:
                    (staging / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.folder(commit) / name, staging / name)
                staging.replace(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _if_writable() -> Iterator[None]:
    """Notes for later are worth having, and no reason to fail: a cache that may only be read can still be right."""
    try:
        yield
    except OSError as error:
        log.debug("not noted: %s", error)
