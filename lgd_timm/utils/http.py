"""A file over the network into an open one, hashed while it comes. Where the connection breaks it goes on at the byte where it was.

Waits are bounded, tries too. What the file should be is the caller's business: it compares size and hash, and gives the file its name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO

from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError is httpx's in huggingface_hub 1, httpx2's in 2
from huggingface_hub.utils import hf_raise_for_status

from .. import settings

# What may pass by itself: the status of an answer, and the pauses in seconds before it is asked for again.
PASSING = (408, 425, 429, 500, 502, 503, 504)
PAUSES = (0.25, 0.5, 1.0, 2.0)

BATCH = 1 << 20  # bytes that are hashed together, as to hand them over costs time too
PROGRESS = 1 << 17  # bytes that must have come between two failures for the second to count as a first

Progress = Callable[[int], object]  # told how many bytes came; fewer than none when some have to come again
# What there is from a byte on: where it really starts, which is 0 where a server can't go on, and its bytes.
Source = Callable[[int], AbstractContextManager[tuple[int, Iterable[bytes]]]]


class Truncated(ConnectionError):
    """An answer that ended early, or never came, and nothing else says so."""


class Retry:
    """How often a request that fails is repeated: with growing pauses, and for some seconds at most."""

    def __init__(self, seconds: float, *, pauses: Iterable[float] = PAUSES) -> None:
        self._pauses = iter(pauses)
        self._end = time.monotonic() + seconds

    def again(self, error: BaseException) -> bool:
        """Sleep and say True, if the failure may pass by itself and there is time for another try."""
        pause = next(self._pauses, None)
        if pause is None or not passing(error):
            return False
        if isinstance(error, HfHubHTTPError):
            asked = error.response.headers.get("retry-after", "")
            pause = max(pause, float(asked) if asked.isdigit() else 0)
        if time.monotonic() + pause > self._end:
            return False
        time.sleep(pause)
        return True


def passing(error: BaseException) -> bool:
    """Whether it makes sense to ask again: the connection broke, or the server says that it is in trouble."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, (HTTPError, Truncated))


class Download:
    """A file that is coming, and the hash of what is there. `most`: above so many bytes no more are asked for."""

    def __init__(
        self, file: BinaryIO, *, digest: Callable[[], Any], most: int | None = None, progress: Progress | None = None
    ) -> None:
        self._file, self._new_digest, self._most = file, digest, most
        self._progress = progress or (lambda _: None)
        self._beside = ThreadPoolExecutor(max_workers=1)  # hashes while we wait for the next bytes
        self._start()

    def _start(self) -> None:
        self.size = self._hashed = 0
        self._chunks: list[bytes] = []
        self._digest = self._new_digest()

    @property
    def hexdigest(self) -> str:
        """Of all that came, once `receive` has ended."""
        digest: str = self._digest.hexdigest()
        return digest

    def receive(self, source: Source, *, patience: Callable[[], Retry]) -> None:
        """Fetch until it is whole. Where the connection breaks it goes on, as long as something comes.

        Raises: what the source raises, when patience has an end; OSError where the file can't be written.
        """
        try:
            self._receive(source, patience)
        finally:
            self._hash()
            self._beside.shutdown()

    def _receive(self, source: Source, patience: Callable[[], Retry]) -> None:
        left, since = patience(), 0
        while True:
            try:
                self._stream(source)
                return
            except (HTTPError, Truncated) as error:
                if self.size - since >= PROGRESS:
                    left, since = patience(), self.size
                if not left.again(error):
                    raise

    def _stream(self, source: Source) -> None:
        """One request, for the rest."""
        with source(self.size) as (start, chunks):
            if start != self.size:
                self._restart()
            for chunk in chunks:  # as they come: what was received before a break is kept
                self._write(chunk)
                if self._most is not None and self.size > self._most:
                    return

    def _write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._progress(len(chunk))
        if self.size - self._hashed > BATCH:
            self._hash()

    def _hash(self) -> None:
        self._beside.submit(_update, self._digest, self._chunks)
        self._hashed, self._chunks = self.size, []

    def _restart(self) -> None:
        self._progress(-self.size)
        self._file.seek(0)
        self._file.truncate()
        self._start()


def _update(digest: Any, chunks: list[bytes]) -> None:
    for chunk in chunks:
        digest.update(chunk)


@contextmanager
def over_http(
    session: Any, url: str, offset: int, *, headers: Mapping[str, str], size: int | None = None
) -> Iterator[tuple[int, Iterable[bytes]]]:
    """One GET, from byte `offset` on, as a `Source` gives it. `size`: of the whole file, where it is known.

    Raises: HfHubHTTPError, whoever's server it is, for a status that is an error; HTTPError; Cut when it ends early and nothing says so.
    """
    wanted = {
        **headers,
        "Accept-Encoding": "identity",  # bytes as they are stored, so that a broken download can go on at any of them
        **({"Range": f"bytes={offset}-"} if offset else {}),
    }
    with session.stream("GET", url, headers=wanted, timeout=settings.hub_timeout()) as response:
        if response.status_code == 416:  # there is no more: the file there is shorter than the one published
            yield offset, ()
            return
        if response.status_code >= 400:
            response.read()
            hf_raise_for_status(response)
        goes_on = response.headers.get("content-range", "").startswith(f"bytes {offset}-")
        start = offset if goes_on else 0
        yield start, _chunks(response, start, size)


def _chunks(response: Any, start: int, size: int | None) -> Iterator[bytes]:
    there = start
    for chunk in response.iter_bytes():
        there += len(chunk)
        yield chunk
    if size is not None and there < size and "content-length" not in response.headers:
        raise Truncated(f"ended after {there} of {size} bytes")
