"""Write and read checkpoints: safetensors and JSON, without pickle, complete or absent.

checkpoints/step-00001234/   a file for each module, optimizer.safetensors state.json [score.json]

A distillation's modules are student.safetensors [ema.safetensors] objective.safetensors.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import WeightsError
from .files import changed_keys, explain_full_disk, new_folder, sha256_of, write_json
from .schema import Size
from .typed_json import JSONError, read_json

UNFINISHED = ".step-"  # prefix of folders that are being written
SCORE = "score.json"
# What a damaged file raises, in reading or where its content is put to use.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, RecursionError, SafetensorError)
GROUP = "group"  # prefix of the keys of tensors that belong to a group of parameters


_writing: set[Path] = set()  # folders that this process is writing


class Progress(NamedTuple):
    """How many steps a run has taken, and what it has counted."""

    step: int
    counts: Mapping[str, Any]


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    identity: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write the checkpoint `folder/step-<step>`, and remove all others but the last `keep` and the best.

    It is synced to the disk before it gets its name, so that it survives a crash of the machine. It holds no random
    state: what a step draws depends on the seed and the step's number alone.

    Args:
        folder: of all checkpoints of the run.
        step: how many steps the run has taken.
        modules: what is saved, by file name.
        optimizer: whose state is saved.
        scaler: whose state is saved.
        identity: what a resumed run must have in common with this one (JSON).
        counts: what a resumed run goes on counting (JSON).
        keep: how many of the last checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(folder, prefix=UNFINISHED)
    _writing.add(temporary)
    try:
        tensors, groups = _flatten(optimizer.state_dict())
        for name, module in modules.items():
            _save(temporary / f"{name}.safetensors", module.state_dict())
        _save(temporary / "optimizer.safetensors", tensors)
        state = {
            "step": step,
            "facts": dict(identity),
            "optimizer": groups,
            "scaler": scaler.state_dict(),
            "counts": dict(counts or {}),
        }
        state["sha256"] = {
            **{path.name: sha256_of(path) for path in sorted(temporary.iterdir())},
            "state.json": _sum_of_state(state),
        }
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _to_disk(path)
        final = checkpoint_at(folder, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _to_disk(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _writing.discard(temporary)
    drop_old(folder, keep=keep)
    return final


def checkpoint_at(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint, which need not exist."""
    return folder / f"step-{step:08d}"


def all_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def note_score(checkpoint: Path, score: float, *, name: str = "zero_shot_top1") -> None:
    """Save the score of a checkpoint's model, the greater the better: the best checkpoint is not removed."""
    write_json(checkpoint / SCORE, {name: score})


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the highest score, the earlier of equal ones; None where none has a score."""
    scored = {path: score for path in all_checkpoints(folder) if (score := read_score(path)) is not None}
    return max(scored, key=scored.__getitem__, default=None)


def drop_old(folder: Path, *, keep: int) -> None:
    """Remove all checkpoints but the last `keep` and the best."""
    best = best_checkpoint(folder)
    for old in all_checkpoints(folder)[:-keep]:
        if old != best:
            shutil.rmtree(old)


def drop_unfinished(folder: Path) -> None:
    """Remove what was being written when a process was killed. No other process may be writing here."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path not in _writing:
            shutil.rmtree(path)


def read_score(checkpoint: Path) -> float | None:
    """Return the score that `note_score` saved; None where there is none, or it is damaged."""
    try:
        scores: dict[str, float] = read_json(checkpoint / SCORE, dict[str, float])
    except (OSError, JSONError):  # none, or damaged: it is scored anew
        return None
    return next(iter(scores.values())) if len(scores) == 1 else None


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # which has no handles for folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # CIFS, VirtualBox and some FUSE disks have no fsync of folders; that of files is needed
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)):
            raise
    finally:
        os.close(handle)


def load_checkpoint(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    identity: Mapping[str, Any],
) -> Progress:
    """Restore modules, optimizer and scaler in place. Arguments as of `save_checkpoint`.

    Returns:
        How many steps the run had taken, and what it had counted.

    Raises:
        WeightsError: the checkpoint is damaged, or of a run with another identity.
    """
    try:
        return _load(path, modules=modules, optimizer=optimizer, scaler=scaler, identity=identity)
    except WeightsError:
        raise
    except DAMAGE as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        others = [other.name for other in all_checkpoints(path.parent) if other.name < path.name]
        raise WeightsError(
            f"{path} can't be restored ({reason}). Remove it: the checkpoint before it is used then"
            f"{f', {others[-1]}' if others else ''}."
        ) from error


def _load(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    identity: Mapping[str, Any],
) -> Progress:
    state = _read_state(path)
    if other := changed_keys(state["facts"], identity):
        raise WeightsError(
            f"{path} was written by another run: {', '.join(other)} differ. "
            "Use the same recipe and data, or another output folder."
        )
    _check_sums(path, state.get("sha256"), names=[f"{name}.safetensors" for name in (*modules, "optimizer")])
    for name, module in modules.items():
        module.load_state_dict(load_file(path / f"{name}.safetensors"))
    tensors = load_file(path / "optimizer.safetensors")
    optimizer.load_state_dict(_unflatten(tensors, state["optimizer"]))
    scaler.load_state_dict(state["scaler"])
    return Progress(int(state["step"]), state.get("counts", {}))


class _State(TypedDict):
    step: Size
    facts: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


class _StateAndSums(_State, total=False):
    counts: dict[str, Any]
    sha256: dict[str, str]


def _read_state(path: Path) -> dict[str, Any]:
    """Read `state.json`, checking the types of its fields. Raises: ValueError, OSError."""
    try:
        state: dict[str, Any] = read_json(path / "state.json", _StateAndSums)
    except JSONError as error:
        raise ValueError(f"state.json: {error}") from error
    if unknown := state.keys() - get_type_hints(_StateAndSums).keys():  # such as "sha256" with a flipped bit
        raise ValueError(f"state.json has an unknown field {ascii(min(unknown))[:80]}")
    if not path.name.endswith(f"-{state['step']:08d}"):
        raise ValueError("state.json is of another checkpoint")
    if "sha256" in state and state["sha256"].get("state.json") != _sum_of_state(state):
        raise ValueError("state.json is not what was written")
    return state


def _sum_of_state(state: Mapping[str, Any]) -> str:
    """Hash what a `state.json` says beside its sums."""
    plain = json.loads(json.dumps({key: value for key, value in state.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_file(path: Path, *, name: str) -> None:
    """Check a file of a checkpoint against the sum that was written beside it, before its content is used.

    Args:
        path: the checkpoint.
        name: the file's.

    Raises:
        ValueError, LookupError, TypeError, OSError: it differs, or `state.json` is damaged.
    """
    _check_sums(path, _read_state(path).get("sha256"), names=[name])


def _check_sums(path: Path, sums: Any, *, names: Sequence[str]) -> None:
    """Compare the files with the sums that were written beside them. Raises: ValueError, OSError."""
    if sums is None:
        return  # of a version that wrote none
    for name in names:
        if (found := sha256_of(path / name)) != sums.get(name):
            raise ValueError(f"{name} has sha256 {found}, and should have {ascii(sums.get(name))[:80]}")


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with explain_full_disk(path):
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, by `<parameter>/<name>` or `group<number>/<name>`, and JSON."""
    tensors, values, groups = {}, {}, []
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                values[f"{index}/{name}"] = value
    for number, group in enumerate(state["param_groups"]):  # timm's LAMB counts its steps there
        tensors |= {f"{GROUP}{number}/{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({name: value for name, value in group.items() if not isinstance(value, Tensor)})
    return tensors, {"values": values, "param_groups": groups}


def _unflatten(tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    groups = [dict(group) for group in saved["param_groups"]]
    for key, value in {**tensors, **saved["values"]}.items():
        owner, name = key.split("/", 1)
        if owner.startswith(GROUP):
            groups[int(owner.removeprefix(GROUP))][name] = value
        else:
            state.setdefault(int(owner), {})[name] = value
    return {"state": state, "param_groups": groups}
