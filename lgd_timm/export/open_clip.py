"""The door to open_clip: the student's image tower with its teacher's text tower, as open_clip itself loads them.

    open_clip_config.json, open_clip_model.safetensors     open_clip.create_model_from_pretrained("hf-hub:ORG/NAME")

The image tower is the stock timm architecture and a linear layer with bias, which is what a linear projector is. The text
tower, its tokenizer and the logit scale are the teacher's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config.sandbox import check_reach
from ..errors import WeightsError
from ..publish.folder import load
from ..publish.open_clip import CONFIG, WEIGHTS, check_open_clip, write_open_clip
from ..teachers import OpenCLIP, Stored, TeacherSpec
from ..utils.schema import to_plain

if TYPE_CHECKING:
    from .loading import ExportModel


def export(source: ExportModel, folder: Path) -> str:
    """Write the two files for a published student, as `lgd-timm save --open-clip` does beside the others.

    Raises: WeightsError for what is no published folder, and as `write_open_clip`; RecipeError for a teacher out of reach.
    """
    if source.folder is None:
        raise WeightsError(
            f"{source.name!r} is no published student, so no teacher's text tower goes with it. Give a published folder."
        )
    published = load(source.folder)
    teacher: TeacherSpec | None = published.recipe.teacher
    if isinstance(teacher, Stored):
        teacher = teacher.taught_by
    if teacher is None:
        raise WeightsError(
            f"{source.name!r} does not say who taught it (teacher.taught_by in its recipe). Save it again from its run."
        )
    if source.travelled:
        check_reach({"teacher": to_plain(teacher)})
    check_open_clip(published.student, teacher)
    assert isinstance(teacher, OpenCLIP)
    write_open_clip(
        folder, student=published.student, banks=published.banks, teacher=teacher, architecture=source.architecture
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{CONFIG} and {WEIGHTS}, {size / 1e6:.1f} MB with the text tower of {teacher.model}"
