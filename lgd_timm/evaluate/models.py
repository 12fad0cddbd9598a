"""Open any image model by its name, to extract features: students, plain timm models, folders, checkpoints.

NAME of timm              such as `resnet18`, with timm's weights or random ones
local-dir:FOLDER          a timm folder; hf-hub:ORG/NAME[@REVISION] a repository, of which only safetensors are read
FILE.safetensors          a checkpoint, with timm's name of its architecture
student                   a published folder, hub://ORG/NAME[@REVISION], an lgd_ weight, a run folder of `lgd-timm
distill`
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..config.reader import is_hub, local_source, read_recipe
from ..config.recipe import Recipe
from ..data import Views
from ..data.preprocess import Preprocess
from ..errors import LGDError, WeightsError
from ..hub.repo_ids import timm_repository
from ..hub.safe_weights import BUILD_ERRORS, refuse_pickle, timm_source
from ..hub.snapshot_download import locate
from ..hub.timm_models import build_timm_model
from ..publish.folder import Published, load
from ..students.model import Student, check_image_size, create_student
from ..teachers import Stored
from ..utils.checkpoint import DAMAGE, all_checkpoints, check_file
from ..utils.schema import build
from ..utils.state_keys import prefix_advice, without_prefix


class Backbone(nn.Module):
    """A timm model without its classifier, with its preprocessing. `Student` has the same attributes and `features`.

    Args:
        backbone: normalised images float32 [B, 3, S, S] -> pooled features [B, F].
        preprocess: raw images -> what `backbone` takes.
    """

    def __init__(self, backbone: Any, *, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone, self.preprocess = backbone, preprocess

    def features(self, images: Tensor) -> Tensor:
        """Extract pooled features [B, F] of images, uint8 [B, 3, H, W] or float in 0..1."""
        return self.backbone(self.preprocess(images))


@dataclass(frozen=True)
class Model:
    """An image model and how images are shown to it.

    Attributes:
        name: as the user named it.
        network: gives features.
        views: unaugmented.
        folder: of a student; None for other models.
        published: what a student's published folder holds; None for other models, and for an unpublished run.
    """

    name: str
    network: Backbone | Student
    views: Views
    folder: StudentFolder | None = None
    published: Published | None = None


@dataclass(frozen=True)
class StudentFolder:
    """The folder of a student, published or a run's.

    Attributes:
        path: on the disk.
        untrusted: it came over hub://, and may name no path outside of the working directory.
    """

    path: Path
    untrusted: bool = False

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint of a run that has not published yet; None otherwise."""
        if (self.path / "config.json").is_file() or not (self.path / "recipe.yaml").is_file():
            return None
        checkpoints = all_checkpoints(self.path / "checkpoints")
        return checkpoints[-1] if checkpoints else None


def student_folder(name: str) -> StudentFolder | None:
    """Find the folder of a student; download it where it is named by hub:// or weight.

    Args:
        name: a path, hub://ORG/NAME[@REVISION], or an lgd_ weight.

    Returns:
        The folder; None where the name is no student's.

    Raises:
        LGDError: as `hub.pull` and `hub.locate`.
    """
    if is_hub(name):
        return StudentFolder(local_source(name), untrusted=True)
    path = Path(name)
    if path.is_dir():
        return StudentFolder(path / "published" if (path / "published" / "config.json").is_file() else path)
    if name.startswith("lgd_") and timm.is_model(name):
        default = None if "." in name else timm.get_pretrained_cfg(name)
        return StudentFolder(locate(f"{name}.{default.tag}" if default else name))
    return None


def find_model(
    name: str, *, pretrained: bool = True, architecture: str | None = None, image_size: int | None = None, seed: int = 0
) -> Model:
    """Open a model by its name, without its classifier.

    Args:
        name: see the module's docstring.
        pretrained: False gives a plain timm model random weights.
        architecture: timm's name of what a checkpoint file holds.
        image_size: input size of a plain model in pixels, which then sees the whole centre square, as small images need
            it. None: timm's size and crop for evaluation. A student has its own.
        seed: of random weights.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        LGDError: the name is none of these, options do not fit it, or its weights can't be had.
    """
    if architecture is not None and not Path(name).is_file():
        raise LGDError(
            f"{name!r} is no checkpoint file, so it needs no other name of its architecture ({architecture!r}). Leave "
            "that out."
        )
    fresh = not pretrained and timm.is_model(name)
    if not fresh and (found := student_folder(name)) is not None:
        if not pretrained or image_size is not None:
            raise LGDError(
                f"{name!r} is a student with weights and an image size of its own. Name a timm model to choose them."
            )
        return open_student(name, found)
    if Path(name).suffix in (".yaml", ".yml"):
        raise LGDError(
            f"{name!r} is a recipe, whose teacher is scored by zero-shot only. Name a model, a published folder or a "
            "run."
        )
    if _is_file(name):
        backbone = _from_file(Path(name), architecture)
    else:
        backbone = timm_model(name, pretrained=pretrained, seed=seed)
    config = resolve_model_data_config(backbone)
    size, interpolation = image_size or config["input_size"][-1], config["interpolation"]
    preprocess = Preprocess(size=size, mean=config["mean"], std=config["std"], interpolation=interpolation)
    filters = interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"
    crop = 1.0 if image_size else min(1.0, max(0.1, config["crop_pct"]))
    views = Views(size=size, augmentation="none", interpolation=filters, crop=crop)
    if image_size is not None:
        check_image_size(backbone, image_size, field="--image-size")
    return Model(name, Backbone(backbone, preprocess=preprocess).eval(), views)


def open_student(name: str, folder: StudentFolder) -> Model:
    """Open a student: the published one, or that of its run's last checkpoint.

    Args:
        name: as the user named it.
        folder: where it is.

    Returns:
        The student in eval mode, on the CPU.

    Raises:
        WeightsError: the folder can't be read as a student.
        RecipeError: its recipe can't be read.
    """
    if folder.checkpoint is not None:
        recipe = read_recipe(folder.path / "recipe.yaml")
        views = evaluation_views(recipe, _stored_views(recipe))
        return Model(name, _from_checkpoint(folder.checkpoint, recipe), views, folder)
    published = load(folder.path)
    return Model(name, published.student, published_views(published, folder.path), folder, published)


def published_views(published: Published, folder: Path) -> Views:
    """Give a published student's evaluation views. Raises: LGDError where its metrics.json has nonsense for them."""
    teacher = published.metrics.get("teacher", {})
    if not isinstance(teacher, dict):
        raise LGDError(
            f"{folder}/metrics.json: 'teacher' is {type(teacher).__name__}, not facts about one. Pull the folder again."
        )
    stored: Views = build(Views, teacher.get("views", {"size": published.student.preprocess.size}), where="views")
    return evaluation_views(published.recipe, stored)


def evaluation_views(recipe: Recipe, stored: Views | None) -> Views:
    """Give a recipe's views, or those of its stored embeddings (`stored`) where it has none, without augmentation."""
    views = recipe.views or stored
    assert views is not None, "a recipe without views has stored embeddings, which have some"
    return replace(views, augmentation="none", count=1, crop=recipe.data.val_crop)


def _stored_views(recipe: Recipe) -> Views | None:
    return recipe.teacher.open().views if isinstance(recipe.teacher, Stored) and recipe.views is None else None


def _from_checkpoint(checkpoint: Path, recipe: Recipe) -> Student:
    """Load a run's student as it would be published: the moving average of its weights, where it keeps one."""
    files = [checkpoint / name for name in ("ema.safetensors", "student.safetensors")]
    try:
        file = next(file for file in files if file.is_file())
        check_file(checkpoint, name=file.name)
        state = load_file(file)
        embed_dim = [
            tensor.shape[0] for key, tensor in state.items() if key.startswith("projector.") and tensor.ndim == 2
        ][-1]
        size = recipe.student.image_size or evaluation_views(recipe, _stored_views(recipe)).size
        options = {**asdict(recipe.student), "image_size": size, "pretrained": False}
        student = create_student(embed_dim=embed_dim, **options)
        student.load_state_dict(state)
    except (StopIteration, *DAMAGE) as error:
        if isinstance(error, LGDError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{checkpoint} can't be read as its run's student ({reason}). Remove it: the one before it is used then."
        ) from error
    return student.eval()


def _is_file(name: str) -> bool:
    """Whether the name is a checkpoint file's. Raises: RecipeError for a pickle, whether it exists or not."""
    refuse_pickle(name, field="model")
    return Path(name).is_file()


def timm_model(name: str, *, pretrained: bool = True, seed: int = 0, classifier: bool = False) -> Any:
    """Build a timm model.

    Args:
        name: timm's name of it, `local-dir:FOLDER` or `hf-hub:ORG/NAME`.
        pretrained: False: random weights.
        seed: of random weights; the global random state is left as it was.
        classifier: keep the classifier.

    Returns:
        The model.

    Raises:
        LGDError: timm has no such model, or it can't be built.
        WeightsError: its weights can't be had.
    """
    if ":" not in name and not timm.is_model(name):
        raise LGDError(
            f"{name!r} is no published folder, no run folder, no checkpoint file and no model of timm "
            f"{timm.__version__}. All names: timm.list_models()."
        )
    source = name
    if pretrained and ":" not in name:
        repository = timm_repository(name)
        if repository is None:
            raise LGDError(
                f"timm has no weights of {name!r} on the Hub. Name a tag that has some, or take random weights."
            )
        source = f"hf-hub:{repository}"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_timm_model(
                timm_source(source, field="model", pretrained=pretrained), pretrained=pretrained, classifier=classifier
            )
    except WeightsError as error:
        raise WeightsError(
            f"The weights of {name!r} can't be had ({error}). Random ones need no network: --random-weights."
        ) from error
    except BUILD_ERRORS as error:
        if isinstance(error, LGDError):
            raise
        raise LGDError(f"model {name!r} can't be built ({' '.join(str(error).split())}).") from error


def _from_file(path: Path, architecture: str | None) -> Any:
    """Load a checkpoint of a stock architecture without its classifier, which may have any number of classes."""
    if path.suffix != ".safetensors":
        raise LGDError(f"{path} is no safetensors file, and no other sort of checkpoint is opened.")
    if architecture is None or not timm.is_model(architecture):
        raise LGDError(
            f"{path} does not say which architecture it is of ({architecture!r} is none of timm's). Say it with "
            "--model-name."
        )
    try:
        backbone: Any = timm.create_model(architecture, num_classes=0)
        state = without_prefix(load_file(path), wanted := backbone.state_dict())
    except BUILD_ERRORS as error:
        raise WeightsError(f"{path} can't be read as {architecture!r} ({' '.join(str(error).split())}).") from error
    head = backbone.pretrained_cfg.get("classifier") or "classifier"
    heads = tuple(f"{one}." for one in ([head] if isinstance(head, str) else head))
    body = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    try:
        backbone.load_state_dict(body)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} holds no {architecture!r} ({' '.join(str(error).split())[:300]}). Name another architecture."
            f"{prefix_advice(state, wanted)}"
        ) from error
    return backbone
