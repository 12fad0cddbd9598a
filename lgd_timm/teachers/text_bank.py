"""The Textual Semantics Bank: one unit vector a category name (paper, section 3; TSB in the released code).

    c_k = norm(mean_p norm(E_text(template_p(name_k))))

Its visual twin (VSB) is state of the objective, since it changes with every step: `objectives/lgd.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from ..data.paths import Place
from ..data.vocabulary import Vocabulary
from ..errors import TeacherError
from ..settings import cache_folder
from ..utils.files import atomic_file, fingerprint
from .base import TextTeacher


def encode_vocabulary(text: TextTeacher, vocabulary: Vocabulary, *, prompts_per_call: int = 512) -> Tensor:
    """Names through templates and text tower -> float32 [C, D], unit rows."""
    count = len(vocabulary.templates)
    names_per_call = max(1, prompts_per_call // count)
    rows = []
    for start in range(0, len(vocabulary), names_per_call):
        prompts = [
            prompt for name in vocabulary.names[start : start + names_per_call] for prompt in vocabulary.prompts(name)
        ]
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
    folders: Sequence[Place] = (),
) -> Tensor:
    """The bank of a vocabulary [C, D], from `folders`, from the cache, or from the text tower, which then is cached.

    The tower is built only when no file has the bank: with stored embeddings, a run whose names are known loads no teacher.
    Addresses among the folders are passed over: a bank that lies there has no sha256 by which it would be trusted.
    """
    name = text_bank_name(text_fingerprint, vocabulary)
    cache = cache_folder() / "text"
    for folder in (*folders, cache):
        if isinstance(folder, Path) and (folder / name).is_file():
            return load_bank(folder / name)
    tower = text()
    if tower.fingerprint != text_fingerprint:
        raise TeacherError(
            f"The text tower is not the embeddings' own (fingerprint {tower.fingerprint}, stored {text_fingerprint}). "
            "Use the teacher that made them, or run lgd-timm teach again."
        )
    bank = encode_vocabulary(tower, vocabulary)
    save_bank(cache / name, bank)
    return bank


def text_bank_name(text_fingerprint: str, vocabulary: Vocabulary) -> str:
    """File name of a bank: another tower, other names or other templates, another file."""
    return f"{fingerprint(text_fingerprint, vocabulary.names, vocabulary.templates)}.safetensors"


def save_bank(path: Path, bank: Tensor) -> None:
    with atomic_file(path) as temporary:
        save_file({"text_bank": bank.contiguous()}, temporary)


def load_bank(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("text_bank")
