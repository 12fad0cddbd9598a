"""One file from the Hub into the cache, verified before it has a name there.

The Hub's client is asked for everything but this. Its own downloads were measured (shared/reference/hub.md, section 3): they keep
a flipped byte, over HTTP and Xet alike, give up on a reset, and wait up to 223 s. Here the hash is computed while the bytes come,
so that verification costs no second reading, and a wrong file never gets into the cache, where other libraries would find it.
Addresses, sessions, tokens and errors are the client's.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session

from .. import settings
from ..errors import WeightsError
from ..utils.http import Download, Progress, Retry, over_http
from .api import OTHER_WAY, Snapshot, as_weights_error
from .verify import FileFacts, git_digest, hash_of


def download(name: str, snapshot: Snapshot, blobs: Path, *, token: str | None, progress: Progress) -> Path:
    """Fetch a file of a snapshot as `blobs/HASH`. A wrong one is fetched once more, past all caches on the way, then refused.

    Raises: WeightsError; nothing half-written stays.
    """
    facts = snapshot.files[name]
    digest = hash_of(facts)[1]
    url = hf_hub_url(snapshot.repo_id, name, revision=snapshot.commit, endpoint=constants.ENDPOINT)
    headers = build_hf_headers(token=token, library_name="lgd_timm")
    blobs.mkdir(parents=True, exist_ok=True)
    found = ""
    for again in ({}, {"Cache-Control": "no-cache"}):

        def source(offset: int, again: dict[str, str] = again) -> AbstractContextManager[tuple[int, Iterable[bytes]]]:
            return over_http(get_session(), url, offset, headers={**headers, **again}, size=facts["size"])

        path = blobs / f"{digest}.{secrets.token_hex(4)}.incomplete"
        try:
            with as_weights_error(snapshot.repo_id, snapshot.commit), path.open("wb") as file:
                part = Download(file, digest=partial(_new_digest, facts), most=facts["size"], progress=progress)
                part.receive(source, patience=lambda: Retry(settings.hub_patience()))
            if not (found := _difference(part, facts)):
                blob = blobs / digest
                os.replace(path, blob)
                return blob
        finally:
            path.unlink(missing_ok=True)
        progress(-part.size)
    raise WeightsError(
        f"{snapshot.repo_id} at {snapshot.commit}: {name} {found}, also when fetched again; it was deleted. "
        f"Something between {constants.ENDPOINT} and here alters it. Try another network. {OTHER_WAY}"
    )


def _difference(part: Download, facts: FileFacts) -> str:
    """How what came differs from what was published, in words; nothing when it does not."""
    size, (kind, digest) = facts["size"], hash_of(facts)
    expected = f"{size} bytes with {kind} {digest}"
    found = f"{'more than ' if part.size > size else ''}{part.size} bytes with {kind} {part.hexdigest}"
    return "" if found == expected else f"should have {expected}, but there is {found}"


def _new_digest(facts: FileFacts) -> Any:
    if hash_of(facts)[0] == "sha256":
        return hashlib.sha256()
    return git_digest(facts["size"])
