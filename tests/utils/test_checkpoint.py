"""Checkpoints: whole or not there, safetensors and JSON, and refused when they are of another run."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import normalize

from lgd_timm.errors import WeightsError
from lgd_timm.objectives import LGD
from lgd_timm.students.model import Student
from lgd_timm.task import LGDTask
from lgd_timm.utils import checkpoint
from lgd_timm.utils.checkpoint import (
    _to_disk,
    all_checkpoints,
    best_checkpoint,
    load_checkpoint,
    read_score,
    save_checkpoint,
)

IDENTITY = {"seed": 0, "optimizer": {"name": "adamw", "betas": (0.9, 0.95)}}


def make(optimizer: str = "adamw", *, seed: int = 0, ema: bool = True) -> dict[str, Any]:
    """A task, its optimizer and scaler, after `seed` steps on random numbers."""
    torch.manual_seed(seed)
    student = Student(timm.create_model("test_resnet", num_classes=0), embed_dim=8, image_size=32)
    task = LGDTask(student, LGD(normalize(torch.randn(3, 8), dim=1)), device=torch.device("cpu"))
    if ema:
        task.setup_ema(decay=0.5)
    made = create_optimizer_v2(task.student, opt=optimizer, lr=0.1, momentum=0.9)
    for step in range(seed):
        images, teacher = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), torch.randn(4, 8)
        made.zero_grad()
        task(images, teacher)["loss"].backward()
        made.step()
        task.update(teacher)
        if ema:
            task.update_ema(step=step + 1)
    return {
        "modules": task.state_modules,
        "optimizer": made,
        "scaler": torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0 ** (8 + seed)),
    }


def state(made: dict[str, Any]) -> dict[str, Any]:
    modules = {name: module.state_dict() for name, module in made["modules"].items()}
    return {**modules, "optimizer": made["optimizer"].state_dict(), "scaler": made["scaler"].state_dict()}


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_everything_comes_back_bit_equal(tmp_path: Path, optimizer: str) -> None:
    saved = make(optimizer, seed=2)
    path = save_checkpoint(tmp_path, step=7, **saved, identity=IDENTITY, counts={"bad": {"a": "broken"}, "skipped": 3})
    restored = make(optimizer, seed=1)
    assert load_checkpoint(path, **restored, identity=IDENTITY) == (7, {"bad": {"a": "broken"}, "skipped": 3})
    assert_same(state(restored), state(saved))


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, step=1, **make(seed=1), identity=IDENTITY)
    names = ["ema.safetensors", "objective.safetensors", "optimizer.safetensors", "state.json", "student.safetensors"]
    assert sorted(file.name for file in path.iterdir()) == names


def test_without_an_average_there_is_no_file_of_one(tmp_path: Path) -> None:
    saved, restored = make(seed=2, ema=False), make(seed=1, ema=False)
    path = save_checkpoint(tmp_path, step=1, **saved, identity=IDENTITY)
    assert not (path / "ema.safetensors").exists()
    load_checkpoint(path, **restored, identity=IDENTITY)
    assert_same(state(restored), state(saved))


def test_the_last_ones_are_kept_oldest_first(tmp_path: Path) -> None:
    made = make()
    for step in (9, 10, 100, 1000):
        save_checkpoint(tmp_path, step=step, **made, identity=IDENTITY, keep=3)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step-00000010", "step-00000100", "step-00001000"]
    assert all_checkpoints(tmp_path / "nowhere") == []


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, step=3, **make(seed=1), identity=IDENTITY)
    second = make(seed=2)
    path = save_checkpoint(tmp_path, step=3, **second, identity=IDENTITY)
    restored = make()
    load_checkpoint(path, **restored, identity=IDENTITY)
    assert_same(state(restored), state(second))


def test_a_checkpoint_that_fails_midway_leaves_the_earlier_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    save_checkpoint(tmp_path, step=1, **made, identity=IDENTITY)

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.json, "dumps", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, step=2, **made, identity=IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_what_is_not_whole_does_not_count(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, step=1, **make(), identity=IDENTITY)
    partial = Path(shutil.copytree(whole, tmp_path / "step-00000002"))
    (partial / "state.json").unlink()
    assert all_checkpoints(tmp_path) == [whole]


@pytest.mark.parametrize(
    ("identity", "differs"),
    [
        ({**IDENTITY, "seed": 1}, "seed"),
        ({**IDENTITY, "optimizer": {"name": "adamw", "betas": (0.9, 0.99)}}, "optimizer"),
        ({**IDENTITY, "teacher": "abc"}, "teacher"),
        ({"seed": 3, "optimizer": {}}, "seed, optimizer"),
    ],
)
def test_another_runs_checkpoint_is_refused_naming_what_differs(
    tmp_path: Path, identity: dict[str, Any], differs: str
) -> None:
    path = save_checkpoint(tmp_path, step=1, **make(seed=1), identity=IDENTITY)
    made = make(seed=2)
    before = made["modules"]["student"].projector.weight.clone()
    with pytest.raises(WeightsError, match=f"was written by another run: {differs} differ"):
        load_checkpoint(path, **made, identity=identity)
    assert torch.equal(made["modules"]["student"].projector.weight, before)


def test_tuples_agree_with_the_lists_that_json_makes_of_them(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, step=5, **make(), identity=IDENTITY)
    assert json.loads((path / "state.json").read_text())["facts"]["optimizer"]["betas"] == [0.9, 0.95]
    assert load_checkpoint(path, **make(), identity=IDENTITY).step == 5


@pytest.mark.parametrize(
    "name", ["student.safetensors", "ema.safetensors", "objective.safetensors", "optimizer.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path: Path, name: str, damage: str) -> None:
    path = save_checkpoint(tmp_path, step=1, **make(), identity=IDENTITY)
    if damage == "cut":
        (path / name).write_bytes((path / name).read_bytes()[:-9])
    else:
        (path / name).unlink()
    with pytest.raises(
        WeightsError, match=r"step-00000001 can't be restored \(.*\)\. Remove it: the checkpoint before it is used"
    ):
        load_checkpoint(path, **make(), identity=IDENTITY)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, step=1, **make(), identity=IDENTITY)
    other = make()
    other["modules"]["student"].projector = torch.nn.Linear(3, 8)
    with pytest.raises(WeightsError, match="can't be restored"):
        load_checkpoint(path, **other, identity=IDENTITY)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_disk_without_fsync_of_folders_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) or (tmp_path / "all").exists():
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    (tmp_path / "file").touch()
    _to_disk(tmp_path)
    _to_disk(tmp_path / "file")
    (tmp_path / "all").touch()
    with pytest.raises(OSError, match=os.strerror(number)):  # that of a file is needed
        _to_disk(tmp_path / "file")


def flips(path: Path, *, count: int) -> Iterator[None]:
    """Flip one bit after another, evenly spread over a file."""
    whole = path.read_bytes()
    for number in range(count):
        data = bytearray(whole)
        data[number * len(whole) // count] ^= 1 << number % 8
        path.write_bytes(data)
        yield
    path.write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["student.safetensors", "objective.safetensors", "optimizer.safetensors", "state.json"]
)
def test_a_flipped_bit_is_noticed_before_anything_is_used(tmp_path: Path, name: str) -> None:
    path, restored = save_checkpoint(tmp_path, step=7, **make(seed=2), identity=IDENTITY), make(seed=1)
    before = copy.deepcopy(state(restored))
    harmless = 0
    for _ in flips(path / name, count=40):
        try:
            load_checkpoint(path, **restored, identity=IDENTITY)
        except WeightsError:
            assert_same(state(restored), before)
        else:
            harmless += 1
            assert name == "state.json"  # the name of the field that holds the sums: nothing else is other than it was
            restored = make(seed=1)
    assert harmless <= 1


def test_the_last_but_one_is_named(tmp_path: Path) -> None:
    made = make(seed=1)
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step=step, **made, identity=IDENTITY)
    for _ in flips(path / "student.safetensors", count=1):
        with pytest.raises(WeightsError, match="used then, step-00000001"):
            load_checkpoint(path, **made, identity=IDENTITY)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"a": null}', '{"a": "x"}', '{"a": NaN}', '{"a": 1, "b": 2}']
)
def test_a_damaged_score_counts_as_none(tmp_path: Path, content: str) -> None:
    path = save_checkpoint(tmp_path, step=1, **make(), identity=IDENTITY)
    (path / "score.json").write_text(content)
    assert read_score(path) is None
    assert best_checkpoint(tmp_path) is None


@pytest.mark.parametrize("field", ["step", "facts", "optimizer", "scaler", "counts", "sha256"])
@pytest.mark.parametrize("value", [None, [], "x", {"a": 1}, 3.5])
def test_a_state_of_other_types_is_refused(tmp_path: Path, field: str, value: object) -> None:
    made = make(seed=1)
    path = save_checkpoint(tmp_path, step=1, **made, identity=IDENTITY)
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(WeightsError):
        load_checkpoint(path, **made, identity=IDENTITY)


def test_sums_under_a_damaged_name_are_not_taken_for_none(tmp_path: Path) -> None:
    made = make(seed=1)
    path = save_checkpoint(tmp_path, step=1, **made, identity=IDENTITY)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"sha256"', '"sha2%6"'))
    with pytest.raises(WeightsError, match=r"unknown field 'sha2%6'"):
        load_checkpoint(path, **made, identity=IDENTITY)


def test_what_is_being_written_is_not_taken_for_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint._save

    def slow(path: Path, tensors: Any) -> None:
        real(path, tensors)
        checkpoint.drop_unfinished(tmp_path)

    monkeypatch.setattr(checkpoint, "_save", slow)
    path = save_checkpoint(tmp_path, step=1, **make(), identity=IDENTITY)
    assert load_checkpoint(path, **make(), identity=IDENTITY).step == 1
