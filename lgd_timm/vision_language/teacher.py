"""A frozen teacher: computed with every batch, or its states of the last block stored once and read.

    FOLDER/  hidden.npy float16 [N, V, T, D]  attention.npy float16 [N, V, H, T, T]  states.json

N samples in V variants (maskings, captions); T tokens: the longest text, names and regions that the recipe allows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..data.sidecar import open_npy
from ..errors import TeacherError
from ..utils.distributed import Ranks
from ..utils.files import atomic_folder, fingerprint, write_json
from ..utils.progress import progress_bar
from ..utils.typed_json import JSONError, read_json
from .batch import Batch, TrainingSet, collate
from .learner import Taught, task_logits
from .losses.blocks import States
from .model import Output
from .stock import AnyModel

log = logging.getLogger(__name__)

FACTS = "states.json"


class Teacher(Protocol):
    """Says what a batch's states should be."""

    def __call__(self, batch: Batch) -> Taught:
        """Give states and logits, without a gradient, on the batch's device."""


class OnlineTeacher:
    """A teacher that is computed with every batch, on its own features of the student's boxes."""

    def __init__(self, model: AnyModel) -> None:
        self._model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Taught:
        seen = batch.of_teacher()
        out = self._model(seen, states=True)
        assert out.states is not None
        return Taught(out.states, task_logits(self._model, out, seen))


class StoredTeacher:
    """A teacher whose states of the last block were stored; its heads are computed on them.

    Args:
        folder: of the states.
        model: the teacher, for its heads.
        places: index of each part's first token: text, names, regions.
    """

    def __init__(self, folder: Path, model: AnyModel, *, places: tuple[int, int, int]) -> None:
        self._model, self._places = model.requires_grad_(False).eval(), places
        self._hidden, self._attention = (_stored(folder / name) for name in ("hidden.npy", "attention.npy"))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Taught:
        device, kept = batch.words.device, stored_places(batch, self._places)
        items = [tuple(item) for item in batch.items.tolist()]
        hidden = torch.from_numpy(np.stack([self._hidden[item][kept] for item in items])).to(device).float()
        rows = np.stack([self._attention[item][:, kept][:, :, kept] for item in items])
        states = States([hidden], [torch.from_numpy(rows).to(device).float()], batch.valid)
        return Taught(states, task_logits(self._model, Output(hidden), batch))


def _stored(path: Path) -> np.ndarray[Any, Any]:
    """Open an array of states on the disk. Raises: TeacherError where it is damaged."""
    try:
        return open_npy(path)
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{path} can't be read ({error}). Remove its folder: the teacher's states are computed anew."
        ) from error


def stored_places(batch: Batch, starts: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Indices of a batch's tokens among the longest text, names and regions, int64 [T]."""
    counts = (batch.words.shape[1], batch.tags.shape[1], batch.boxes.shape[1])
    return np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)])


def store_states(
    folder: Path,
    data: TrainingSet,
    model: AnyModel,
    *,
    regions: int,
    facts: dict[str, Any],
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
) -> StoredTeacher:
    """Open a teacher's stored states, and compute them first where there are none.

    Args:
        folder: of the states, which is made.
        data: the training set, with the teacher's features.
        model: the teacher.
        regions: of an image, at most.
        facts: what decides the states: those that are found must have been made with the same (JSON).
        batch_size: samples at once.
        device: where they are computed.
        ranks: the first computes, the others wait.

    Raises:
        TeacherError: the folder holds states of something else.
    """
    text = data.encoder.text
    places = (0, text.length, text.length + text.tags)
    tokens = text.length + text.tags + regions
    if ranks.first and not folder.is_dir():
        with atomic_folder(folder) as temporary:
            _write(
                temporary,
                data,
                OnlineTeacher(model),
                places=places,
                tokens=tokens,
                batch_size=batch_size,
                device=device,
            )
            write_json(temporary / FACTS, {"fingerprint": fingerprint(facts), **facts})
    ranks.wait()
    _check(folder, facts)
    return StoredTeacher(folder, model, places=places)


def _check(folder: Path, facts: dict[str, Any]) -> None:
    """Raises: TeacherError where the stored states are not those of these facts."""
    try:
        found = read_json(folder / FACTS, dict[str, Any])
    except (OSError, JSONError) as error:
        raise TeacherError(f"{folder} holds no teacher's states ({error}). Name a new folder.") from error
    if found.get("fingerprint") != fingerprint(facts):
        other = [name for name, value in facts.items() if found.get(name) != value]
        raise TeacherError(
            f"{folder} holds the states of another teacher or other data: {', '.join(other)} differ. Name another "
            "folder in distillation.stored, or remove it."
        )


def _write(
    folder: Path,
    data: TrainingSet,
    teacher: Teacher,
    *,
    places: tuple[int, int, int],
    tokens: int,
    batch_size: int,
    device: torch.device,
) -> None:
    hidden = attention = None
    items = [(index, variant) for index in range(len(data)) for variant in range(data.variants)]
    for start in progress_bar(range(0, len(items), batch_size), desc="teacher", unit="batch"):
        batch = items[start : start + batch_size]
        made = collate([data[item] for item in batch]).to(device)
        states = teacher(made).states
        kept = stored_places(made, places)
        last, heads = states.hidden[-1].half().cpu(), states.attention[-1].half().cpu()
        if hidden is None or attention is None:
            shape = (len(data), data.variants)
            hidden = _array(folder / "hidden.npy", (*shape, tokens, last.shape[2]))
            attention = _array(folder / "attention.npy", (*shape, heads.shape[1], tokens, tokens))
        for row, item in enumerate(batch):
            hidden[item][kept] = last[row].numpy()
            attention[item][np.ix_(np.arange(heads.shape[1]), kept, kept)] = heads[row].numpy()
    assert hidden is not None
    assert attention is not None
    hidden.flush()
    attention.flush()


def _array(path: Path, shape: tuple[int, ...]) -> Any:
    """A new float16 array on the disk, filled with zeros."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def last_only(blocks: Iterable[list[int]], *, layers: int) -> bool:
    """Whether pairs of blocks name the teacher's last alone, which is what is stored."""
    return all(teacher in (-1, layers - 1) for _, teacher in blocks)
