"""Download over HTTP into an open file, hash the bytes as they arrive, and resume where a connection breaks.

Waits and retries are bounded. The caller compares size and hash with what they should be, and gives the file its name.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: httpx's in huggingface_hub 1, httpx2's in 2
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .. import settings
from ..errors import WeightsError

# Statuses of transient failures, and the pauses in seconds before each further request.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
PAUSES = (0.25, 0.5, 1.0, 2.0)

HASH_BATCH = 1 << 20  # bytes that are hashed at once: handing them to the thread costs time too
LEAST_RATE = 4096  # bytes a second, below which a server is taken for one that stalls
SHORTEST_DEADLINE = 3.0  # seconds for all headers, redirections included
LONGEST_PREPARATION = 1.0  # seconds for what the Hub's client does before a request
LARGEST_ERROR = 1 << 16  # bytes of the body of an error that are read
ENCODINGS = ("", "identity", "gzip", "deflate")  # one of them unpacks a thousandfold at most
OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")
MIN_PROGRESS = 1 << 17  # bytes that must arrive between two failures for the second to count as a first one

INVALID_URL: Any = sys.modules[HTTPError.__module__.partition(".")[0]].InvalidURL  # of the same httpx

T = TypeVar("T")

Progress = Callable[
    [int], object
]  # called with the number of bytes that arrived, negative where they are fetched again


class Body(NamedTuple):
    """What a server sends of a file."""

    start: int  # offset of its first byte; 0 where the server can't resume
    chunks: Iterable[bytes]
    size: int | None = None  # bytes of the whole file, where the server says so


Source = Callable[[int], AbstractContextManager[Body]]  # opens the file from an offset on
# Called with the bytes that a file is going to have, before they are written, and whether that is all of them.
Reserve = Callable[[int, bool], object]


class Truncated(ConnectionError):
    """A response that ended early without any other error."""


class TooSlow(Truncated):
    """A response whose bytes come, but too slowly to be of use."""


class Retry:
    """Say how often a failing request is repeated.

    Args:
        seconds: from now on, after which it is not repeated.
        pauses: seconds before each further request; as many requests as pauses at most.
    """

    def __init__(self, seconds: float, *, pauses: Iterable[float] = PAUSES) -> None:
        self._pauses = iter(pauses)
        self._began = time.monotonic()  # of the present request
        self._end = self._began + seconds
        self._last_end = self._began + 1.2 * seconds  # of one that takes as long as one that was too slow

    def wait(self, error: BaseException) -> bool:
        """Sleep until the next request, if there is to be one.

        Args:
            error: what the last request raised. A Retry-After header (seconds) makes the pause longer.

        Returns:
            Whether to repeat the request; False for a permanent failure, or if no time or pause is left.
        """
        pause = next(self._pauses, None)
        if pause is None or not is_transient(error):
            return False
        if isinstance(error, HfHubHTTPError):
            asked = error.response.headers.get("retry-after", "")
            pause = max(pause, float(asked) if re.fullmatch("[0-9]{1,6}", asked) else 0)
        now = time.monotonic()
        again = now - self._began if isinstance(error, TooSlow) else 0  # who drips once does so again
        if now + pause > self._end or now + pause + again > self._last_end:
            return False
        time.sleep(pause)
        self._began = time.monotonic()
        return True


def is_transient(error: BaseException) -> bool:
    """Return whether repeating the request can help: the connection broke, or the server has a problem of its own."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    return isinstance(error, (HTTPError, Truncated))


class Download:
    """Download a file, and hash it meanwhile.

    Args:
        file: opened for writing, empty.
        digest: makes a hash object of hashlib.
        max_size: bytes after which the download stops, as the file is too large anyway.
        progress: see `Progress`.
        reserve: see `Reserve`.

    Attributes:
        size: bytes that arrived.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        digest: Callable[[], Any],
        max_size: int | None = None,
        progress: Progress | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        self._file, self._new_digest, self._max_size = file, digest, max_size
        self._reserve = reserve or (lambda size, whole: None)
        self._progress = progress or (lambda _: None)
        self._hasher = ThreadPoolExecutor(max_workers=1)  # hashes while the next bytes arrive
        self._start()

    def _start(self) -> None:
        self.size = self._hashed = self._reserved = 0
        self._chunks: list[bytes] = []
        self._digest = self._new_digest()

    @property
    def hexdigest(self) -> str:
        """Hash of all bytes that arrived, in hexadecimal digits, once `run` has ended."""
        digest: str = self._digest.hexdigest()
        return digest

    def run(self, source: Source, *, retry: Callable[[], Retry]) -> None:
        """Download the whole file. Where the connection breaks, request the rest.

        Args:
            source: opens the file from an offset on.
            retry: makes a `Retry`, a new one each time that `MIN_PROGRESS` bytes have arrived since the last failure.

        Raises:
            HTTPError, Truncated: what the source raised last, when there is no further try.
            OSError: if the file can't be written.
        """
        try:
            self._run(source, retry)
        finally:
            self._hash()
            self._hasher.shutdown()

    def _run(self, source: Source, retry: Callable[[], Retry]) -> None:
        tries, size_before = retry(), 0
        while True:
            try:
                self._stream(source)
                return
            except (HTTPError, Truncated) as error:
                if self.size - size_before >= MIN_PROGRESS:
                    tries, size_before = retry(), self.size
                if not tries.wait(error):
                    raise

    def _stream(self, source: Source) -> None:
        """Make one request, for the bytes that are missing."""
        with source(self.size) as body:
            if body.start != self.size:
                self._restart()
            if body.size is not None:
                self._make_room(body.size, whole=True)
            for chunk in body.chunks:  # written one by one, to keep those that arrive before a break
                self._write(chunk)
                if self._max_size is not None and self.size > self._max_size:
                    return

    def _make_room(self, size: int, *, whole: bool) -> None:
        if size > self._reserved and (self._max_size is None or size <= self._max_size):
            self._reserve(size, whole)
            self._reserved = size

    def _write(self, chunk: bytes) -> None:
        self._make_room(self.size + len(chunk), whole=False)
        self._file.write(chunk)
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._progress(len(chunk))
        if self.size - self._hashed > HASH_BATCH:
            self._hash()

    def _hash(self) -> None:
        self._hasher.submit(_update, self._digest, self._chunks)
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
) -> Iterator[Body]:
    """Request a file from byte `offset` on, as a `Source`.

    Args:
        session: the Hub client's session, or another of httpx.
        url: address of the file.
        offset: first byte that is wanted.
        headers: of the request.
        size: bytes of the whole file, if known.

    Yields:
        What the server sends.

    Raises:
        HfHubHTTPError: for a status that is an error, also of servers that are no Hub.
        HTTPError: if the connection fails.
        Truncated: if the response ends before `size` and has no Content-Length to tell so.
    """
    wanted = {
        **headers,
        "Accept-Encoding": "identity",  # uncompressed, so that an offset in the file is one in the response
        **({"Range": f"bytes={offset}-"} if offset else {}),
    }
    with _answer(session, url, headers=wanted) as response:
        if response.status_code == 416:  # nothing is left: the file is shorter than the one published
            yield Body(offset, ())
            return
        _raise_for_status(response)
        resumes = response.headers.get("content-range", "").startswith(f"bytes {offset}-")
        start = offset if resumes else 0
        yield Body(start, _chunks(response, start, size), size or _whole_size(response, start))


def _whole_size(response: Any, start: int) -> int | None:
    """Bytes of the whole file, as the headers say."""
    length, encoding = response.headers.get("content-length", ""), response.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("", "identity") or not re.fullmatch("[0-9]{1,15}", length):
        return None
    return start + int(length)


def open_session() -> Any:
    """Return the Hub client's session.

    Raises:
        WeightsError: the environment names a proxy that can't be used.
    """
    try:
        return get_session()
    except (
        ImportError,
        ValueError,
        INVALID_URL,
    ) as error:  # httpx's: for SOCKS without socksio, and for addresses that are none
        raise WeightsError(
            f"The proxy that the environment names (ALL_PROXY, HTTPS_PROXY, HTTP_PROXY) can't be used: "
            f"{' '.join(str(error).split())} For a SOCKS proxy: pip install socksio. Else correct or unset the "
            "variable."
        ) from error


def read_all(session: Any, url: str, *, headers: Mapping[str, str], limit: int) -> bytes:
    """Request a small file, such as an answer in JSON.

    Args:
        session: the Hub client's session, or another of httpx.
        url: its address.
        headers: of the request.
        limit: most bytes that it may have.

    Raises:
        HfHubHTTPError: for a status that is an error.
        HTTPError: the connection fails.
        Truncated: the bytes come too slowly.
        ValueError: there are more than `limit`.
    """
    with _answer(session, url, headers={**headers, "Accept-Encoding": "identity"}) as response:
        _raise_for_status(response)
        content = _read(response, limit + 1)
    if len(content) > limit:
        raise ValueError(f"the answer has more than {limit} bytes")
    return content


def hub_headers(token: str | None = None) -> dict[str, str]:
    """Build the headers of a request to the Hub: the token and a user agent.

    For the latter the Hub's client asks the Hub which programs there are, and waits for the answer without a bound.
    Where it takes longer than `LONGEST_PREPARATION`, the user agent says less.

    Args:
        token: access token; None: the stored one, where the client may use it.
    """
    try:
        seconds = min(LONGEST_PREPARATION, settings.hub_timeout())
        return within(partial(build_hf_headers, token=token, library_name="lgd_timm"), seconds=seconds)
    except Truncated:
        token = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        return {"user-agent": "lgd_timm", **({"authorization": f"Bearer {token}"} if token else {})}


def within(call: Callable[[], T], *, seconds: float, late: Callable[[T], object] = lambda _: None) -> T:
    """Call a function that may wait without end, and give up after so many seconds.

    Args:
        call: continues in a daemon thread when it is given up.
        seconds: that it may take.
        late: called with what it returns after it was given up.

    Returns:
        What it returned.

    Raises:
        Truncated: it took longer.
        BaseException: whatever it raises.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    given_up, lock = threading.Event(), threading.Lock()

    def run() -> None:
        try:
            answer = call()
        except BaseException as error:  # whatever it is, the caller raises it
            answers.put((None, error))
            return
        with lock:
            answers.put((answer, None))
            if given_up.is_set():
                late(answer)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        with lock:
            given_up.set()
            if answers.empty():
                raise Truncated(f"no whole answer within {seconds:g} s") from None
            answer, error = answers.get()
    if error is not None:
        raise error
    return cast(T, answer)


@contextmanager
def _answer(session: Any, url: str, *, headers: Mapping[str, str]) -> Iterator[Any]:
    """Yield the response to a GET request, whose body is still to be read.

    All headers, those of redirections too, have to arrive within 1.2 x `settings.hub_timeout()`: httpx bounds each read
    alone, and a server that sends a byte now and then would be waited for without end. A request that takes longer is
    left in a daemon thread, which closes what it gets.

    Raises:
        Truncated: they did not arrive in time, or the content is encoded in a way that was not asked for.
        HTTPError: the connection fails.
    """
    seconds = settings.hub_timeout()
    request = session.build_request("GET", url, headers=headers, timeout=seconds)
    whole = max(1.2 * seconds, SHORTEST_DEADLINE)  # longer than httpx waits for one read, whose error says more
    response = within(partial(session.send, request, stream=True), seconds=whole, late=lambda late: late.close())
    try:
        if (encoding := response.headers.get("content-encoding", "identity").lower()) not in ENCODINGS:
            raise Truncated(f"the content is encoded as {ascii(encoding)[:50]}, which was not asked for")
        yield response
    finally:
        response.close()


def _raise_for_status(response: Any) -> None:
    """Raise HfHubHTTPError for a status that is an error, of whose body no more than `LARGEST_ERROR` bytes are read."""
    if response.status_code < 400:
        return
    try:
        body = _read(response, LARGEST_ERROR)
    except (HTTPError, Truncated):  # the status says enough
        body = b""
    headers = {key: value for key, value in response.headers.items() if key.lower() not in OF_THE_BODY}
    hf_raise_for_status(type(response)(response.status_code, headers=headers, content=body, request=response.request))


def _read(response: Any, limit: int) -> bytes:
    """Read at most about `limit` bytes of a body. Raises: as `_in_time`."""
    content = bytearray()
    for chunk in _in_time(response.iter_bytes()):
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def _in_time(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield chunks while they come at `LEAST_RATE`, measured anew every `settings.hub_timeout()` seconds.

    Raises:
        Truncated: they come more slowly.
    """
    seconds, start, received = settings.hub_timeout(), time.monotonic(), 0
    for chunk in chunks:
        received += len(chunk)
        yield chunk
        if (elapsed := time.monotonic() - start) >= seconds:
            if received < LEAST_RATE * elapsed:
                raise TooSlow(f"{received} bytes in {elapsed:.1f} s, which is too slow")
            start, received = time.monotonic(), 0


def _chunks(response: Any, start: int, size: int | None) -> Iterator[bytes]:
    received = start
    for chunk in _in_time(response.iter_bytes()):
        received += len(chunk)
        yield chunk
    if size is not None and received < size and "content-length" not in response.headers:
        raise Truncated(f"ended after {received} of {size} bytes")
