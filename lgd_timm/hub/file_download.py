"""Download one file from the Hub into the cache, verified before it gets its name there.

Everything else is left to the Hub's client: addresses, sessions, tokens and errors. Its downloads are not used, because
they keep a flipped byte, over HTTP and Xet alike, give up on a reset connection, and wait up to 223 s
(tests/hub/test_faults.py has each case). Here the hash is computed while the bytes arrive, so that
verification needs no second read, and a wrong file never enters the cache, where other libraries would find it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_url

from .. import settings
from ..errors import WeightsError
from ..utils.http import Body, Download, Progress, Retry, hub_headers, open_session, over_http
from .api import OTHER_WAY, Snapshot, as_weights_error
from .verify import FileFacts, git_digest, hash_of


def download(name: str, snapshot: Snapshot, blobs: Path, *, token: str | None, progress: Progress) -> Path:
    """Download a file of a snapshot as `blobs/HASH`. If it is wrong, try once more without the caches on the way.

    Args:
        name: path in the repository.
        snapshot: has the file's size and hash.
        blobs: folder of the cache for contents.
        token: access token; None: the stored one.
        progress: called with the number of bytes that arrived, negative where they are fetched again.

    Returns:
        The path of the content.

    Raises:
        WeightsError: if the Hub does not answer, or the file is wrong twice. No partial file is left.
    """
    facts = snapshot.files[name]
    digest = hash_of(facts)[1]
    url = hf_hub_url(snapshot.repo_id, name, revision=snapshot.commit, endpoint=constants.ENDPOINT)
    headers = hub_headers(token)
    blobs.mkdir(parents=True, exist_ok=True)
    found = ""
    for more in ({}, {"Cache-Control": "no-cache"}):

        def source(offset: int, more: dict[str, str] = more) -> AbstractContextManager[Body]:
            return over_http(open_session(), url, offset, headers={**headers, **more}, size=facts["size"])

        path = blobs / f"{digest}.{secrets.token_hex(4)}.incomplete"
        try:
            with as_weights_error(snapshot.repo_id, snapshot.commit), path.open("wb") as file:
                received = Download(file, digest=partial(_new_digest, facts), max_size=facts["size"], progress=progress)
                received.run(source, retry=lambda: Retry(settings.hub_patience()))
            if not (found := _difference(received, facts)):
                blob = blobs / digest
                os.replace(path, blob)
                return blob
        finally:
            path.unlink(missing_ok=True)
        progress(-received.size)
    raise WeightsError(
        f"{snapshot.repo_id} at {snapshot.commit}: {name} {found}, also when fetched again; it was deleted. "
        f"Something between {constants.ENDPOINT} and here alters it. Try another network. {OTHER_WAY}"
    )


def _difference(received: Download, facts: FileFacts) -> str:
    """Return how a download differs from the published file, in words; "" if it does not."""
    size, (kind, digest) = facts["size"], hash_of(facts)
    expected = f"{size} bytes with {kind} {digest}"
    found = f"{'more than ' if received.size > size else ''}{received.size} bytes with {kind} {received.hexdigest}"
    return "" if found == expected else f"should have {expected}, but there is {found}"


def _new_digest(facts: FileFacts) -> Any:
    if hash_of(facts)[0] == "sha256":
        return hashlib.sha256()
    return git_digest(facts["size"])
