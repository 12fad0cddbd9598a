"""ConSE: any image classifier and any sentence encoder make a zero-shot teacher (Norouzi et al., ICLR 2014).

    image embedding = softmax(logits / temperature) @ N - mean(N)    row i of N: sentence embedding of class i's text
    text embedding  = encoder(name) - mean(N)

With `whiten` both are multiplied by W = (cov(N) + mean variance of N * identity)^(-1/2), ours: sentences share their
few strongest directions, which say little of what tells one name from another.

It needs no labels of the training images and no CLIP: useful without CLIP weights, and as a small, fast teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor
from torch.nn.functional import normalize

from ..data.preprocess import Preprocess
from ..data.vocabulary import TIMM_SUBSETS
from ..errors import RecipeError, TeacherError
from ..hub.safe_weights import BUILD_ERRORS, refuse_pickle, timm_source
from ..hub.timm_models import build_timm_model
from ..utils.files import fingerprint
from ..utils.schema import Count
from .base import ImageTeacher, TextTeacher, module_fingerprint
from .packages import locate_classifier
from .sentence_encoder import SentenceEncoder, check_package

TEMPERATURES = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)


@dataclass(frozen=True)
class Conse:
    """A ConSE teacher.

    Args:
        classifier: any timm name with weights, `local-dir:`/`hf-hub:`, or `builtin:` (see `packages.py`).
        encoder: any sentence-transformers name or folder, or `package:MODULE/FOLDER` inside an installed package.
        temperature: of the classifier's softmax.
        image_size: pixels; None: the classifier's own.
        whiten: whether both embeddings are whitened by the classes' texts, shrunk by half. It needs no images.
        classes: timm's name of the ImageNet subset that the classifier was trained on, such as imagenet-1k. With it the
            text tower needs nothing of the classifier; without it the classifier's config says.

    Raises:
        RecipeError: the temperature is not above 0, or `encoder` is not within its package.
        WeightsError: a name is that of a pickle.
    """

    kind: ClassVar[str] = "conse"
    classifier: str
    encoder: str
    temperature: float = 2.0
    image_size: Count | None = None
    classes: str | None = None
    whiten: bool = False

    def __post_init__(self) -> None:
        refuse_pickle(self.classifier, field="teacher.classifier")
        refuse_pickle(self.encoder, field="teacher.encoder")
        check_package(self.encoder)
        if not self.temperature > 0:
            raise RecipeError(f"teacher.temperature = {self.temperature} must be above 0.")

    def image(self) -> ImageTeacher:
        """Build the image tower. Raises: TeacherError, WeightsError."""
        classifier = _create_classifier(self.classifier)
        descriptions = self._descriptions(lambda: classifier)
        if len(descriptions) != classifier.num_classes:
            raise TeacherError(
                f"teacher.classes {self.classes!r}: {len(descriptions)} descriptions for the {classifier.num_classes} "
                f"classes of {self.classifier!r}. Give the subset that it was trained on, or leave the field out."
            )
        return _ConseImage(self, classifier, SentenceEncoder(self.encoder), descriptions).freeze()

    def text(self) -> TextTeacher:
        """Build the text tower. Raises: TeacherError, WeightsError."""
        return _ConseText(SentenceEncoder(self.encoder), self._class_texts(), whiten=self.whiten)

    def class_embeddings(self) -> Tensor:
        """Embed the texts of the classifier's classes: unit rows [C, D]. Raises: TeacherError, WeightsError."""
        return _class_embeddings(SentenceEncoder(self.encoder), self._class_texts())

    def _class_texts(self) -> list[str]:
        """Describe the classes without the classifier's weights."""
        return self._descriptions(lambda: _create_classifier(self.classifier, pretrained=False))

    def _descriptions(self, classifier: Callable[[], Any]) -> list[str]:
        """Describe the classes; the classifier is built only if `classes` is not given."""
        return class_descriptions(classifier()) if self.classes is None else imagenet_descriptions(self.classes)


class _ConseImage(ImageTeacher):
    class_embeddings: Tensor
    centre: Tensor

    def __init__(self, spec: Conse, classifier: Any, encoder: SentenceEncoder, descriptions: Sequence[str]) -> None:
        config = resolve_model_data_config(classifier)
        size = spec.image_size or config["input_size"][-1]
        super().__init__(
            Preprocess(size=size, mean=config["mean"], std=config["std"], interpolation=config["interpolation"])
        )
        embeddings = _class_embeddings(encoder, descriptions)
        if spec.whiten:
            embeddings = embeddings @ whitening(embeddings)
        self.classifier = classifier
        self.temperature = spec.temperature
        self.register_buffer("class_embeddings", embeddings)  # N, or N W [1000, D]
        self.register_buffer("centre", embeddings.mean(0))
        self.embed_dim = embeddings.shape[1]
        self.name = f"conse_{classifier.pretrained_cfg['architecture']}".replace("tf_", "")
        given: tuple[Any, ...] = (spec.temperature, size, config["mean"], config["std"], config["interpolation"])
        if spec.whiten:  # those without it keep their fingerprints
            given += ("whiten",)
        # Of what was given: the last digits of the class embeddings are the machine's, and so were earlier fingerprints
        self.fingerprint = module_fingerprint(classifier, "conse", *given, encoder.fingerprint, list(descriptions))
        self.earlier_fingerprints = (module_fingerprint(self, *given),)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.embed(self.classifier(inputs), temperature=self.temperature)

    def embed(self, logits: Tensor, *, temperature: float) -> Tensor:
        """Turn the classifier's logits [B, C] into embeddings [B, D]."""
        return (logits / temperature).softmax(1) @ self.class_embeddings - self.centre


@torch.inference_mode()
def confidences(
    tower: ImageTeacher, batches: Iterable[Tensor], bank: Tensor, *, temperatures: Sequence[float] = TEMPERATURES
) -> dict[float, float]:
    """Measure how sure a ConSE teacher is of its answers at several temperatures, without labels.

    The temperature of the largest value is a good one: found so, and confirmed by labels, for 10 and for 200 names.

    Args:
        tower: of `Conse.image`.
        batches: images uint8 [B, 3, H, W], some hundred in all, on the tower's device.
        bank: the names' unit rows, float32 [C, D].
        temperatures: to try.

    Returns:
        For each temperature the cosine with the likeliest name, in the mean over the images.
    """
    assert isinstance(tower, _ConseImage)
    logits = torch.cat([tower.classifier(tower.preprocess(images)).float() for images in batches])
    bank = bank.to(logits.device)
    return {
        t: (normalize(tower.embed(logits, temperature=t), dim=1) @ bank.T).amax(1).mean().item() for t in temperatures
    }


class _ConseText(TextTeacher):
    def __init__(self, encoder: SentenceEncoder, descriptions: Sequence[str], *, whiten: bool) -> None:
        self._encoder, self._descriptions, self._whiten = encoder, descriptions, whiten
        given = ("whiten",) if whiten else ()
        self.fingerprint = fingerprint("conse-text", encoder.fingerprint, list(descriptions), *given)

    @cached_property
    def _classes(self) -> Tensor:
        return _class_embeddings(self._encoder, self._descriptions)

    @cached_property
    def _whitening(self) -> Tensor:
        return whitening(self._classes)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        centred = self._encoder(prompts) - self._classes.mean(0)
        return centred @ self._whitening if self._whiten else centred


def whitening(embeddings: Tensor) -> Tensor:
    """Compute the shrunk whitening of class embeddings [C, D]: (cov + mean variance * identity)^(-1/2), [D, D]."""
    centred = (embeddings - embeddings.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    scales = (variances.clamp(min=0) + variances.mean()).rsqrt()
    return ((directions * scales) @ directions.T).to(embeddings.dtype)


_embedded: dict[str, Tensor] = {}  # a thousand sentences take seconds, and both towers read the same


def _class_embeddings(encoder: SentenceEncoder, descriptions: Sequence[str]) -> Tensor:
    """Embed the classes' texts, once a process: unit rows [1000, D]."""
    key = fingerprint(encoder.fingerprint, list(descriptions))
    if key not in _embedded:
        _embedded[key] = encoder(descriptions)
    return _embedded[key].clone()


def _create_classifier(name: str, *, pretrained: bool = True) -> Any:
    name = locate_classifier(name)
    if name.startswith("local-dir:") and not Path(name.removeprefix("local-dir:")).is_dir():
        raise TeacherError(
            f"teacher.classifier {name!r}: no such folder. For the CIFAR-10 recipes: python recipes/prepare/cifar10.py"
        )
    source = timm_source(name, field="teacher.classifier", pretrained=pretrained)
    try:
        return build_timm_model(source, pretrained=pretrained)
    except BUILD_ERRORS as error:  # an unknown name or tag, a folder that does not fit, no connection to the Hub
        raise TeacherError(f"teacher.classifier {name!r} can't be built ({error}).") from error


def imagenet_descriptions(subset: str) -> list[str]:
    """List timm's long descriptions of an ImageNet subset's classes. Raises: TeacherError for an unknown subset."""
    try:
        info = ImageNetInfo(subset)
    except (AssertionError, KeyError) as error:  # timm asserts; under `python -O` a lookup fails
        known = ", ".join(TIMM_SUBSETS)
        raise TeacherError(
            f"teacher.classes {subset!r} is unknown to timm. Known: {known}. Or leave the field out."
        ) from error
    return [info.index_to_description(i, detailed=True) for i in range(info.num_classes())]


def class_descriptions(classifier: Any) -> list[str]:
    """Describe each class: by timm's long descriptions for an ImageNet head, else by the model's own label names.

    Raises:
        TeacherError: the model has neither.
    """
    own = classifier.pretrained_cfg.get("label_names")
    subset = infer_imagenet_subset(classifier)
    if subset is not None:
        return imagenet_descriptions(subset)
    if own:
        return list(own)
    raise TeacherError(
        f"Nothing says what the {classifier.num_classes} classes of "
        f"{classifier.pretrained_cfg.get('architecture')!r} are. "
        "ConSE needs an ImageNet classifier, or one whose config.json has label_names."
    )
