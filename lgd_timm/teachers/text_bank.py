"""The textual semantics bank (TSB): one unit vector a category name (arXiv 2406.11689, section 3).

    c_k = norm(mean_p norm(E_text(template_p(name_k))))

The visual bank (VSB) is state of the objective, since it changes with every step: `objectives/lgd.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.paths import AnyPath
from ..data.vocabulary import Vocabulary
from ..errors import TeacherError, WeightsError
from ..settings import cache_folder
from ..utils.files import fingerprint
from ..utils.summed_tensors import Damaged, load_summed, save_summed
from .base import TextTeacher

log = logging.getLogger(__name__)


def encode_vocabulary(text: TextTeacher, vocabulary: Vocabulary, *, prompts_per_call: int = 512) -> Tensor:
    """Encode a vocabulary's names by a text tower.

    Args:
        text: the tower.
        vocabulary: C names, each with one prompt per template.
        prompts_per_call: prompts that the tower gets at a time.

    Returns:
        Unit rows, float32 [C, D].

    Raises:
        TeacherError: an embedding is not finite.
    """
    count = len(vocabulary.templates)
    names_per_call = max(1, prompts_per_call // count)
    rows = []
    for start in range(0, len(vocabulary), names_per_call):
        names = vocabulary.names[start : start + names_per_call]
        prompts = [prompt for name in names for prompt in vocabulary.prompts(name)]
        rows.append(normalize(text.encode(prompts), dim=1).unflatten(0, (-1, count)).mean(1))
    bank = normalize(torch.cat(rows), dim=1)
    if not bank.isfinite().all():
        raise TeacherError("The text tower gave embeddings that are not finite. Check the teacher's weights.")
    return bank


def text_bank(
    vocabulary: Vocabulary,
    *,
    text_fingerprint: str,
    text: Callable[[], TextTeacher],
    folders: Sequence[AnyPath] = (),
) -> Tensor:
    """Return the bank of a vocabulary: from a folder, from the cache, or from the text tower, and then cached.

    Args:
        vocabulary: C names and their templates.
        text_fingerprint: of the tower that the bank must come from.
        text: builds the tower. It is called only when no file has the bank, so that a run with stored embeddings and
            known names loads no teacher.
        folders: looked through first. Addresses are skipped: a bank at one has no sha256 by which it would be trusted.

    Returns:
        Unit rows, float32 [C, D].

    Raises:
        TeacherError: the tower has another fingerprint, or gives embeddings that are not finite.
    """
    name = text_bank_name(text_fingerprint, vocabulary)
    cache = cache_folder() / "text"
    for folder in (*folders, cache):
        if isinstance(folder, Path) and (bank := _stored_bank(folder / name, rows=len(vocabulary))) is not None:
            return bank
    tower = text()
    if tower.fingerprint != text_fingerprint:
        raise TeacherError(
            f"The text tower is not the embeddings' own (fingerprint {tower.fingerprint}, stored {text_fingerprint}). "
            "Use the teacher that made them, or run lgd-timm teach again."
        )
    bank = encode_vocabulary(tower, vocabulary)
    try:
        save_bank(cache / name, bank)
    except (OSError, WeightsError) as error:  # kept for the next time only
        log.warning("%s can't be written (%s), so names are read anew next time. Set LGD_TIMM_CACHE.", cache, error)
    return bank


def text_bank_name(text_fingerprint: str, vocabulary: Vocabulary) -> str:
    """Name the file of a bank by a fingerprint of its tower, names and templates."""
    return f"{fingerprint(text_fingerprint, vocabulary.names, vocabulary.templates)}.safetensors"


def save_bank(path: Path, bank: Tensor) -> None:
    """Write a bank [C, D] as safetensors."""
    save_summed(path, {"text_bank": bank})


def load_bank(path: Path) -> Tensor:
    """Read a bank [C, D] of unit rows. Raises: Damaged for another file, or one that was altered."""
    bank = load_summed(path, required=False).get("text_bank")  # those of earlier versions have no sum
    if bank is None or bank.ndim != 2 or not bank.is_floating_point():
        raise Damaged("it holds no text bank")
    if not torch.allclose(bank.float().norm(dim=1), torch.ones(len(bank)), atol=1e-3):  # nor is a NaN close
        raise Damaged("its rows are not of length 1")
    return bank


def _stored_bank(path: Path, *, rows: int) -> Tensor | None:
    """Read a bank that may be there; None where it is not, or is damaged and has to be made again."""
    if not os.path.isfile(path):
        return None
    try:
        bank = load_bank(path)
        if len(bank) != rows:
            raise Damaged(f"it has {len(bank)} rows for {rows} names")
    except Damaged as error:
        log.warning("%s is damaged (%s): its names are read anew", path, error)
        return None
    return bank
