"""COCO's captions as they are distributed: captions_train2014.json or captions_val2017.json, and a folder of images."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from ...errors import LGDError
from ...transfer.detect.annotations import check_files
from .images import load_file
from .json_files import Id, check_known, check_unique, fingerprint_of, read_json, read_list, wrong_file
from .sample import Sample

log = logging.getLogger(__name__)

EXPECTED = (
    "COCO's captions_*.json, {images: [{id, file_name, ...}, ...], annotations: [{id, image_id, caption}, ...], ...}"
)


@dataclass(frozen=True)
class _Image:
    id: Id
    file_name: str


@dataclass(frozen=True)
class _Caption:
    id: Id
    image_id: Id
    caption: str


@dataclass(frozen=True)
class CocoCaptions:
    """A split of COCO's captions."""

    kind: ClassVar[str] = "coco_captions"
    annotations: str  # the file, such as captions_train2014.json
    images: str  # the folder in which the names of its images begin, such as train2014

    def open(self) -> CocoCaptionsDataset:
        """Read the file, but not its images. Raises: LGDError."""
        return CocoCaptionsDataset(self.annotations, images=self.images)


class CocoCaptionsDataset:
    """One sample an image, with all its captions; images without captions are left out and counted in the log.

    Args:
        annotations: the file.
        images: the folder in which the names of its images begin.

    Raises:
        LGDError: the file has another layout, or an image that it names is missing.
    """

    def __init__(self, annotations: str | Path, *, images: str | Path) -> None:
        path, self.folder = Path(annotations), Path(images)
        content = read_json(path, expected=EXPECTED)
        entries = read_list(path, content, "images", _Image, expected=EXPECTED)
        captions = read_list(path, content, "annotations", _Caption, expected=EXPECTED)
        names = {entry.id: entry.file_name for entry in entries}
        check_unique(path, [entry.id for entry in entries], "image id", expected=EXPECTED)
        check_unique(path, [entry.id for entry in captions], "annotation id", expected=EXPECTED)
        check_known(path, (entry.image_id for entry in captions), names, "image", expected=EXPECTED)
        texts = defaultdict[int, list[str]](list)
        for entry in captions:
            if text := " ".join(entry.caption.split()):
                texts[entry.image_id].append(text)
        self._samples = [(number, name, tuple(texts[number])) for number, name in names.items() if texts[number]]
        if not self._samples:
            raise wrong_file(path, "has only empty captions", expected=EXPECTED)
        if bare := len(names) - len(self._samples):
            log.info("%s: %d of %d images have no caption and are left out", path, bare, len(names))
        self._check_files(path)
        self.fingerprint = fingerprint_of("coco_captions", [path], [self.folder / name for _, name, _ in self._samples])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        number, name, captions = self._samples[index]
        return Sample(key=str(number), image=partial(load_file, self.folder / name), captions=captions)

    def _check_files(self, path: Path) -> None:
        names = [name for _, name, _ in self._samples]
        if stray := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise LGDError(f"{path} names {stray[0]!r}, which lies outside the folder of images. Correct it.")
        check_files(self.folder, names, path)
