"""A recipe: everything that decides what a run makes, as typed data in YAML. Nothing in it can run code.

`read_recipe(path, overrides)` checks every key against the dataclasses below; an unknown one is refused with the nearest
known one. On the command line each field can be overridden: `--optimizer.lr 0.1 --student.model lgd_resnet18`.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import LGDError, RecipeError
from .objectives.lgd import LGDConfig, configure
from .shards.views import Views
from .teachers import KINDS, Stored, TeacherSpec
from .vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class StudentRecipe:
    """Which timm model learns, and at which size."""

    model: str = "lgd_mobilenetv2"
    projector: Literal["linear", "mlp"] = "linear"
    image_size: int | None = None  # None: the views' size; else views are resized (bicubic) on the device
    pretrained: bool = False  # start from the timm model's own weights
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    mean: tuple[float, float, float] | None = None  # None: the timm model's own statistics
    std: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class DataRecipe:
    """Which shards are learned from, and which are evaluated on."""

    shards: str = ""
    train_split: str = "train"
    val_split: str | None = None
    val_vocabulary: str | list[str] | None = None  # names of its labels, in their order; None: the names that are learned
    batch_size: int = 256  # global: shared by all ranks
    workers: int = 0
    max_bad: float = 0.001  # share of the split that may be unreadable


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
    checkpoint_every: int = 1  # epochs
    evaluate_every: int = 1  # epochs
    log_every: int = 20  # steps


@dataclass(frozen=True)
class TeachRecipe:
    """What `lgd-timm teach` needs: who teaches, on which views, of which shards."""

    teacher: TeacherSpec
    views: Views
    shards: str
    split: str = "train"
    dtype: Literal["float16", "int8"] = "float16"  # what an embedding's numbers are stored as
    batch_size: int = 64  # images a rank and step, each view being one
    workers: int = 0
    device: str = "auto"
    compile: bool = False
    max_bad: float = 0.001

    def to_dict(self) -> dict[str, Any]:
        return _with_kind(self)

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
        return _with_kind(self)

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


# Least and greatest value of the fields that have one, by their last name.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "epochs", "image_size", "checkpoint_every", "evaluate_every", "log_every"), (1, math.inf)),
    **dict.fromkeys(("workers", "lr", "lr_base", "weight_decay", "clip_grad", "warmup_epochs"), (0, math.inf)),
    **dict.fromkeys(("max_bad", "momentum", "ema_decay", "drop_rate", "drop_path_rate"), (0, 1)),
    "seed": (0, 2**63 - 1),
}


def read_recipe(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe and apply dotted overrides such as {"optimizer.lr": 0.1}.

    Raises: RecipeError for a missing or malformed file, unknown keys, and values of a wrong type.
    """
    path = _recipe_file(path)
    data = _read_yaml(path, overrides or {})
    data.setdefault("name", path.stem)
    return recipe_from_dict(data)


def read_teach_recipe(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> TeachRecipe:
    """The same for `lgd-timm teach`. Raises: RecipeError."""
    recipe = _build(TeachRecipe, _read_yaml(_recipe_file(path), overrides or {}), where="")
    if isinstance(recipe.teacher, Stored):
        raise RecipeError(f"{path}: teacher.kind is 'stored', which has taught already. Give conse or open_clip.")
    return recipe


def read_teacher(path: str | Path) -> tuple[TeacherSpec, Vocabulary | None]:
    """The teacher of a recipe of either sort, and its names if it has any. Raises: RecipeError."""
    data = _read_yaml(_recipe_file(path), {})
    teacher = _teacher(data.get("teacher"), where="teacher")
    names = _build(VocabularyRecipe, data.get("vocabulary", {}), where="vocabulary")
    return teacher, load_vocabulary(names.source, templates=names.templates) if names.source else None


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Check and build. Raises: RecipeError naming the field."""
    recipe = _build(Recipe, data, where="")
    objective = _values({"preset": str, **get_type_hints(LGDConfig)}, recipe.objective, where="objective")
    try:
        configure(**objective)
    except LGDError as error:
        raise RecipeError(str(error)) from error
    return replace(recipe, objective=objective)


def _recipe_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():  # published folders and runs carry their recipe
        path = path / "recipe.yaml"
    if not path.is_file():
        near = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise RecipeError(f"No recipe at {path}." + (f" There are: {near}." if near else " Give a YAML file or a published folder."))
    return path


def _read_yaml(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, not a mapping of recipe fields.")
    for key, value in overrides.items():
        _override(data, key, value)
    return data


def _override(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--{key}: {parent!r} holds a single value, it has no field {last!r}.")
    data[last] = read_value(key, value) if isinstance(value, str) else value


def read_value(key: str, text: str) -> Any:
    """What a word on the command line means, `--key text`: YAML, so that lists and numbers can be given. Raises: RecipeError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--{key} {text!r} is not YAML: {_one_line(error)}. Quote it.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _build(kind: Any, data: Any, *, where: str) -> Any:
    """A dataclass from a mapping, checked key by key."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where or 'The recipe'} must be a mapping of fields, not {data!r}.")
    values = _values(get_type_hints(kind), data, where=where)
    try:
        return kind(**values)
    except TypeError as error:  # a required field is missing
        missing = [f.name for f in fields(kind) if f.name not in values and _required(f)]
        raise RecipeError(f"{where or 'The recipe'} lacks {', '.join(_dotted(where, name) for name in missing)}.") from error


def _values(hints: Mapping[str, Any], data: Mapping[Any, Any], *, where: str) -> dict[str, Any]:
    """The known fields of a mapping, each of its type and in its range."""
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {_dotted(where, near[0])!r}?" if near else f"known: {', '.join(hints)}."
            raise RecipeError(f"Unknown recipe field {_dotted(where, str(key))!r}; {hint}")
    values = {key: _value(hints[key], value, where=_dotted(where, key)) for key, value in data.items()}
    for key in RANGES.keys() & values.keys():
        low, high = RANGES[key]
        if values[key] is not None and not low <= values[key] <= high:
            raise RecipeError(f"{_dotted(where, key)} = {values[key]} is outside [{low:g}, {high:g}].")
    return values


def _required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(hint: Any, value: Any, *, where: str) -> Any:
    """A value of the annotated type, or a RecipeError that names the field."""
    if hint == TeacherSpec:
        return _teacher(value, where=where)
    if get_origin(hint) in (Union, types.UnionType):
        return _union(get_args(hint), value, where=where)
    if is_dataclass(hint):
        return _build(hint, value, where=where)
    if get_origin(hint) is not None:
        return _container(hint, value, where=where)
    return _scalar(hint, value, where=where)


def _container(hint: Any, value: Any, *, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if origin is Literal:
        if value not in options:
            raise RecipeError(f"{where} = {value!r}; choose one of {', '.join(map(str, options))}.")
        return value
    if origin is tuple and sequence and len(value) == len(options):
        return tuple(_value(option, v, where=where) for option, v in zip(options, value, strict=True))
    if origin is list and sequence:
        return [_value(options[0], v, where=where) for v in value]
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    raise RecipeError(f"{where} = {value!r} is no {_spell(hint)}.")


def _scalar(hint: Any, value: Any, *, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as text, and 1 as an integer
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{where} = {value!r} is no number.") from error
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise RecipeError(f"{where} = {value!r} is no {_spell(hint)}.")


def _union(options: Sequence[Any], value: Any, *, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    for option in rest[:-1]:
        try:
            return _value(option, value, where=where)
        except RecipeError:
            continue  # the last option's message is the one to show
    return _value(rest[-1], value, where=where)


def _teacher(value: Any, *, where: str) -> Any:
    if not isinstance(value, Mapping) or value.get("kind") not in tuple(KINDS):
        given = value.get("kind") if isinstance(value, Mapping) else value
        raise RecipeError(f"{where}.kind = {given!r}; choose one of {', '.join(KINDS)}.")
    rest = {key: v for key, v in value.items() if key != "kind"}
    return _build(KINDS[value["kind"]], rest, where=where)


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _spell(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)


def _with_kind(recipe: Recipe | TeachRecipe) -> dict[str, Any]:
    """Plain data, with `teacher.kind`."""
    plain = _plain(asdict(recipe))
    kind = next(kind for kind, spec in KINDS.items() if isinstance(recipe.teacher, spec))
    return {**plain, "teacher": {"kind": kind, **plain["teacher"]}}


def _dump(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
