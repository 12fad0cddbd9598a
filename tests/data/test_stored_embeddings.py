"""Reading stored embeddings: the wanted row and nothing else, or a ShardError that names the sample."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lgd_timm.data.sidecar import npy_header, pack, unpack
from lgd_timm.data.stored_embeddings import StoredEmbeddings
from lgd_timm.data.views import Views
from lgd_timm.errors import ShardError

VIEWS = Views(size=16, count=3)


def unit(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def store(root: Path, files: dict[str, bytes], *, dtype: str = "float16", embed_dim: int = 5) -> StoredEmbeddings:
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return StoredEmbeddings(
        root, {"embed_dim": embed_dim, "dtype": dtype, "views": asdict(VIEWS), "views_fingerprint": VIEWS.fingerprint}
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_each_row_is_read(tmp_path: Path, dtype: str) -> None:
    rows = unit(2, 3, 5)
    stored = store(tmp_path, {f"{key}.npy": npy(pack(rows[i], dtype)) for i, key in enumerate("kl")}, dtype=dtype)
    for reader in (stored, pickle.loads(pickle.dumps(stored))):
        for i, key in enumerate("kl"):
            for view in range(3):
                row = reader.read("a.tar", key, view)
                assert (row.shape, row.dtype) == ((5,), np.float16)
                np.testing.assert_array_equal(row, unpack(pack(rows[i, view], dtype)))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("dim", [1, 5, 384, 1024])
def test_the_header_is_that_of_numpy(dtype: str, dim: int) -> None:
    array = pack(unit(3, dim), dtype)
    assert npy_header(array.shape, dtype) + array.tobytes() == npy(array)


def test_an_array_of_another_writer_is_read(tmp_path: Path) -> None:
    rows = unit(3, 5).astype(np.float16)
    for data in (npy(np.asfortranarray(rows)), version_2(rows)):
        stored = store(tmp_path, {"k.npy": data})
        for view in range(3):
            np.testing.assert_array_equal(stored.read("a.tar", "k", view), rows[view])


def version_2(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(2, 0))
    return buffer.getvalue()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("header", [npy, version_2], ids=["ours", "another"])
def test_a_row_that_is_not_finite_is_refused_and_its_neighbours_are_read(
    tmp_path: Path, value: float, header: Callable
) -> None:
    rows = unit(3, 5).astype(np.float16)
    rows[1, 4] = value
    stored = store(tmp_path, {"k.npy": header(rows)})
    np.testing.assert_array_equal([stored.read("a.tar", "k", view) for view in (0, 2)], rows[[0, 2]])
    with pytest.raises(
        ShardError, match=r"stored embedding of 'k' in .*a\.tar is not finite\. Remove this tar and teach again"
    ):
        stored.read("a.tar", "k", 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((2, 5), np.float16)), r"shape \(2, 5\), expected \(3, 5\)"),
        (npy(np.zeros((5, 3), np.float16)), r"shape \(5, 3\), expected \(3, 5\)"),
        (npy(np.zeros((3, 5), np.float32)), "type float32, expected float16"),
        (npy(np.zeros((3, 5), np.uint16)), "type uint16, expected float16"),
        (npy(np.zeros((3, 5), np.int8)), "type int8, expected float16"),
        (npy(np.array([{}], object), allow_pickle=True), "allow_pickle=False"),
        (npy(np.zeros((3, 5), np.float16))[:-1], "can't be read"),
        (npy(np.zeros((3, 5), np.float16))[:40], "can't be read"),
        (b"", "can't be read"),
        (b"x" * 158, "can't be read"),
        (pickle.dumps([1]), "can't be read"),
    ],
)
def test_what_is_no_such_array_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    for view in range(3):
        with pytest.raises(ShardError, match=rf"stored embedding of 'k' .*{message}.* teach again"):
            store(tmp_path, {"k.npy": data}).read("a.tar", "k", view)


def test_a_tar_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    stored = store(tmp_path, {f"{key}.npy": npy(pack(unit(3, 5), "float16")) for key in "kl"})
    stored.read("a.tar", "k", 0)
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(600)
    with pytest.raises(ShardError, match="stored embedding of 'l' can't be read"):
        stored.read("a.tar", "l", 0)


def test_a_sample_without_an_array(tmp_path: Path) -> None:
    stored = store(tmp_path, {"k.txt": b"", "l.npy": npy(pack(unit(3, 5), "float16"))})
    for key in ("k", "m"):
        with pytest.raises(ShardError, match=f"no stored embedding for '{key}'"):
            stored.read("a.tar", key, 0)


@pytest.mark.parametrize("dim", [1, 16, 1024])
def test_int8_is_close_at_any_width(dim: int) -> None:
    rows = unit(200, dim)
    again = unpack(pack(rows, "int8")).astype(np.float32)
    cosines = (rows * again).sum(1) / np.linalg.norm(again, axis=1)
    assert cosines.min() > 0.9995
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, atol=2e-3)


def test_a_flipped_bit_of_a_header_costs_the_sample(tmp_path: Path) -> None:
    rows = unit(3, 5).astype(np.float16)
    whole, stored = npy(rows), store(tmp_path, {"k.npy": npy(rows)})
    length = len(whole) - rows.nbytes
    for bit in range(8 * length):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        try:
            found = stored._parse(bytes(data), "k")
        except ShardError:
            continue
        np.testing.assert_array_equal(found, rows)  # such as `|f2` for `<f2`


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + bytes(100),
        npy_header((3, 5), "float16").replace(b"(3, 5), }  ", b"(99999999999, 5)}")[:128] + bytes(30),
        npy_header((3, 5), "float16").replace(b"(3, 5)", b"(" * 6) + bytes(30),
        npy_header((3, 5), "float16") + bytes(29),
        npy_header((3, 5), "float16") + bytes(31),
        npy(np.array(["text"])),
        npy(np.zeros(3, dtype=[("a", "f2")])),
        npy(np.array([{}]), allow_pickle=True),
    ],
)
def test_no_other_header_is_parsed(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ShardError, match="'k' can't be read"):
        store(tmp_path, {"k.npy": data})._parse(data, "k")
