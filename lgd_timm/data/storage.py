"""How the bytes at an address are had: over HTTP, from the Hub, or by the file system that fsspec has for its scheme."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session

from .. import settings
from ..errors import MissingExtra, ShardError, require
from ..utils.http import Source, Truncated, over_http
from .paths import RemotePath

T = TypeVar("T")

BLOCK = 1 << 20  # bytes that are asked of an fsspec file system at a time, each within `settings.hub_timeout()`


class Refused(Exception):
    """It is no use to ask again. The message says why, and what to do."""


_HUB = re.compile(
    r"hf://(?:(datasets|models|spaces)/)?(?!(?:datasets|models|spaces)/)([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/@]+))?/(.+)"
)


def source_of(address: RemotePath, *, fresh: bool = False) -> Source:
    """The way to a file's bytes; `fresh`: past all caches on it.

    Raises: ShardError for an address of a kind that is not known; MissingExtra where a library for it is not installed.
    """
    again = {"Cache-Control": "no-cache"} if fresh else {}
    if address.scheme in ("http", "https"):
        return partial(_plain, quote(address.url, safe="/:%@[]!$&'()*+,;=~"), again)
    if address.scheme == "hf":
        return partial(_hub, _hub_url(address), again)
    return partial(_blocks, *_file_system(address))


def _plain(url: str, headers: dict[str, str], offset: int) -> AbstractContextManager[tuple[int, Iterable[bytes]]]:
    """From any server."""
    return over_http(_client(os.getpid()), url, offset, headers=headers)


@lru_cache(maxsize=1)
def _client(process: int) -> Any:
    """httpx's or httpx2's, as the Hub's, without its hooks and token. One a process: forked ones would share its connections."""
    return type(get_session())(follow_redirects=True)


@contextmanager
def _hub(url: str, headers: dict[str, str], offset: int) -> Iterator[tuple[int, Iterable[bytes]]]:
    """From the Hub, by plain HTTP as in `hub.download`: its client's own reading waits longer, and gives up on a reset."""
    if settings.offline():
        raise Refused("HF_HUB_OFFLINE is set. Unset it, or give a folder on this disk.")
    headers = {**build_hf_headers(library_name="lgd_timm"), **headers}
    with over_http(get_session(), url, offset, headers=headers) as answer:
        yield answer


def _hub_url(address: RemotePath) -> str:
    found = _HUB.fullmatch(address.url)
    if found is None:
        raise ShardError(
            f"{address} names no file on the Hub. Write hf://datasets/ORG/NAME/FOLDER or hf://datasets/ORG/NAME@REVISION/FOLDER."
        )
    kind, repo_id, revision, path = found.groups()
    revision = None if revision is None else unquote(revision)
    return hf_hub_url(
        repo_id, path, repo_type=kind and kind.removesuffix("s"), revision=revision, endpoint=constants.ENDPOINT
    )


def _file_system(address: RemotePath) -> tuple[Any, str]:
    """fsspec's file system for a scheme, and the path in it."""
    import fsspec

    if address.scheme in ("s3", "s3a"):
        require("s3fs", extra="s3")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address.url)
    except ImportError as error:
        raise MissingExtra(f"{address.scheme}:// needs a library that is not installed ({error}).") from error
    except ValueError as error:  # of a protocol that it does not know
        raise ShardError(
            f"{address} can't be read ({error}). Use https://, hf://, s3:// or what fsspec knows."
        ) from error
    return found


@contextmanager
def _blocks(system: Any, path: str, offset: int) -> Iterator[tuple[int, Iterable[bytes]]]:
    yield offset, _read_blocks(system, path, offset)


def _read_blocks(system: Any, path: str, offset: int) -> Iterator[bytes]:
    size = _bounded(partial(system.size, path))
    for start in range(offset, size, BLOCK):
        end = min(start + BLOCK, size)
        block = _bounded(partial(system.cat_file, path, start=start, end=end))
        yield block
        if len(block) != end - start:
            raise Truncated(f"ended after {start + len(block)} of {size} bytes")


def _bounded(call: Callable[[], T]) -> T:
    """What a library says that may know no bound for its waits. A call that never ends is left behind, in a thread that keeps nobody.

    Raises: Refused or, where the failure may pass, Cut.
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
        land = answers.get(timeout=seconds)
    except queue.Empty:
        raise Truncated(f"no answer within {seconds:g} s") from None
    return land()


def _fail(error: Exception) -> Any:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, FileNotFoundError | PermissionError):
        raise Refused(f"{reason}. Check the address, and who may read there.") from error
    raise Truncated(reason) from error
