"""Make a teacher ready for a run: embeddings, names and their text bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor

from ..data import Views
from ..data.stored_embeddings import StoredEmbeddings
from ..data.vocabulary import Vocabulary
from ..errors import RecipeError
from ..utils.schema import to_plain
from . import ImageTeacher, Stored, TeacherSpec, spec_from_dict
from .text_bank import text_bank


@dataclass
class Teaching:
    """Where the teacher's embeddings and the names' bank come from."""

    facts: dict[str, Any]  # name, fingerprints, spec: what the published folder says of the teacher
    views: Views
    bank: Tensor
    vocabulary: Vocabulary
    stored: StoredEmbeddings | None = None
    image: ImageTeacher | None = None


def prepare_teacher(
    spec: TeacherSpec, *, vocabulary: Vocabulary, views: Views | None
) -> tuple[Teaching, Callable[[Vocabulary], Tensor]]:
    """Build a teacher and the text bank of its names.

    With stored embeddings the image tower is not built, and the text tower once, only if there are new names.

    Args:
        spec: the recipe's teacher.
        vocabulary: the names that are learned.
        views: the recipe's; None where the teacher's stored ones are meant.

    Returns:
        What a run learns from, and the function that makes any vocabulary's bank [C, D].

    Raises:
        RecipeError: views are missing, and the teacher is no stored one.
    """
    if isinstance(spec, Stored):
        stored = spec.open()
        teacher = spec_from_dict(stored.facts.get("teacher"))  # before anything is written: what is published names it
        text, folders = cache(teacher.text), [stored.root / "text"]
        bank_of = partial(text_bank, text_fingerprint=stored.facts["text_fingerprint"], text=text, folders=folders)
        return Teaching(stored.facts, views or stored.views, bank_of(vocabulary), vocabulary, stored=stored), bank_of
    if views is None:
        raise RecipeError("The recipe lacks `views` (size, augmentation), which an online teacher needs.")
    image, tower = spec.image(), spec.text()
    bank_of = partial(text_bank, text_fingerprint=tower.fingerprint, text=lambda: tower)
    facts = {
        "teacher": to_plain(spec),
        "name": image.name,
        "fingerprint": image.fingerprint,
        "text_fingerprint": tower.fingerprint,
        "embed_dim": image.embed_dim,
    }
    return Teaching(facts, views, bank_of(vocabulary), vocabulary, image=image), bank_of
