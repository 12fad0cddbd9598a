"""Write a student for open_clip: its image tower with its teacher's text tower, as open_clip itself loads them.

    open_clip_config.json, open_clip_model.safetensors     open_clip.create_model_from_pretrained("hf-hub:ORG/NAME")

The image tower is the stock timm architecture followed by a linear layer with bias, which is what a linear projector
is. The text tower, its tokenizer and the logit scale are the teacher's.
"""

from __future__ import annotations

from pathlib import Path

from ..config.sandbox import check_reach
from ..errors import WeightsError
from ..publish.folder import load
from ..publish.open_clip import CONFIG, WEIGHTS, check_open_clip, write_open_clip
from ..teachers import OpenCLIP, Stored, TeacherSpec
from ..utils.schema import to_plain
from .loading import ExportModel


def export(model: ExportModel, folder: Path) -> str:
    """Write both files for a published student, as `lgd-timm save --open-clip` writes them beside the others.

    Args:
        model: a published student's.
        folder: an empty folder.

    Returns:
        A line that says what was written.

    Raises:
        WeightsError: the model is no published student, its teacher is not recorded, and as `write_open_clip`.
        RecipeError: an untrusted folder names a teacher outside of the working directory.
    """
    if model.folder is None:
        raise WeightsError(
            f"{model.name!r} is no published student, so no teacher's text tower goes with it. Give a published folder."
        )
    published = load(model.folder)
    teacher: TeacherSpec | None = published.recipe.teacher
    if isinstance(teacher, Stored):
        teacher = teacher.taught_by
    if teacher is None:
        raise WeightsError(
            f"{model.name!r} does not say who taught it (teacher.taught_by in its recipe). Save it again from its run."
        )
    if model.untrusted:
        check_reach({"teacher": to_plain(teacher)})
    check_open_clip(published.student, teacher)
    assert isinstance(teacher, OpenCLIP)
    write_open_clip(
        folder, student=published.student, banks=published.banks, teacher=teacher, architecture=model.architecture
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{CONFIG} and {WEIGHTS}, {size / 1e6:.1f} MB with the text tower of {teacher.model}"
