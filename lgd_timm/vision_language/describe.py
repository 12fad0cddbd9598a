"""Caption plain pictures and answer questions about them, with a published model or a run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..data.decode import read_image
from ..data.image_folder import IMAGE_SUFFIXES, is_image
from ..errors import LGDError, ShardError
from ..utils.device import pick_device
from .batch import Encoded, collate
from .data.sample import Sample
from .features import regions_of
from .folder import VLModel, open_model
from .generate import generate
from .model import VisionLanguageModel
from .recipe import Answers, Captions, GridRegions
from .regions import RegionSource, open_regions
from .scores import answer as choose
from .stock import CausalModel
from .tower import TowerFeatures


class Describer:
    """A model that looks at plain pictures.

    Args:
        source: a published folder or a finished run.
        grid: cells of a side, which take the place of the model's own regions; None: its own.
        device: auto, cpu, cuda or mps.

    Raises:
        LGDError: the model can't be opened.
    """

    def __init__(self, source: str | Path, *, grid: int | None = None, device: str = "auto") -> None:
        if grid is not None and grid < 1:
            raise LGDError(f"--grid {grid} is no number of cells. Give 1 or more.")
        self._source, self._device = source, torch.device(pick_device(device))
        self._opened: VLModel = open_model(source)
        self._opened.model.to(self._device)
        self._opened.extract.to(self._device)
        regions = self._opened.regions if grid is None else GridRegions(grid, grid)
        if grid is not None and isinstance(self._opened.model, CausalModel):
            raise LGDError(f"{source} has cells of its own. Leave --grid out.")
        self._regions: RegionSource = open_regions(regions)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """Write a caption of each image. Raises: LGDError for a model of another task."""
        task = self._opened.encoder.task
        if not isinstance(task, Captions):
            raise LGDError(f"{self._source} was trained for {task.kind}, not for captions. Take another model.")
        encoder, model, extract = self._opened.encoder, self._opened.model, self._opened.extract
        if isinstance(model, CausalModel):
            assert isinstance(extract, TowerFeatures)
            return model.caption(images, extract)
        batch = collate([self._see(image, question="") for image in images]).to(self._device)
        return generate(model, batch, tokenizer=encoder.tokenizer, task=task)

    def answer(self, image: Image.Image, question: str) -> str:
        """Answer a question about an image. Raises: LGDError for a model of another task, or an empty question."""
        task = self._opened.encoder.task
        if not isinstance(task, Answers):
            raise LGDError(f"{self._source} was trained for {task.kind}, not for answers. Take another model.")
        if not question.strip():
            raise LGDError("The question is empty. Ask one, such as 'what is at the left ?'.")
        batch = collate([self._see(image, question=question)]).to(self._device)
        assert isinstance(self._opened.model, VisionLanguageModel)
        return choose(self._opened.model, batch, self._opened.encoder)[0]

    def _see(self, image: Image.Image, *, question: str) -> Encoded:
        found = self._regions.find(image, Sample(key="the picture", image=image))
        return self._opened.encoder.ask(regions_of(image, found, self._opened.extract), question=question)


def caption(
    source: str | Path, pictures: str | Path, *, grid: int | None = None, device: str = "auto", batch_size: int = 16
) -> dict[Path, str]:
    """Caption an image, or all images of a folder.

    Args:
        source: as of `Describer`.
        pictures: an image file, or a folder of them.
        grid: as of `Describer`.
        device: as of `Describer`.
        batch_size: images at once.

    Returns:
        File -> caption, sorted by file.

    Raises:
        LGDError: the model can't be used, or an image can't be read.
    """
    files = picture_files(Path(pictures))
    describer = Describer(source, grid=grid, device=device)
    found: dict[Path, str] = {}
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        found |= dict(zip(part, describer.caption([read_picture(file) for file in part]), strict=True))
    return found


def answer(
    source: str | Path, picture: str | Path, question: str, *, grid: int | None = None, device: str = "auto"
) -> str:
    """Answer a question about an image. Args, Raises: as of `caption`."""
    image = read_picture(Path(picture))
    return Describer(source, grid=grid, device=device).answer(image, question)


def picture_files(path: Path) -> list[Path]:
    """List the images that a path names. Raises: LGDError where there are none."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if is_image(file.name))
    if not files:
        raise LGDError(f"{path} holds no pictures ({', '.join(IMAGE_SUFFIXES)}). Give a file or a folder of them.")
    return files


def read_picture(path: Path) -> Image.Image:
    """Read an image file. Raises: LGDError where it is none."""
    try:
        return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    except ShardError as error:
        raise LGDError(f"{path} can't be read as a picture ({error}). Remove it.") from error
