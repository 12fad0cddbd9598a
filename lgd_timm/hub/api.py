"""Asking the Hub: what is at a revision, within bounded time, and in words what went wrong."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # httpx's in huggingface_hub 1, httpx2's in 2: this name serves both
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from .. import settings
from ..errors import WeightsError
from ..utils.http import Retry, passing
from .verify import FileFacts

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit."""

    repo_id: str
    commit: str
    files: Mapping[str, FileFacts]
    private: bool = False


class Unreachable(WeightsError):
    """The Hub gives no answer, or none but that it is in trouble: what is in the cache may serve."""


def resolve(repo_id: str, revision: str | None, token: str | None) -> Snapshot:
    """Resolve a revision to its commit, with the size and hash of every file there."""
    api = HfApi(token=token)
    with as_weights_error(repo_id, revision):
        info = retrying(
            lambda: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=settings.hub_timeout())
        )
    files = {}
    for file in info.siblings or []:
        if file.lfs:
            files[file.rfilename] = FileFacts(size=file.lfs.size, sha256=file.lfs.sha256)
        elif file.size is not None and file.blob_id:
            files[file.rfilename] = FileFacts(size=file.size, git_sha1=file.blob_id)
    if info.sha is None or len(files) != len(info.siblings or []):
        raise WeightsError(f"{constants.ENDPOINT} tells no commit or no hashes of {repo_id}. Is HF_ENDPOINT a Hub?")
    return Snapshot(repo_id, info.sha, files, private=bool(info.private))


def retrying(call: Callable[[], T]) -> T:
    """Repeat a call that fails for a reason that may pass, for `settings.hub_patience()` at most. It must be safe to repeat."""
    patience = Retry(settings.hub_patience())
    while True:
        try:
            return call()
        except (HTTPError, OSError) as error:
            if not patience.again(error):
                raise


def true_cause(error: BaseException) -> BaseException:
    """What went wrong; the client wraps it where an upload is involved."""
    wraps = isinstance(error.__cause__, (HTTPError, OfflineModeIsEnabled)) and not isinstance(error, HTTPError)
    return error.__cause__ if wraps and error.__cause__ else error


@contextmanager
def client_timeout(seconds: float) -> Iterator[None]:
    """Within the block, calls of the Hub's client that have no time-out of their own get this one; by default they wait for ever."""
    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


# ----------------------------------------------------------------------------------------------------------- errors

OTHER_WAY = "Or set LGD_TIMM_HUB to a folder that holds the weights, such as the hub/ of a checkout of lgd_timm."
LOG_IN = "pass `token`, run `hf auth login` or set HF_TOKEN."

# By exception or by the status of the Hub's answer, first match wins. {page} is the repository's page.
_REASONS: tuple[tuple[type[Exception] | int, str], ...] = (
    (GatedRepoError, "it is gated. Ask for access at {page}, then " + LOG_IN),
    (RepositoryNotFoundError, "no such repository, or not for this token. Check the name; if private, " + LOG_IN),
    (RevisionNotFoundError, "it has no such revision. Its branches and tags are listed at {page}."),
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set and it is not in the cache. Unset it. " + OTHER_WAY),
    (401, "the Hub refuses the token. With a valid one " + LOG_IN),
    (403, "this token may not do that. With one that may write to {page} " + LOG_IN),
    (412, "somebody else pushed meanwhile; nothing was changed. Look at {page}, then push again."),
)


@contextmanager
def as_weights_error(repo_id: str, revision: str | None, *, remedy: str = OTHER_WAY) -> Iterator[None]:
    """Turn what the Hub's client raises into a WeightsError with value, reason and what to do; `remedy`: what else one can do."""
    try:
        yield
    except WeightsError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = true_cause(error)
        subject = f"{repo_id} at {revision}" if revision else repo_id
        kind = Unreachable if passing(cause) else WeightsError
        page = f"{constants.ENDPOINT}/{repo_id}"
        raise kind(
            f"{subject}: {_reason(cause)} {remedy if kind is Unreachable else ''}".replace("{page}", page).rstrip()
        ) from error


def _reason(error: BaseException) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    for kind, reason in _REASONS:
        if status == kind or (isinstance(kind, type) and isinstance(error, kind)):
            return reason
    detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, HTTPError) and not status:
        return f"no answer from {constants.ENDPOINT} ({detail}). Check the network, a proxy, HF_ENDPOINT."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error.filename or error.strerror}). Free some space, or set HF_HOME to another disk."
        )
    return f"{detail}. If that is no fault of yours, try again later."
