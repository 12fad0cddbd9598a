"""One flipped bit in a file: it is noticed, or harmless. None loads other numbers.

A few bits of each file in the default run; `pytest -m slow tests/fuzz` flips 200.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lgd_timm.data.index import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.verify_shards import check_shards
from lgd_timm.errors import LGDError, ShardError
from lgd_timm.evaluate.models import find_model
from lgd_timm.publish.folder import load
from lgd_timm.utils.checkpoint import all_checkpoints, check_file, load_checkpoint
from tests.helpers.fuzzing import Refused, survive
from tests.helpers.mutations import flip

FEW, MANY = 6, 200
counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def flipped(path: Path, count: int, *, last: int | None = None) -> Iterator[int]:
    """Flip one bit after the other among the first `last` bytes; the file is whole again afterwards."""
    content = path.read_bytes()
    draw = random.Random(f"{path.name} {count}")
    for _ in range(count):
        bit = draw.randrange(8 * min(len(content), last or len(content)))
        data = bytearray(content)
        flip(data, bit)
        path.write_bytes(data)
        yield bit
    path.write_bytes(content)


def header_size(path: Path) -> int:
    """How many bytes of a safetensors file are its header."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def numbers(model: Any) -> dict[str, Tensor]:
    """A published model's numbers: weights, banks, and how it looks at pictures."""
    student, banks = model.student, model.banks
    visual = {} if banks.visual is None else {"visual": banks.visual, "seen": banks.seen}
    looks = {"mean": student.preprocess.mean, "std": student.preprocess.std}
    return {**student.state_dict(), "text": banks.text, **visual, **looks}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def published(published_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_folder, tmp_path / "published"))


@counts
@pytest.mark.parametrize("name", ["model.safetensors", "lgd.safetensors", "config.json", "metrics.json"])
@pytest.mark.parametrize("part", ["header", "whole"])
def test_published_folders(published: Path, name: str, part: str, count: int) -> None:
    expected, file = numbers(load(published)), published / name
    last = header_size(file) if part == "header" and name.endswith(".safetensors") else None
    for bit in flipped(file, count, last=last):
        found = survive(lambda: numbers(load(published)), case=(name, bit))
        assert isinstance(found, Refused) or same(found, expected), (name, bit)


@counts
def test_headers_of_foreign_weights(published: Path, count: int) -> None:
    for name in ("lgd.safetensors", "recipe.yaml", "metrics.json"):
        (published / name).unlink()
    file = published / "model.safetensors"
    expected = _foreign(published)
    for bit in flipped(file, count, last=header_size(file)):
        found = survive(partial(_foreign, published), case=bit)
        assert isinstance(found, Refused) or same(found, expected), bit


def _foreign(folder: Path) -> dict[str, Tensor]:
    return find_model(f"local-dir:{folder}").network.state_dict()


@counts
def test_checkpoints(run_folder: Path, tmp_path: Path, count: int) -> None:
    checkpoint = Path(
        shutil.copytree(all_checkpoints(run_folder / "checkpoints")[-1], tmp_path / "x" / "step-00000009")
    )
    checkpoint = checkpoint.rename(checkpoint.with_name(all_checkpoints(run_folder / "checkpoints")[-1].name))
    state = _parsed(checkpoint / "state.json")
    files = [path for path in sorted(checkpoint.iterdir()) if path.name != "score.json"]
    for file in files:
        for bit in flipped(file, count):
            found = survive(partial(_check_all, checkpoint, files), case=(file.name, bit))
            same_json = file.suffix == ".json" and _parsed(file) == state  # 1e-05 may have become 1E-05
            assert isinstance(found, Refused) or same_json, (file.name, bit)
        _check_all(checkpoint, files)


def _parsed(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _check_all(checkpoint: Path, files: list[Path]) -> None:
    """Load as a resumed run does: the error comes before anything is used."""
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters())
    for file in files:
        if file.suffix == ".safetensors":
            try:
                check_file(checkpoint, name=file.name)
            except (ValueError, LookupError, TypeError, OSError) as error:
                with pytest.raises(LGDError, match=r"can't be restored|another run"):
                    load_checkpoint(
                        checkpoint,
                        modules={"student": module},
                        optimizer=optimizer,
                        scaler=torch.amp.GradScaler(enabled=False),
                        identity={},
                    )
                raise LGDError(" ".join(str(error).split())) from error


@counts
def test_headers_of_sidecars(taught_folder: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(next(taught_folder.glob("*-light-*")), tmp_path / "stored"))
    name = next(path.name for path in sorted(folder.glob("*.tar")))
    expected = _rows(folder, name)
    tar = IndexedTar(folder / name)
    headers = [
        (start - 512, start + 128) for fields in tar.samples.values() for start, _ in fields.values()
    ]  # of the tar, and of the array
    content, draw, noticed = (folder / name).read_bytes(), random.Random(count), 0
    for _ in range(count):
        start, end = draw.choice(headers)
        bit, data = draw.randrange(8 * start, 8 * end), bytearray(content)
        flip(data, bit)
        (folder / name).write_bytes(data)
        found = survive(lambda: _rows(folder, name), case=bit)
        assert not isinstance(found, Refused), "a bad sample costs a sample"
        assert all(row is None or torch.equal(row, expected[key]) for key, row in found.items()), bit
        noticed += any(row is None for row in found.values())
    assert noticed > 0


def _rows(folder: Path, name: str) -> dict[str, Tensor | None]:
    """The embeddings of each sample that the sound folder has; None of one that is refused."""
    stored, rows = open_stored(folder), {}
    for key in (*IndexedTar(folder / name).keys, *KEYS.setdefault(name, IndexedTar(folder / name).keys)):
        try:
            rows[key] = torch.stack([torch.tensor(stored.read(name, key, view)) for view in range(stored.views.count)])
        except ShardError:
            rows[key] = None
    return {key: rows[key] for key in KEYS[name]}


KEYS: dict[str, tuple[str, ...]] = {}


@counts
def test_indexes(shard_folder: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))

    def read() -> tuple[object, ...]:
        shards = open_shards(folder, split="train")
        return (shards.filenames, shards.lengths, tuple(IndexedTar(shards.path(n)).keys for n in range(3)))

    expected = read()
    for bit in flipped(folder / "_info.json", count):
        found = survive(read, case=bit)
        if not isinstance(found, Refused) and found != expected:
            report = survive(lambda: check_shards(folder), case=bit)
            assert isinstance(report, Refused) or report.problems, bit


def test_a_reader_that_hangs_or_falls_is_noticed() -> None:
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        survive(lambda: 1 / 0, case="x")
