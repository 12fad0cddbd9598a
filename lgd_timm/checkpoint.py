"""Checkpoints: safetensors and JSON, no pickle, whole or not there.

checkpoints/step-00001234/   student.safetensors [ema.safetensors] objective.safetensors optimizer.safetensors state.json
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import WeightsError
from .files import differing
from .task import LGDTask


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    task: LGDTask,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    facts: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder/step-<step>` and drop all but the last `keep`. `facts` must hold what a resumed run has to agree on."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
    try:
        tensors, groups = _flatten(optimizer.state_dict())
        _save(temporary / "student.safetensors", task.student.state_dict())
        if task.has_ema():
            _save(temporary / "ema.safetensors", task.ema_student.state_dict())
        _save(temporary / "objective.safetensors", task.objective.state_dict())
        _save(temporary / "optimizer.safetensors", {**tensors, "rng": torch.get_rng_state()})
        state = {"step": step, "facts": dict(facts), "optimizer": groups, "scaler": scaler.state_dict()}
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        final = folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def all_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(
    path: Path,
    *,
    task: LGDTask,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    facts: Mapping[str, Any],
) -> int:
    """Restore everything; returns the step to go on with. Raises: WeightsError when the run is another one, or damaged."""
    try:
        return _load(path, task=task, optimizer=optimizer, scaler=scaler, facts=facts)
    except (OSError, KeyError, json.JSONDecodeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} can't be restored ({reason}). Remove it: the checkpoint before it is used then.") from error


def _load(path: Path, *, task: LGDTask, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, facts: Mapping[str, Any]) -> int:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if other := differing(state["facts"], facts):
        raise WeightsError(
            f"{path} was written by another run: {', '.join(other)} differ. Use the same recipe and data, or another output folder."
        )
    task.student.load_state_dict(load_file(path / "student.safetensors"))
    if task.has_ema():
        task.ema_student.load_state_dict(load_file(path / "ema.safetensors"))
    task.objective.load_state_dict(load_file(path / "objective.safetensors"))
    tensors = load_file(path / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("rng"))
    optimizer.load_state_dict(_unflatten(tensors, state["optimizer"]))
    scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state: tensors by `<parameter>/<name>`, and what JSON can hold."""
    tensors, values = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                values[f"{index}/{name}"] = value
    return tensors, {"values": values, "param_groups": state["param_groups"]}


def _unflatten(tensors: Mapping[str, Tensor], groups: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **groups["values"]}.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups["param_groups"]}
