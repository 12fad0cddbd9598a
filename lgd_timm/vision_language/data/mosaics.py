"""Generated scenes: 2 to 4 small photographs of one class each in a 2 x 2 grid, with generated captions and questions.

The photographs and their classes are real, from shards such as CIFAR-10's; where they lie, and every sentence, is
generated. It is a small world in which regions, captions and answers are known exactly: good for tests of a method at
the cost of a CPU, no substitute for COCO.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from ...data.index import ShardSet, open_shards
from ...errors import LGDError, VocabularyError
from ...utils.files import fingerprint
from ...utils.schema import Range, Seed, Size
from .images import ShardReader
from .sample import Sample

CELLS = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("0", "1", "2", "3", "4")
NOTHING = "nothing"
BACKGROUND = (124, 116, 104)  # ImageNet's mean
VERSION = 3  # of how scenes and sentences are drawn
CAPTIONS = 5  # references of a scene, as in COCO


@dataclass(frozen=True)
class Scene:
    """The tiles of a scene, cells in rising order."""

    cells: tuple[int, ...]
    positions: tuple[int, ...]  # of the tiles in the shards
    labels: tuple[int, ...]


Task = Literal["caption", "question"]


@dataclass(frozen=True)
class Mosaics:
    """Generated scenes of photographs in shards."""

    kind: ClassVar[str] = "mosaics"
    shards: str  # folder of labelled photographs, such as data/cifar10
    split: str = "train"
    first: Size = 0  # of the photographs that are used
    last: Annotated[int, Range(1)] | None = None  # one past the last; null: all from the first
    scenes: Annotated[int, Range(1, 10**8)] = 20_000
    seed: Seed = 0
    task: Task = "caption"

    def open(self) -> MosaicsDataset:
        """Read the labels, but not the images. Raises: LGDError."""
        shards = open_shards(self.shards, split=self.split)
        tiles = range(self.first, len(shards) if self.last is None else self.last)
        return MosaicsDataset(shards, tiles=tiles, scenes=self.scenes, seed=self.seed, task=self.task)


class MosaicsDataset:
    """Scenes by number. One is a pure function of (seed, number) and of the tiles.

    Args:
        shards: photographs with labels (`cls`) and class names, all of one size.
        tiles: positions in the shards that scenes are made of. Ranges that do not overlap make disjoint splits.
        scenes: how many.
        seed: of what is drawn at random.
        task: samples have captions, or a question with its answer.

    Attributes:
        vocabulary: all answers.
        tiles_fingerprint: of the photographs.

    Raises:
        LGDError: there are no scenes or tiles, or positions lie outside the shards.
        VocabularyError: the shards name no classes.
        ShardError: a tile can't be read or has no label.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        tiles: Sequence[int],
        scenes: int,
        seed: int,
        task: Task = "caption",
    ) -> None:
        if not tiles or scenes < 1 or min(tiles) < 0 or max(tiles) >= len(shards):
            raise LGDError(
                f"{scenes} scenes of {len(tiles)} tiles can't be made of {shards.root}, which has {len(shards)} "
                f"images in {shards.split!r}. Give at least one scene, and positions from 0 to {len(shards) - 1}."
            )
        if not shards.class_names:
            raise VocabularyError(f"{shards.root} names no classes, of which captions are made. Write it with labels.")
        self._reader, self._tiles, self._scenes, self._seed, self._task = (
            ShardReader(shards),
            tuple(tiles),
            scenes,
            seed,
            task,
        )
        self.names = shards.class_names
        self.vocabulary = (*self.names, NOTHING, "yes", "no", *COUNTS)
        self.tile_size = tuple(self._reader.image(self._tiles[0]).shape[1:])
        self._labels = {position: self._label(position) for position in self._tiles}
        self.tiles_fingerprint = shards.fingerprint
        self.fingerprint = fingerprint("mosaics", VERSION, shards.fingerprint, shards.split, tiles, scenes, seed, task)

    def __len__(self) -> int:
        return self._scenes

    def __getitem__(self, index: int) -> Sample:
        scene, draw = self._draw(index)
        asked: tuple[str, str] | None = self._ask(scene, draw) if self._task == "question" else None
        return Sample(
            key=f"{self._reader.shards.split}-{self._seed}-{index}",
            image=partial(self._paint, scene),
            boxes=self._boxes(scene),
            captions=() if asked else self._describe(scene, draw),
            question=asked[0] if asked else None,
            answers={asked[1]: 1.0} if asked else None,
        )

    def scene(self, index: int) -> Scene:
        """Return the tiles of a scene."""
        return self._draw(index)[0]

    def tile(self, position: int) -> torch.Tensor:
        """Decode a tile by its position in the shards, uint8 [3, H, W]. Raises: ShardError."""
        return self._reader.image(position)

    def _draw(self, index: int) -> tuple[Scene, np.random.Generator]:
        if not 0 <= index < self._scenes:
            raise IndexError(f"{index} of {self._scenes} scenes")
        draw = np.random.default_rng([self._seed, index])
        count = int(draw.integers(2, len(CELLS) + 1))
        cells = tuple(sorted(draw.choice(len(CELLS), count, replace=False).tolist()))
        positions = tuple(self._tiles[place] for place in draw.integers(len(self._tiles), size=count))
        return Scene(cells, positions, tuple(self._labels[position] for position in positions)), draw

    def _label(self, position: int) -> int:
        text = self._reader.read(position, "cls")
        if not text.strip().isdigit() or int(text) >= len(self.names):
            raise LGDError(
                f"{self._reader.shards.root}: {self._reader.key(position)} has the label {text[:20]!r}, which is none "
                f"of {len(self.names)} classes. Write the shards again."
            )
        return int(text)

    def named_rightly(self, caption: str, index: int) -> float:
        """Compute the share of a scene's tiles that a caption names at their places, of those there or named."""
        scene = self.scene(index)
        truth = {(CELLS[cell], self.names[label]) for cell, label in zip(scene.cells, scene.labels, strict=True)}
        said = set(re.findall(rf"\b({'|'.join(CELLS)}) an? ({'|'.join(self.names)})\b", caption))
        return len(truth & said) / max(len(truth), len(said))

    def _boxes(self, scene: Scene) -> torch.Tensor:
        height, width = self.tile_size
        corners = [(cell % 2 * width, cell // 2 * height) for cell in scene.cells]
        return torch.tensor([(x, y, x + width, y + height) for x, y in corners], dtype=torch.float32)

    def _paint(self, scene: Scene) -> Image.Image:
        height, width = self.tile_size
        canvas = Image.new("RGB", (2 * width, 2 * height), BACKGROUND)
        for cell, position in zip(scene.cells, scene.positions, strict=True):
            canvas.paste(self._reader.pil(position), (cell % 2 * width, cell // 2 * height))
        return canvas

    def _describe(self, scene: Scene, draw: np.random.Generator) -> tuple[str, ...]:
        """Five captions: tiles in different orders, in sentences of different forms."""
        names = [self.names[label] for label in scene.labels]
        placed = [f"{CELLS[cell]} {_article(name)} {name}" for name, cell in zip(names, scene.cells, strict=True)]
        forms = ("{}", "{}", "{}", "we see {}", "here are {}")
        orders = [list(range(len(names))), *(draw.permutation(len(names)).tolist() for _ in range(CAPTIONS - 1))]
        return tuple(
            form.format(_join([placed[place] for place in order])) for form, order in zip(forms, orders, strict=True)
        )

    def _ask(self, scene: Scene, draw: np.random.Generator) -> tuple[str, str]:
        """A question of one of four kinds, with its answer."""
        names = dict(zip(scene.cells, (self.names[label] for label in scene.labels), strict=True))
        kind = int(draw.integers(4))
        if kind == 0:
            cell = int(draw.integers(len(CELLS)))
            return f"what is at the {CELLS[cell]}?", names.get(cell, NOTHING)
        if kind == 1:
            return "how many pictures are there?", COUNTS[len(names)]
        absent = sorted(set(self.names) - set(names.values()))
        present = sorted(set(names.values()))
        wanted = bool(draw.integers(2)) or not absent
        name = str(draw.choice(present if wanted else absent))
        if kind == 2:
            return f"is there {_article(name)} {name}?", "yes" if wanted else "no"
        return f"how many pictures show {_article(name)} {name}?", COUNTS[Counter(names.values())[name]]


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _join(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
