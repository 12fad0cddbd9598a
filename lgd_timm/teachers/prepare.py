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
class PreparedTeacher:
    """A teacher ready for a run: its embeddings are stored, or `image` computes them."""

    metadata: dict[str, Any]  # name, fingerprints, spec: what the published folder says of the teacher
    views: Views
    bank: Tensor  # of the vocabulary's names, unit rows, float32 [C, D]
    vocabulary: Vocabulary
    stored: StoredEmbeddings | None = None
    image: ImageTeacher | None = None


def prepare_teacher(
    spec: TeacherSpec, *, vocabulary: Vocabulary, views: Views | None
) -> tuple[PreparedTeacher, Callable[[Vocabulary], Tensor]]:
    """Build a teacher and the text bank of its names.

    With stored embeddings the image tower is not built, and the text tower once, only if there are new names.

    Args:
        spec: the recipe's teacher.
        vocabulary: the names of the text bank.
        views: the recipe's; None: those of the stored embeddings.

    Returns:
        The teacher, and the function that makes any vocabulary's bank [C, D].

    Raises:
        RecipeError: `views` is None, and the teacher is not a stored one.
        TeacherError: the teacher can't be built or its folder can't be opened.
    """
    if isinstance(spec, Stored):
        stored = spec.open()
        metadata = stored.metadata
        teacher = spec_from_dict(metadata.get("teacher"))  # checked here, as a wrong one would fail when publishing
        text, folders = cache(teacher.text), [stored.root / "text"]
        bank_of = partial(text_bank, text_fingerprint=metadata["text_fingerprint"], text=text, folders=folders)
        return PreparedTeacher(metadata, views or stored.views, bank_of(vocabulary), vocabulary, stored=stored), bank_of
    if views is None:
        raise RecipeError("The recipe lacks `views` (size, augmentation), which an online teacher needs.")
    image, tower = spec.image(), spec.text()
    bank_of = partial(text_bank, text_fingerprint=tower.fingerprint, text=lambda: tower)
    metadata = {
        "teacher": to_plain(spec),
        "name": image.name,
        "fingerprint": image.fingerprint,
        "text_fingerprint": tower.fingerprint,
        "embed_dim": image.embed_dim,
    }
    return PreparedTeacher(metadata, views, bank_of(vocabulary), vocabulary, image=image), bank_of
