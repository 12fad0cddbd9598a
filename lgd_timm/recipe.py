"""A recipe: everything that decides what a run makes, as typed data in YAML. Nothing in it can run code.

`read_recipe(source, overrides)` checks every key against the dataclasses below; an unknown one is refused with the nearest
known one. On the command line each field can be overridden: `--optimizer.lr 0.1 --student.model lgd_resnet18`.

A source is a YAML file, a folder that carries its recipe, or `hub://ORG/NAME[@REVISION]`. Recipes of the latter two have
travelled, and stay within the working directory (`reach.py`); a YAML file is the user's own, and may name any path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from .errors import RecipeError
from .objectives.table import check_objective
from .reach import check_reach
from .safe_weights import refuse_pickle
from .shards.views import Views
from .sources import recipe_file
from .strict_yaml import parse_yaml, read_yaml
from .teachers import Stored, TeacherSpec
from .typed import build, plain
from .vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class StudentRecipe:
    """Which timm model learns, and at which size."""

    model: str = "lgd_mobilenetv2"
    projector: Literal["linear", "mlp", "deep"] = "linear"
    image_size: int | None = None  # None: the views' size; else views are resized (bicubic) on the device
    pretrained: bool = False  # start from the timm model's own weights
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    mean: tuple[float, float, float] | None = None  # None: the timm model's own statistics
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="student.model")


@dataclass(frozen=True)
class DataRecipe:
    """Which shards are learned from, and which are evaluated on."""

    shards: str = ""  # a folder, or an address: https://, hf://, s3://, ...
    train_split: str = "train"
    val_split: str | None = None
    val_vocabulary: str | list[str] | None = None  # names of its labels, in their order; None: the names that are learned
    val_crop: float = 1.0  # share of the short side that evaluation sees, timm's crop_pct; 0.875 is Resize(256), CenterCrop(224)
    batch_size: int = 256  # global: shared by all ranks
    workers: int = 0
    in_memory: bool = False  # render each view once and keep its pixels: for small images, and with workers 0
    max_bad: float = 0.001  # share of the split that may be unreadable

    def __post_init__(self) -> None:
        if self.in_memory and self.workers:
            raise RecipeError(
                f"data.in_memory keeps views in this process, where {self.workers} workers would not see them. Set data.workers 0."
            )


@dataclass(frozen=True)
class VocabularyRecipe:
    """Which names. `source`: a list, or what `load_vocabulary` reads. `templates`: none, simple, openai, a file or a list."""

    source: str | list[str] = ""
    templates: str | list[str] = "none"


@dataclass(frozen=True)
class OptimizerRecipe:
    """timm's optimizer factory: `name` is one of timm.optim.list_optimizers()."""

    name: str = "sgd"
    lr: float | None = None  # None: lr_base * batch_size / lr_base_size
    lr_base: float = 0.03
    lr_base_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_all: bool = True  # also on biases and norms, as the released code does
    betas: tuple[float, float] | None = None
    clip_grad: float | None = None


@dataclass(frozen=True)
class ScheduleRecipe:
    """Epochs, warm-up and timm's scheduler."""

    epochs: int = 90
    name: Literal["cosine", "tanh", "poly", "constant"] = "cosine"  # those of timm's that need no further settings
    warmup_epochs: float = 5
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    per_step: bool = True  # step the schedule every update; the released code does so every epoch


@dataclass(frozen=True)
class RunRecipe:
    """How the machine does it; none of these should change what is learned, but for rounding."""

    seed: int = 0
    device: str = "auto"  # auto: cuda, then mps, then cpu
    amp: Literal["none", "float16", "bfloat16"] = "none"
    channels_last: bool = True
    compile: bool = False
    photometry: Literal["auto", "worker", "device"] = "auto"  # where colours are changed; auto: on an accelerator, else in the workers
    ema_decay: float | None = None
    accumulate: int = 1  # passes that a rank's part of a batch takes, for less memory; batch norm sees one at a time
    max_skipped: int = 10  # steps in a row that may be left out because a gradient is not finite
    checkpoint_every: int = 1  # epochs
    checkpoint_minutes: float = 15.0  # and at least so often
    keep_checkpoints: int = 2  # the last so many; the best is kept, too
    evaluate_every: int = 1  # epochs
    log_every: int = 20  # steps


# Fields of `run` and `data` that are the machine's, and decide no number but for rounding
MACHINE = {
    "run": (
        *("device", "channels_last", "compile", "photometry", "max_skipped"),
        *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "evaluate_every", "log_every"),
    ),
    "data": ("workers", "in_memory", "max_bad"),
}


@dataclass(frozen=True)
class TeachRecipe:
    """What `lgd-timm teach` needs: who teaches, on which views, of which shards."""

    teacher: TeacherSpec
    views: Views
    shards: str  # a folder, or an address
    split: str = "train"
    dtype: Literal["float16", "int8"] = "float16"  # what an embedding's numbers are stored as
    batch_size: int = 64  # images a rank and step, each view being one
    workers: int = 0
    device: str = "auto"
    compile: bool = False
    max_bad: float = 0.001
    out: str | None = None  # folder of the embeddings; None: beside the shards, named after teacher and views

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(self))

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


@dataclass(frozen=True)
class Recipe:
    """One experiment."""

    name: str
    teacher: TeacherSpec
    vocabulary: VocabularyRecipe
    data: DataRecipe
    student: StudentRecipe = field(default_factory=StudentRecipe)
    views: Views | None = None  # None: those of the stored embeddings
    objective: dict[str, Any] = field(default_factory=lambda: {"preset": "reference"})
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `teacher.kind`; `from_dict` of it is this recipe again."""
        return dict(plain(self))

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


def read_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe and apply dotted overrides such as {"optimizer.lr": 0.1}.

    Raises: RecipeError for a missing or malformed file, unknown keys, values of a wrong type, and paths that a recipe which
    travelled may not name; WeightsError for a hub:// source that can't be had.
    """
    path, travelled = recipe_file(source)
    data = _overridden(_read_mapping(path), overrides)
    data.setdefault("name", path.stem)
    recipe = recipe_from_dict(data)
    if travelled:
        check_reach(recipe.to_dict(), own=overrides or ())
    return recipe


def read_teach_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> TeachRecipe:
    """The same for `lgd-timm teach`. A recipe for `distill` will do too, if it says who teaches (or taught) on which views.

    Overrides are those of `teach` in any case: `shards`, `split`, `views.count`. Raises: as `read_recipe`.
    """
    path, travelled = recipe_file(source)
    data = _read_mapping(path)
    if "data" in data:
        data = _lesson(recipe_from_dict({"name": "lesson", **data}), own=overrides or {})
    data = _overridden(data, overrides)
    if isinstance(data.get("teacher"), dict) and data["teacher"].get("kind") == Stored.kind:
        raise RecipeError(
            f"{path}: teacher.kind is 'stored', which has taught already, and nothing says who did. Give conse or open_clip, "
            "or say who taught in teacher.taught_by."
        )
    recipe: TeachRecipe = build(TeachRecipe, data, where="")
    if travelled:
        check_reach(recipe.to_dict(), own=overrides or ())
    return recipe


class Asked(NamedTuple):
    """A recipe's teacher, the names that it is asked about if there are any, and how much of an image it sees (`data.val_crop`)."""

    teacher: TeacherSpec
    vocabulary: Vocabulary | None
    crop: float


def read_teacher(source: str | Path) -> Asked:
    """The teacher of a recipe of either sort, as it is evaluated. Raises: as `read_recipe`; VocabularyError."""
    path, travelled = recipe_file(source)
    data = _read_mapping(path)
    teacher: TeacherSpec = build(TeacherSpec, data.get("teacher"), where="teacher")
    names: VocabularyRecipe = build(VocabularyRecipe, data.get("vocabulary", {}), where="vocabulary")
    if travelled:
        check_reach({"teacher": plain(teacher), "vocabulary": plain(names)})
    data_recipe: DataRecipe = build(DataRecipe, data.get("data", {}), where="data")
    return Asked(teacher, load_vocabulary(names.source, templates=names.templates) if names.source else None, crop=data_recipe.val_crop)


def read_mapping(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a YAML recipe of any sort, unchecked, with overrides; its `name` is the file's if it has none. Raises: RecipeError."""
    path, _ = recipe_file(source)
    data = _overridden(_read_mapping(path), overrides)
    data.setdefault("name", path.stem)
    return data


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Check and build. Raises: RecipeError naming the field."""
    recipe: Recipe = build(Recipe, data, where="")
    return replace(recipe, objective=check_objective(recipe.objective))


def read_value(key: str, text: str) -> Any:
    """What a word on the command line means, `--key text`: YAML, so that lists and numbers can be given. Raises: RecipeError."""
    return parse_yaml(text, source=f"--{key} {text[:80]!r}")


def _lesson(recipe: Recipe, *, own: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for `distill` as one for `teach`, which makes the embeddings that the former names.

    Not into the same folder, however, where the user asks for another teacher, other views or images: those find their own.
    """
    data, teacher = recipe.to_dict(), recipe.teacher
    lesson = {"teacher": data["teacher"], "shards": recipe.data.shards, "split": recipe.data.train_split}
    lesson |= {"workers": recipe.data.workers, "max_bad": recipe.data.max_bad, "device": recipe.run.device}
    views = teacher.taught_on if isinstance(teacher, Stored) and teacher.target == "image" else recipe.views
    if views is not None:
        lesson["views"] = plain(views)
    if isinstance(teacher, Stored) and teacher.taught_by is not None:
        lesson |= {"teacher": data["teacher"]["taught_by"], "dtype": teacher.dtype or "float16"}
        if not any(key.partition(".")[0] in ("teacher", "views", "shards", "dtype") for key in own):
            lesson["out"] = teacher.embeddings
    return lesson


def _read_mapping(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, not a mapping of recipe fields.")
    return data


def _overridden(data: dict[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data with dotted fields set, in place."""
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--{key}: {parent!r} holds a single value, it has no field {last!r}.")
        place[last] = read_value(key, value) if isinstance(value, str) else value
    return data


def _dump(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)
