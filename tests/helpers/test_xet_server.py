"""The tests' Xet service against the true client, huggingface_hub with hf_xet, each time in a fresh process."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from tests.helpers import xet_server
from tests.helpers.hub_fixtures import CARD, environment, publish, run_script
from tests.helpers.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from tests.helpers.xet_server import XetError, XetStore, lz4_frame, ungroup, write_chunk

PUSH = """
import json, os
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi

api = HfApi()
api.create_repo("me/x", exist_ok=True)
files = [CommitOperationAdd(path.name, path) for path in sorted(Path(os.environ["FOLDER"]).iterdir())]
print(json.dumps(api.create_commit("me/x", files, commit_message="pushed").oid))
"""

PULL = """
import hashlib, json, os
from pathlib import Path
from huggingface_hub import hf_hub_download

def pull(name):
    try:
        return hashlib.sha256(Path(hf_hub_download(os.environ["REPO"], name)).read_bytes()).hexdigest()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({name: pull(name) for name in os.environ["FILES"].split()}))
"""

SNAPSHOT = """
import hashlib, json, os
from pathlib import Path
from huggingface_hub import snapshot_download

folder = Path(snapshot_download(os.environ["REPO"]))
print(json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}))
"""

QUICK = {  # hf_xet's own: 5 times with 3 seconds and more between them, and 5 minutes without a byte
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
    "HF_XET_CLIENT_READ_TIMEOUT": "1s",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weights() -> bytes:
    """3 MB that hf_xet compresses in every way it has, and that repeats chunks."""
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    noise = torch.randn(400, 1000) * 0.02
    return save(
        {"a": noise, "half": noise.half(), "zero": torch.zeros(200_000), "byte": torch.randint(255, (50_001,)).byte()}
    )


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with HubServer(tmp_path / "store", xet=True) as server:
        yield server


def with_xet(server: HubServer, home: Path, **settings: str) -> dict[str, str]:
    return environment(server.url, home, **{"HF_HUB_DISABLE_XET": "0", **settings})


def requests(server: HubServer, method: str, path: str) -> list[str]:
    return [request.path for request in server.log if request.method == method and path in request.path]


def test_what_is_pushed_with_xet_is_pulled_with_it_and_without(server: HubServer, tmp_path: Path) -> None:
    files = {"model.safetensors": weights(), "config.json": b'{"a": 1}', "README.md": CARD.encode()}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    expected = {name: sha256(content) for name, content in files.items()}
    commit = run_script(PUSH, with_xet(server, tmp_path / "home1", HF_TOKEN=WRITE_TOKEN, FOLDER=str(folder)))
    assert server.store.repo("me/x").branches == {"main": commit}
    assert len(requests(server, "POST", "/v1/xorbs/")) == 1
    assert not requests(server, "PUT", "/"), "it went the way of LFS"
    assert server.store.blob_path(expected["model.safetensors"]).read_bytes() == files["model.safetensors"]

    for home in ("home1", "home2"):  # the pusher, who remembers its chunks, and another one
        server.log.clear()
        again = run_script(PUSH, with_xet(server, tmp_path / home, HF_TOKEN=WRITE_TOKEN, FOLDER=str(folder)))
        assert again == commit, "the same files made another commit"
        assert not requests(server, "POST", "/v1/xorbs/"), "content was sent again"

    ask = {"REPO": "me/x", "FILES": " ".join(files)}
    server.log.clear()
    assert run_script(PULL, with_xet(server, tmp_path / "home3", **ask)) == expected
    assert [path.split("/")[3:] for path in requests(server, "GET", "/xorb/")] == [["me", "x", "model.safetensors"]]
    assert not requests(server, "GET", "/cdn/")
    server.log.clear()
    assert run_script(PULL, environment(server.url, tmp_path / "home4", **ask)) == expected
    assert requests(server, "GET", "/cdn/")
    assert not requests(server, "GET", "/xorb/")


def test_what_came_without_xet_is_pulled_with_it(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xet_server, "CHUNKS_IN_XORB", 3)
    files = {"model.safetensors": random.Random(0).randbytes(500_000), "small.bin": b"small", "config.json": b"{}"}
    publish(server, "me/x", files)
    expected = {name: sha256(content) for name, content in files.items()}
    environ = with_xet(server, tmp_path / "home", REPO="me/x", FILES=" ".join(files))
    assert run_script(PULL, environ) == expected
    assert len(requests(server, "GET", "/xorb/")) == 4, "3 xorbs of 3 chunks, and 1"
    snapshot = run_script(SNAPSHOT, with_xet(server, tmp_path / "home2", REPO="me/x"))
    assert {name: snapshot[name] for name in files} == expected


def test_hf_xet_does_not_notice_a_flipped_byte(server: HubServer, tmp_path: Path) -> None:
    """The client's fault, which is why `lgd_timm.hub` checks; if this fails one day, so much the better."""
    content = bytearray(random.Random(0).randbytes(200_000))
    for repo in ("me/x", "me/y"):
        publish(server, repo, {"model.safetensors": bytes(content)})
    place = 150_000
    server.faults.add("flip", "model.safetensors$", value=place + 3 * 8, times=1)  # it lies in the third chunk
    pulled = run_script(PULL, with_xet(server, tmp_path / "home", REPO="me/x", FILES="model.safetensors"))
    content[place] ^= 1
    assert pulled == {"model.safetensors": sha256(bytes(content))}

    server.log.clear()
    other = run_script(PULL, with_xet(server, tmp_path / "home", REPO="me/y", FILES="model.safetensors"))
    assert other == pulled, "the other repository got other bytes than the cache's shared store has"
    assert not any(request.cdn for request in server.log)


@pytest.mark.parametrize("kind", ["status", "cut", "reset", "nolength", "stall", "hang"])
def test_broken_xorbs(server: HubServer, tmp_path: Path, kind: str) -> None:
    """hf_xet fails soon if it is told to, and gets over what happens once."""
    content = random.Random(0).randbytes(200_000)
    publish(server, "me/x", {"model.safetensors": content})
    value = {"status": 503, "stall": 60, "hang": 0}.get(kind, 100_000)
    server.faults.add(kind, "model.safetensors$", value=value, times=2)
    ask = with_xet(server, tmp_path / "home", REPO="me/x", FILES="model.safetensors", **QUICK)
    assert run_script(PULL, ask)["model.safetensors"].startswith("RuntimeError: ")
    server.faults.clear()
    server.faults.add(kind, "model.safetensors$", value=value, times=1)
    assert run_script(PULL, ask) == {"model.safetensors": sha256(content)}


def call(url: str, token: str | None, body: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    request = Request(url, data=body, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_tokens_of_the_cas(server: HubServer) -> None:
    publish(server, "me/x", {"model.bin": b"x" * 1000})
    server.set_private("me/x")
    api = f"{server.url}/api/models/me/x"
    assert [call(f"{api}/xet-read-token/main", token)[0] for token in (None, READ_TOKEN, WRITE_TOKEN)] == [
        401,
        200,
        200,
    ]
    assert [call(f"{api}/xet-write-token/main", token)[0] for token in (None, READ_TOKEN, WRITE_TOKEN)] == [
        401,
        403,
        200,
    ]
    assert call(f"{api}/xet-read-token/none", READ_TOKEN)[0] == 404

    read, write = (call(f"{api}/xet-{scope}-token/main", WRITE_TOKEN)[1] for scope in ("read", "write"))
    assert read["casUrl"] == server.cas_url
    xorb = f"{server.cas_url}/v1/xorbs/default/{'0' * 64}"
    tokens = (None, WRITE_TOKEN, read["accessToken"], write["accessToken"])
    assert [call(xorb, token, write_chunk(b"content"))[0] for token in tokens] == [401, 401, 403, 200]
    assert call(xorb, write["accessToken"], write_chunk(b"content"))[1] == {"was_inserted": False}
    assert call(xorb, write["accessToken"], b"no chunk")[0] == 400

    file = f"{server.cas_url}/v1/reconstructions/{server.store.xet.hash_of(sha256(b'x' * 1000))}"
    assert [call(file, token)[0] for token in tokens] == [401, 401, 200, 200]
    assert call(file[:-1] + "x", read["accessToken"])[0] == 404


def test_without_the_option_there_is_no_xet(tmp_path: Path) -> None:
    with HubServer(tmp_path / "store") as server:
        publish(server, "me/x", {"model.bin": b"x" * 1000})
        assert call(f"{server.url}/api/models/me/x/xet-write-token/main", WRITE_TOKEN)[0] == 404
        assert all("xetHash" not in entry for entry in call(f"{server.url}/api/models/me/x/tree/main", None)[1])
        connection = HTTPConnection(urlsplit(server.url).netloc, timeout=5)  # which does not follow the redirection
        connection.request("HEAD", "/me/x/resolve/main/model.bin")
        headers = connection.getresponse().headers
        connection.close()
        assert (headers["X-Linked-Size"], headers["X-Xet-Hash"], headers["Link"]) == ("1000", None, None)


def entry(name: bytes, *numbers: int) -> bytes:
    return name.ljust(32, b"\0") + struct.pack("<4I", *numbers, *[0] * (4 - len(numbers)))


def shard(digest: bytes, size: int) -> bytes:
    """A shard with one file: the first two chunks of the xorb "x"."""
    return b"".join(
        [
            entry(b"header"),
            entry(b"file", xet_server.WITH_VERIFICATION | xet_server.WITH_SHA256, 1),
            entry(b"x", 0, size, 0, 2),
            entry(b"verification"),
            entry(struct.pack("<4Q", *struct.unpack(">4Q", digest))),  # so that its text is the digest's
            b"\xff" * 32 + b"\0" * 16,
        ]
    )


def test_a_shard_is_refused_unless_its_files_are_whole_and_right(tmp_path: Path) -> None:
    blobs: dict[str, bytes] = {}

    def put(content: bytes) -> str:
        blobs[sha256(content)] = content
        return sha256(content)

    store = XetStore(tmp_path, blobs.__getitem__, put)
    right = hashlib.sha256(b"onetwo")
    with pytest.raises(XetError, match="never uploaded"):
        store.put_shard(shard(right.digest(), 6))
    name = xet_server.hash_text(b"x".ljust(32, b"\0"))
    with pytest.raises(XetError, match="ends within"):
        store.put_xorb(name, write_chunk(b"one")[:-1])
    store.put_xorb(name, b"".join(map(write_chunk, (b"one", b"two", b"three"))) + b"XETBLOB and so on")
    for bad, message in (
        (shard(hashlib.sha256(b"other").digest(), 6), "does not have the sha256"),
        (shard(right.digest(), 7), "do not have 7 bytes"),
        (shard(right.digest(), 6)[:-60], "ends within"),
    ):
        with pytest.raises(XetError, match=message):
            store.put_shard(bad)
        assert blobs == {}
    store.put_shard(shard(right.digest(), 6))
    assert blobs == {right.hexdigest(): b"onetwo"}
    assert store.hash_of(right.hexdigest()) == xet_server.hash_text(b"file".ljust(32, b"\0"))
    assert store.reconstruction(store.hash_of(right.hexdigest()), 6, 9, str) is None
    assert store.reconstruction(store.hash_of(right.hexdigest()), 4, 9, str) == {
        "offset_into_first_range": 4,
        "terms": [{"hash": name, "unpacked_length": 6, "range": {"start": 0, "end": 2}}],
        "fetch_info": {name: [{"range": {"start": 0, "end": 2}, "url": name, "url_range": {"start": 0, "end": 21}}]},
    }


def test_decompression() -> None:
    """By hand: 20 times "ab" as a match that overlaps itself, then a block that is not compressed."""
    block = b"\x2f" + b"ab" + b"\x02\0" + bytes([38 - 4 - 15]) + b"\x10" + b"!"
    frame = b"\x04\x22\x4d\x18" + b"\x60\x40\x82" + len(block).to_bytes(4, "little") + block
    frame += (3 | 1 << 31).to_bytes(4, "little") + b"end" + b"\0" * 4
    assert lz4_frame(frame) == b"ab" * 20 + b"!end"
    assert ungroup(b"aebfcgd") == b"abcdefg"
