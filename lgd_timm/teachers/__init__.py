"""Teachers: an image tower and a text tower with one embedding space, each described by a small spec for recipes."""

from typing import Any

from ..utils.schema import build
from .base import ImageTeacher, TextTeacher
from .conse import Conse
from .open_clip import OpenCLIP
from .stored import Stored

__all__ = ["Conse", "ImageTeacher", "OpenCLIP", "Stored", "TeacherSpec", "TextTeacher", "spec_from_dict"]

TeacherSpec = Conse | OpenCLIP | Stored  # in a recipe, `teacher.kind` says which


def spec_from_dict(data: Any) -> Conse | OpenCLIP:
    """Build a teacher spec from plain data with `kind`, as `_teacher.json` has it. Raises: RecipeError."""
    spec: Conse | OpenCLIP = build(Conse | OpenCLIP, data, where="teacher")
    return spec
