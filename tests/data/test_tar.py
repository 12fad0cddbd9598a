"""Headers of a tar that hang its reader, or that tarfile can not read: damage is noted, what is whole is read."""

import random
import signal
import tarfile
from collections.abc import Iterator

import pytest

from lgd_timm.data.tar import IndexedTar


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A reader that hangs fails, and does not stop the suite."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    pytest.fail("the reader hangs")


def header(name: str, *, size: int = 0, kind: bytes = b"0", raw_size: bytes | None = None) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    if raw_size is not None:
        block[124:136] = raw_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def record(key: bytes, value: bytes) -> bytes:
    text = b"%s=%s\n" % (key, value)
    length = len(text) + 2
    while len(b"%d " % length) + len(text) != length:
        length = len(b"%d " % length) + len(text)
    return b"%d " % length + text


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    content = b"".join(records)
    return header("pax", size=len(content), kind=kind) + padded(content) + header("b.jpg", size=3) + padded(b"abc")


GOOD, END = header("good.jpg", size=3) + padded(b"abc"), bytes(1024)
NEGATIVE = b"\xff" + (-512 & (1 << 88) - 1).to_bytes(11, "big")
CASES = {
    "a negative size": header("a.jpg", raw_size=NEGATIVE),
    "a size of 2^87": header("a.jpg", raw_size=b"\x80" + (1 << 87).to_bytes(11, "big")),
    "a negative size in pax": pax(record(b"size", b"-1536")),
    "a negative size in pax of all": pax(record(b"size", b"-1536"), kind=b"g"),
    "digits 8 and 9 in an octal size": header("a.jpg", raw_size=b"00000000089\0") + padded(b"abc"),
    "a sparse map that is none": pax(record(b"GNU.sparse.map", b"x"), record(b"GNU.sparse.size", b"3")),
    "a sparse map of one number": pax(record(b"GNU.sparse.map", b"1"), record(b"GNU.sparse.size", b"3")),
    "a sparse version": pax(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.minor", b"0")),
    "3000 long names": b"".join(header("././@LongLink", size=5, kind=b"L") + padded(b"abcd\0") for _ in range(3000))
    + header("x.jpg", size=3)
    + padded(b"abc"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_header_is_damage_and_costs_no_other_sample(tmp_path, case):
    path = tmp_path / "t.tar"
    path.write_bytes(GOOD + CASES[case] + END)
    tar = IndexedTar(path)
    assert tar.damage
    assert tar.damage.isprintable()
    assert tar.read("good", "jpg") == b"abc"


def test_flipped_bits_of_headers_end_in_damage_or_another_sample(tmp_path):
    rng, path = random.Random(0), tmp_path / "t.tar"
    whole = GOOD + header("a.jpg", size=3) + padded(b"abc") + pax(record(b"mtime", b"1.5")) + END
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        tar = IndexedTar(path)
        for key, fields in tar.samples.items():
            assert all(len(tar.read(key, field)) == size for field, (_, size) in fields.items())
