"""Read bytes from an address: over HTTP, from the Hub, or by fsspec's file system for its scheme."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from huggingface_hub import constants, hf_hub_url

from .. import settings
from ..errors import MissingExtra, ShardError, require
from ..utils.http import Body, Source, Truncated, hub_headers, open_session, over_http
from .paths import RemotePath

T = TypeVar("T")

BLOCK = 1 << 20  # bytes in one request to an fsspec file system, which may take `settings.hub_timeout()`


class Refused(Exception):
    """A failure that a retry can't mend. The message says why, and what to do."""


_HUB = re.compile(
    r"hf://(?:(datasets|models|spaces)/)?(?!(?:datasets|models|spaces)/)([\w.-]+/[\w.-]+)"
    r"(?:@(refs/(?:convert|pr)/[^/]+|[^/@]+))?/(.+)"
)


def source_of(address: RemotePath, *, fresh: bool = False) -> Source:
    """Return the function that reads a file's bytes from an offset on.

    Args:
        address: of the file.
        fresh: ask HTTP caches on the way for a new copy.

    Raises:
        ShardError: the address's scheme is not known, or it names no file on the Hub.
        MissingExtra: the library for its scheme is not installed.
    """
    headers = {"Cache-Control": "no-cache"} if fresh else {}
    if address.scheme in ("http", "https"):
        return partial(_from_server, quote(address.url, safe="/:%@[]!$&'()*+,;=~"), headers)
    if address.scheme == "hf":
        return partial(_from_hub, _hub_url(address), headers)
    return partial(_from_file_system, *_file_system(address))


def _from_server(url: str, headers: dict[str, str], offset: int) -> AbstractContextManager[Body]:
    return over_http(_client(os.getpid()), url, offset, headers=headers)


@lru_cache(maxsize=1)
def _client(process: int) -> Any:
    """Create a client of the Hub client's class, without its hooks and token. One a process: forks share sockets."""
    return type(open_session())(follow_redirects=True)


@contextmanager
def _from_hub(url: str, headers: dict[str, str], offset: int) -> Iterator[Body]:
    """Read from the Hub by plain HTTP, as `hub.file_download` does: the Hub's client gives up on a reset connection."""
    if settings.offline():
        raise Refused("HF_HUB_OFFLINE is set. Unset it, or give a folder on this disk.")
    headers = {**hub_headers(), **headers}
    with over_http(open_session(), url, offset, headers=headers) as answer:
        yield answer


def _hub_url(address: RemotePath) -> str:
    found = _HUB.fullmatch(address.url)
    if found is None:
        raise ShardError(
            f"{address} names no file on the Hub. "
            "Write hf://datasets/ORG/NAME/FOLDER or hf://datasets/ORG/NAME@REVISION/FOLDER."
        )
    kind, repo_id, revision, path = found.groups()
    revision = None if revision is None else unquote(revision)
    return hf_hub_url(
        repo_id, path, repo_type=kind and kind.removesuffix("s"), revision=revision, endpoint=constants.ENDPOINT
    )


def _file_system(address: RemotePath) -> tuple[Any, str]:
    """Find fsspec's file system for an address, and the path in it."""
    import fsspec  # only these addresses need it

    if address.scheme in ("s3", "s3a"):
        require("s3fs", extra="s3")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address.url)
    except ImportError as error:
        raise MissingExtra(f"{address.scheme}:// needs a library that is not installed ({error}).") from error
    except ValueError as error:  # an unknown protocol
        raise ShardError(
            f"{address} can't be read ({error}). Use https://, hf://, s3:// or what fsspec knows."
        ) from error
    return found


@contextmanager
def _from_file_system(system: Any, path: str, offset: int) -> Iterator[Body]:
    size = _bounded(partial(system.size, path))
    yield Body(offset, _read_blocks(system, path, offset, size), size)


def _read_blocks(system: Any, path: str, offset: int, size: int) -> Iterator[bytes]:
    for start in range(offset, size, BLOCK):
        end = min(start + BLOCK, size)
        block = _bounded(partial(system.cat_file, path, start=start, end=end))
        yield block
        if len(block) != end - start:
            raise Truncated(f"ended after {start + len(block)} of {size} bytes")


def _bounded(call: Callable[[], T]) -> T:
    """Call a library that may wait without end; give up after `settings.hub_timeout()`.

    A call that hangs is left in a daemon thread.

    Raises:
        Refused: a retry is no use.
        Truncated: the failure may pass.
    """
    seconds, answers = settings.hub_timeout(), queue.SimpleQueue[Callable[[], T]]()

    def ask() -> None:
        try:
            answer = call()
        except Exception as error:  # whatever the library raises
            failure = error
            answers.put(lambda: _fail(failure))
        else:
            answers.put(lambda: answer)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answered = answers.get(timeout=seconds)
    except queue.Empty:
        raise Truncated(f"no answer within {seconds:g} s") from None
    return answered()


def _fail(error: Exception) -> Any:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, FileNotFoundError | PermissionError):
        raise Refused(f"{reason}. Check the address, and who may read there.") from error
    raise Truncated(reason) from error
