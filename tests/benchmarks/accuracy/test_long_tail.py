"""The long-tailed draw: how many images each class keeps, and embeddings that fit them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accuracy.long_tail import TAIL, write
from lgd_timm.data import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.data.subset import keys_by_class
from lgd_timm.data.verify_shards import check_shards
from lgd_timm.errors import LGDError


def test_class_k_keeps_its_share_and_each_image_its_embedding(taught_folder: Path, tmp_path: Path) -> None:
    taught, out = next(taught_folder.glob("*-light-*")), tmp_path / "tail"
    count = write(taught_folder, embeddings=taught.name, out=out)
    whole, tail = (keys_by_class(open_shards(folder, split="train")) for folder in (taught_folder, out))
    assert [len(tail[k]) for k in whole] == [round(len(whole[k]) * TAIL**k) for k in whole]
    assert len(tail[0]) > len(tail[max(tail)])
    assert count == sum(map(len, tail.values()))
    assert all({*tail[k]} <= {*whole[k]} for k in whole)
    report = check_shards(out, split="train")
    assert not report.problems
    assert report.embeddings == 1
    before, after = open_stored(taught), open_stored(out / f"{taught.name}-long_tail")
    for name in open_shards(out, split="train").filenames:
        assert all((after.rows(name, key) == before.rows(name, key)).all() for key in after.tar(name).keys)
    for name in open_shards(out, split="val").filenames:
        assert (out / name).read_bytes() == (taught_folder / name).read_bytes()


def test_a_folder_that_exists_is_left_alone(taught_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LGDError, match="exists"):
        write(taught_folder, embeddings=next(taught_folder.glob("*-light-*")).name, out=tmp_path)
    assert not list(tmp_path.iterdir())
