"""Classify pictures: by a student's own names, by other names with its teacher's text tower, or with a timm model."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn

from ..config.reader import read_value
from ..data.decode import EncodedImage
from ..data.image_folder import read_image_folder
from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import LGDError, ShardError
from ..hub.timm_models import check_config
from ..utils.device import pick_device
from .models import StudentFolder, student_folder, timm_model
from .zero_shot_model import zero_shot_student

Picture = str | Path | Image.Image
IMAGENET = 1000  # classes whose names timm knows


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one picture, the likeliest name first.

    Attributes:
        picture: its path; None for an image that was given as such.
        names: the `top_k` likeliest.
        probabilities: of these names, in 0..1; all names together have 1.
        similarities: cosines with the names' text embeddings; None for a classifier that has none.
    """

    picture: str | None
    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    similarities: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """The likeliest name."""
        return self.names[0]


class Classifier:
    """A model that names pictures; see `load`.

    Args:
        network: transformed images float32 [B, 3, S, S] -> logits [B, C], and cosines [B, C] or None.
        names: C names.
        transform: a PIL image -> float32 [3, S, S].
        device: where the network is.
    """

    def __init__(
        self,
        network: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        *,
        names: Sequence[str],
        transform: Callable[[Image.Image], Tensor],
        device: str,
    ) -> None:
        self.names = tuple(names)
        self._network, self._transform, self._device = network, transform, device

    def predict(
        self, pictures: Picture | Iterable[Picture], *, top_k: int = 5, batch_size: int = 32
    ) -> list[Prediction]:
        """Classify pictures.

        Args:
            pictures: one or several, each a path or a PIL image.
            top_k: how many names to give for each.
            batch_size: pictures that are classified together.

        Returns:
            A prediction for each picture, in their order.

        Raises:
            ShardError: a picture can't be read; the message names it.
            LGDError: `top_k` or `batch_size` is below 1.
        """
        if top_k < 1 or batch_size < 1:
            raise LGDError(f"top_k = {top_k} and batch_size = {batch_size} must be at least 1.")
        several = [pictures] if isinstance(pictures, Picture) else list(pictures)
        batches = (several[start : start + batch_size] for start in range(0, len(several), batch_size))
        return [prediction for batch in batches for prediction in self._predict(batch, min(top_k, len(self.names)))]

    @torch.inference_mode()
    def _predict(self, pictures: Sequence[Picture], top_k: int) -> Iterator[Prediction]:
        images = torch.stack([self._transform(open_picture(picture)) for picture in pictures])
        logits, cosines = self._network(images.to(self._device))
        probabilities, indices = logits.float().softmax(1).topk(top_k, dim=1)
        similar = None if cosines is None else cosines.gather(1, indices).tolist()
        for row, (picture, best) in enumerate(zip(pictures, indices.tolist(), strict=True)):
            yield Prediction(
                None if isinstance(picture, Image.Image) else str(picture),
                tuple(self.names[index] for index in best),
                tuple(probabilities[row].tolist()),
                None if similar is None else tuple(similar[row]),
            )


def load(
    model: str | Path,
    *,
    names: str | Sequence[str] | None = None,
    templates: str | Sequence[str] = "none",
    device: str = "auto",
) -> Classifier:
    """Open a model that names pictures.

    Args:
        model: a published folder, a run folder, hub://ORG/NAME[@REVISION], an lgd_ weight, or any timm classifier.
        names: other names to choose from, as `vocabulary.source` takes them; the teacher's text tower reads them. None:
            the model's own.
        templates: prompt templates for `names`.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The classifier, in eval mode.

    Raises:
        LGDError: the model can't be opened, has no names, or can't be asked about others.
    """
    found, place = student_folder(str(model)), pick_device(device)
    if names is None and (found is None or _is_classifier(found)):
        return _stock_classifier(str(model) if found is None else f"local-dir:{found.path}", place)
    if found is None:
        raise LGDError(
            f"{str(model)!r} is a plain timm model, which can't be asked about other names. Give a student of lgd_timm."
        )
    source = read_value("vocabulary", names) if isinstance(names, str) else names
    return _by_names(found, None if source is None else load_vocabulary(source, templates=templates), place)


def open_picture(picture: Picture) -> Image.Image:
    """Read a picture as it is meant to be seen: upright, RGB.

    Raises:
        ShardError: it can't be read as an image.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        encoded = EncodedImage(Path(picture).read_bytes())
        pixels = encoded.crop((0, 0, encoded.height, encoded.width))
    except (OSError, ShardError) as error:
        raise ShardError(f"{picture}: {error}") from error
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def find_pictures(sources: Iterable[str]) -> list[str]:
    """List pictures.

    Args:
        sources: files, folders (every picture below them), and glob patterns.

    Returns:
        Paths, each once, in the order of the sources and sorted within one.

    Raises:
        LGDError: a source matches nothing.
    """
    return list(dict.fromkeys(path for source in sources for path in _pictures_of(source)))


def _pictures_of(source: str) -> list[str]:
    path = Path(source)
    if path.is_file():
        return [source]
    if path.is_dir():
        found = [str(file) for file in read_image_folder(path).images]
    else:
        found = sorted(file for file in glob.glob(source, recursive=True) if Path(file).is_file())
    if not found:
        raise LGDError(f"{source!r} is no picture, and neither a folder nor a pattern of some. Correct the path.")
    return found


def _is_classifier(folder: StudentFolder) -> bool:
    published = folder.checkpoint is None and (folder.path / "config.json").is_file()
    return published and "label_names" in check_config(folder.path)


def _stock_classifier(name: str, device: str) -> Classifier:
    """A timm model with its own classifier, shown pictures by timm's own transform."""
    model: Any = timm_model(name, classifier=True).float().eval().to(device)
    count = int(model.num_classes)
    if count < 1:
        raise LGDError(f"{name!r} has no classifier. Give a model that has one, or a student and names.")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return Classifier(lambda images: (model(images), None), names=_names_of(model), transform=transform, device=device)


def _names_of(model: Any) -> tuple[str, ...]:
    names = model.pretrained_cfg.get("label_names")
    if names:
        return tuple(names)
    if model.num_classes == IMAGENET:
        info = ImageNetInfo()
        return tuple(info.index_to_description(index) for index in range(IMAGENET))
    return tuple(f"class {index}" for index in range(model.num_classes))


def _by_names(folder: StudentFolder, names: Vocabulary | None, device: str) -> Classifier:
    """A student's projector and the text bank of any names."""
    student = zero_shot_student(folder, names)
    encoder: nn.Module = student.encoder.eval().to(device)
    bank, temperature = student.bank.to(device), student.student_temperature
    assert temperature is not None, "every objective has a student_temperature"

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        cosines = torch.nn.functional.normalize(encoder(images), dim=1) @ bank.T
        return cosines / temperature, cosines

    def transform(image: Image.Image) -> Tensor:
        resized = timm.data.create_transform(
            (3, student.views.size, student.views.size),
            interpolation=student.views.interpolation,
            crop_pct=student.views.crop,
            normalize=False,
        )(image)
        return torch.as_tensor(resized)  # bytes: the encoder normalises

    return Classifier(network, names=student.vocabulary.names, transform=transform, device=device)
