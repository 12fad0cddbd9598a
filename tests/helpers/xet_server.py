"""What the tests' Hub needs of Xet, the content store that hf_xet speaks to: its formats and its files, no HTTP.

Xet cuts a file into chunks and packs chunks into *xorbs*; a *shard* says which chunks of which xorbs make up a file.
The facts come from the specification in github.com/huggingface/xet-core, folder spec. All hashes are taken at the
client's word (they are BLAKE3, which the standard library lacks, and hf_xet checks none of them when it downloads),
but a file whose content does not have the sha256 that its shard names is refused. `hub_server` has the routes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 65536  # bytes in a chunk that is cut here
FIRST_CHUNK = 40_000  # so that the middle of a file of a round size is never a chunk's header: a flip there is silent
CHUNKS_IN_XORB = 500  # of CHUNK bytes: half of the 64 MiB that a xorb may have
ENTRY = 48  # bytes of everything in a shard
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30  # flags of a shard's file


class XetError(Exception):
    """The client sent what cannot be: its request is answered with 400."""


# ---------------------------------------------------------------------------------------------------------- formats


def hash_text(raw: bytes) -> str:
    """A hash as the protocol writes it: four little-endian numbers, each in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def lz4_frame(data: bytes) -> bytes:
    """Decompress an LZ4 frame, without a look at its checksums."""
    flags = data[4]
    position = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)  # optional: the content's size, a dictionary
    out = bytearray()
    while size := int.from_bytes(data[position : position + 4], "little"):
        position += 4
        end = position + (size & 0x7FFFFFFF)
        if size >> 31:  # this block is not compressed
            out += data[position:end]
        else:
            _lz4_block(data[position:end], out)
        position = end + (4 if flags & 16 else 0)  # a block may have a checksum
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray) -> None:
    """Decompress a block to the end of `out`, into which its matches may reach back."""
    position = 0
    while position < len(block):
        token = block[position]
        length, position = _lz4_length(token >> 4, block, position + 1)
        out += block[position : position + length]
        position += length
        if position >= len(block):
            return  # the last sequence is literals only
        distance = block[position] | block[position + 1] << 8
        length, position = _lz4_length(token & 15, block, position + 2)
        length += 4
        start = len(out) - distance
        if distance >= length:
            out += out[start : start + length]
        else:  # the match overlaps what it writes: a pattern repeats
            out += (out[start:] * (length // distance + 1))[:length]


def _lz4_length(length: int, block: bytes, position: int) -> tuple[int, int]:
    """A length of four bits, continued in bytes if it is 15; with the position after it."""
    more = 255 if length == 15 else 0
    while more == 255:
        more = block[position]
        length += more
        position += 1
    return length, position


def ungroup(data: bytes) -> bytes:
    """Undo the grouping by position in groups of four bytes."""
    out = bytearray(len(data))
    start = 0
    for place in range(4):
        count = (len(data) - place + 3) // 4
        out[place::4] = data[start : start + count]
        start += count
    return bytes(out)


def chunk_spans(xorb: bytes) -> list[tuple[int, int]]:
    """First byte and the byte after the last one of each chunk, header included; what follows the chunks is left."""
    spans, position = [], 0
    while position + 8 <= len(xorb) and xorb[position] == 0:  # the header's version; a footer begins with a letter
        end = position + 8 + int.from_bytes(xorb[position + 1 : position + 4], "little")
        if end > len(xorb):
            raise XetError("A xorb ends within a chunk")
        spans.append((position, end))
        position = end
    return spans


def read_chunk(data: bytes) -> bytes:
    """The content of a chunk."""
    scheme, size, packed = data[4], int.from_bytes(data[5:8], "little"), data[8:]
    if scheme == 0:
        content = packed
    elif scheme in (1, 2):
        content = lz4_frame(packed)
        content = ungroup(content) if scheme == 2 else content
    else:
        raise XetError(f"Unknown compression scheme {scheme}")
    if len(content) != size:
        raise XetError("A chunk has another size than its header says")
    return content


def write_chunk(content: bytes) -> bytes:
    """A chunk that is not compressed."""
    size = len(content).to_bytes(3, "little")
    return b"\0" + size + b"\0" + size + content


def shard_files(shard: bytes) -> Iterator[tuple[str, str, list[list[Any]]]]:
    """The files of a shard: Xet hash, sha256, and the terms [xorb, first chunk, chunk after the last, bytes]."""
    position = ENTRY  # the header's size too

    def entry() -> bytes:
        nonlocal position
        position += ENTRY
        if position > len(shard):
            raise XetError("A shard ends within an entry")
        return shard[position - ENTRY : position]

    while (head := entry())[:32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", head, 32)
        terms = []
        for _ in range(count):
            term = entry()
            _, size, first, last = struct.unpack_from("<4I", term, 32)
            terms.append([hash_text(term[:32]), first, last, size])
        position += ENTRY * count if flags & WITH_VERIFICATION else 0
        if not flags & WITH_SHA256:
            raise XetError("A file in the shard lacks its sha256")
        yield hash_text(head[:32]), hash_text(entry()[:32]), terms


# ------------------------------------------------------------------------------------------------------------ store


class XetStore:
    """`xorbs/<hash>`, `files/<hash>.json` and `hashes/<sha256>` (the Xet hash of a blob) in a folder.

    A file's whole content lies with the blobs of the Hub's own store, whose functions are given.
    """

    def __init__(self, root: Path, get_blob: Callable[[str], bytes], put_blob: Callable[[bytes], str]) -> None:
        self.root, self._get_blob, self._put_blob = root, get_blob, put_blob
        for name in ("xorbs", "files", "hashes"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def xorb_path(self, xorb: str) -> Path:
        return self.root / "xorbs" / xorb

    def put_xorb(self, xorb: str, content: bytes) -> bool:
        """Keep a xorb; false if it was here."""
        if not chunk_spans(content):
            raise XetError("A xorb without chunks")
        if self.xorb_path(xorb).is_file():
            return False
        self.xorb_path(xorb).write_bytes(content)
        return True

    def put_shard(self, shard: bytes) -> None:
        """Put the shard's files together, check them, and keep them as blobs."""
        for file_hash, sha256, terms in shard_files(shard):
            content = b"".join(self._read_term(*term) for term in terms)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise XetError(f"The content of {file_hash} does not have the sha256 {sha256}")
            self._put_blob(content)
            self._put_file(file_hash, sha256, terms)

    def file(self, file_hash: str) -> dict[str, Any] | None:
        """The file of a Xet hash: {sha256, terms}; None if there is no such."""
        path = self.root / "files" / f"{file_hash}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def hash_of(self, sha256: str) -> str:
        """The Xet hash of a blob; one that came without Xet is packed into xorbs now."""
        path = self.root / "hashes" / sha256
        if not path.is_file():
            file_hash = hashlib.sha256(b"file" + sha256.encode()).hexdigest()  # any that is its own will do
            self._put_file(file_hash, sha256, list(self._pack(self._get_blob(sha256))))
        return path.read_text()

    def reconstruction(self, file_hash: str, start: int, end: int, url: Callable[[str], str]) -> dict[str, Any] | None:
        """How to get the bytes `start` to before `end` of a file, `url` telling where a xorb is; None.

        No such bytes.
        """
        terms: list[dict[str, Any]] = []
        position = skipped = 0
        for xorb, first, last, size in (self.file(file_hash) or {"terms": []})["terms"]:
            if position < end and position + size > start:
                skipped = skipped if terms else start - position
                terms.append({"hash": xorb, "unpacked_length": size, "range": {"start": first, "end": last}})
            position += size
        fetch = {term["hash"]: [self._part(term["hash"], terms, url)] for term in terms}
        return {"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch} if terms else None

    def _part(self, xorb: str, terms: list[dict[str, Any]], url: Callable[[str], str]) -> dict[str, Any]:
        """What to fetch of a xorb, in one piece: all chunks from the first that a term needs to the last one."""
        ranges = [term["range"] for term in terms if term["hash"] == xorb]
        first, last = min(span["start"] for span in ranges), max(span["end"] for span in ranges)
        spans = chunk_spans(self.xorb_path(xorb).read_bytes())
        inclusive = {"start": spans[first][0], "end": spans[last - 1][1] - 1}
        return {"range": {"start": first, "end": last}, "url": url(xorb), "url_range": inclusive}

    def _put_file(self, file_hash: str, sha256: str, terms: list[list[Any]]) -> None:
        (self.root / "files" / f"{file_hash}.json").write_text(json.dumps({"sha256": sha256, "terms": terms}))
        (self.root / "hashes" / sha256).write_text(file_hash)

    def _read_term(self, xorb: str, first: int, last: int, size: int) -> bytes:
        if not self.xorb_path(xorb).is_file():
            raise XetError(f"The xorb {xorb} was never uploaded")
        data = self.xorb_path(xorb).read_bytes()
        content = b"".join(read_chunk(data[start:end]) for start, end in chunk_spans(data)[first:last])
        if len(content) != size:
            raise XetError(f"The chunks {first} to {last} of {xorb} do not have {size} bytes")
        return content

    def _pack(self, content: bytes) -> Iterator[list[Any]]:
        """Make xorbs of a file; yields its terms."""
        cuts = [0, *range(FIRST_CHUNK, len(content), CHUNK), len(content)]
        chunks = [content[start:end] for start, end in itertools.pairwise(cuts)]
        for first in range(0, len(chunks), CHUNKS_IN_XORB):
            own = chunks[first : first + CHUNKS_IN_XORB]
            data = b"".join(map(write_chunk, own))
            xorb = hashlib.sha256(b"xorb" + data).hexdigest()
            self.put_xorb(xorb, data)
            yield [xorb, 0, len(own), sum(map(len, own))]
