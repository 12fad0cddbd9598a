"""Teachers: an image tower and a text tower in one space, described by a small spec that a recipe can hold."""

from .base import ImageTeacher, TextTeacher
from .conse import Conse
from .open_clip import OpenCLIP
from .stored import Stored

__all__ = ["KINDS", "Conse", "ImageTeacher", "OpenCLIP", "Stored", "TeacherSpec", "TextTeacher", "spec_from_dict"]

TeacherSpec = Conse | OpenCLIP | Stored

# The value of `teacher.kind` in a recipe.
KINDS: dict[str, type[Conse] | type[OpenCLIP] | type[Stored]] = {
    "conse": Conse,
    "open_clip": OpenCLIP,
    "stored": Stored,
}


def spec_from_dict(data: dict) -> Conse | OpenCLIP:
    """A teacher spec from plain data with `kind`, as `_teacher.json` holds it."""
    rest = {key: value for key, value in data.items() if key != "kind"}
    spec = KINDS[data["kind"]](**rest)
    assert not isinstance(spec, Stored), "stored embeddings name the teacher that made them"
    return spec
