"""Ask the Hub which files a revision has, within bounded time, and turn its client's errors into WeightsErrors."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import ModelInfo, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # httpx's in huggingface_hub 1, httpx2's in 2: this name serves both
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .. import settings
from ..errors import WeightsError
from ..utils.http import Retry, Truncated, hub_headers, is_transient, open_session, read_all
from ..utils.typed_json import parse_json
from .verify import FileFacts, checked_facts

T = TypeVar("T")

COMMIT = re.compile("[0-9a-f]{40}")
MOST_FILES = 100_000  # of one repository
LARGEST_ANSWER = 1 << 26  # bytes


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit.

    Attributes:
        repo_id: `org/name`.
        commit: 40 hexadecimal digits.
        files: path in the repository -> size and hash.
        private: whether it takes a token to read it.
    """

    repo_id: str
    commit: str
    files: Mapping[str, FileFacts]
    private: bool = False


class Unreachable(WeightsError):
    """The Hub does not answer, or answers with a server error. Files in the cache can still be used."""


def resolve(repo_id: str, revision: str | None, token: str | None) -> Snapshot:
    """Ask the Hub for the commit of a revision, and for the size and hash of every file in it.

    Args:
        repo_id: `org/name`.
        revision: branch, tag or commit; None: the default branch.
        token: access token; None: the one that `hf auth login` stored, or HF_TOKEN.

    Returns:
        All files at that commit.

    Raises:
        Unreachable: if the Hub does not answer within `settings.hub_patience()` seconds.
        WeightsError: for a repository or revision that does not exist or may not be read.
    """
    with as_weights_error(repo_id, revision):
        validate_repo_id(repo_id)
        content = retrying(lambda: _ask(repo_id, revision, token))
    try:
        info = ModelInfo(**parse_json(content, dict, limit=LARGEST_ANSWER))
        files = {}
        for file in info.siblings or []:
            if file.lfs:
                files[file.rfilename] = {"size": file.lfs.size, "sha256": file.lfs.sha256}
            elif file.size is not None and file.blob_id:
                files[file.rfilename] = {"size": file.size, "git_sha1": file.blob_id}
        if info.sha is None or len(files) != len(info.siblings or []):
            raise WeightsError(f"{constants.ENDPOINT} tells no commit or no hashes of {repo_id}. Is HF_ENDPOINT a Hub?")
        found = checked_snapshot(repo_id, info.sha, files, private=bool(info.private))
    except WeightsError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise WeightsError(
            f"{constants.ENDPOINT} says of {repo_id} what no Hub says: {brief(error)}. Is HF_ENDPOINT a Hub, and the "
            "connection to it your own?"
        ) from error
    if revision is not None and COMMIT.fullmatch(revision) and found.commit != revision:
        raise WeightsError(
            f"{repo_id}: commit {revision} was asked for, and {constants.ENDPOINT} answers {found.commit}. "
            "Is HF_ENDPOINT a Hub?"
        )
    return found


def _ask(repo_id: str, revision: str | None, token: str | None) -> bytes:
    """Request what `HfApi.model_info` requests, within a deadline and no more than `LARGEST_ANSWER` bytes."""
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    url = f"{constants.ENDPOINT}/api/models/{repo_id}{at}?blobs=true"
    return read_all(open_session(), url, headers=hub_headers(token), limit=LARGEST_ANSWER)


def brief(error: Exception) -> str:
    """Return a foreign error's text for a message, in one line of plain characters."""
    return ascii(" ".join(str(error).split()))[1:-1][:200]


def checked_snapshot(repo_id: str, commit: Any, files: Mapping[str, Any], *, private: bool = False) -> Snapshot:
    """Build a snapshot of what a server or a remembered file says; commit, hashes and names become parts of paths.

    Raises:
        ValueError, TypeError, AttributeError: it is not of the form that `Snapshot` has.
    """
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError(f"{ascii(commit)[:80]} is no commit of 40 hexadecimal digits")
    if len(files) > MOST_FILES:
        raise ValueError(f"{len(files)} files, more than {MOST_FILES}")
    return Snapshot(repo_id, commit, {name: checked_facts(**facts) for name, facts in files.items()}, private=private)


def retrying(call: Callable[[], T]) -> T:
    """Call a function, and repeat it while it fails for a transient reason.

    Args:
        call: makes one request, which must be safe to repeat.

    Returns:
        What it returned.

    Raises:
        HTTPError, OSError: what `call` raised last, after `settings.hub_patience()` seconds.
    """
    retry = Retry(settings.hub_patience())
    while True:
        try:
            return call()
        except (HTTPError, OSError) as error:
            if not retry.wait(error):
                raise


def true_cause(error: BaseException) -> BaseException:
    """Return the error inside the RuntimeError that the Hub's client raises for a failed upload, or `error` itself."""
    wraps = isinstance(error.__cause__, (HTTPError, OfflineModeIsEnabled)) and not isinstance(error, HTTPError)
    return error.__cause__ if wraps and error.__cause__ else error


@contextmanager
def client_timeout(seconds: float) -> Iterator[None]:
    """Give the Hub client's calls that set no time-out this one, in seconds; by default they wait for ever."""
    session = open_session()
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
    """Turn what the Hub's client raises in the block into a WeightsError that says value, reason and what to do.

    Args:
        repo_id: `org/name`, for the message.
        revision: for the message.
        remedy: what else the user can do while the Hub is unreachable.

    Raises:
        Unreachable: for a transient failure.
        WeightsError: for any other.
    """
    try:
        yield
    except WeightsError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = true_cause(error)
        subject = f"{repo_id} at {revision}" if revision else repo_id
        kind = Unreachable if is_transient(cause) else WeightsError
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
    if isinstance(error, HTTPError | Truncated) and not status:
        return f"no answer from {constants.ENDPOINT} ({detail}). Check the network, a proxy, HF_ENDPOINT."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error.filename or error.strerror}). Free some space, or set HF_HOME to another disk."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        return f"the disk of the cache has no locks ({error.strerror}). Set HF_HOME to a folder on another disk."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"the cache can't be written ({error.filename or error.strerror}). Set HF_HOME to a folder of your own."
    return f"{detail}. If that is no fault of yours, try again later."
