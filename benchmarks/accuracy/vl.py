"""`python -m benchmarks.accuracy.vl`: does each part of DistillVLM help a small model to describe generated scenes?

Scenes of 2 to 4 CIFAR-10 photographs (`vision_language/data/mosaics.py`); the tiles are the regions, so that student
and teacher have the same tokens. Teacher and student read features of their own frozen backbones, computed once for
each tile. The teacher learns from many scenes, the students from a thousand; all are scored on scenes of other
photographs.

A run that is noted is not made again. The unadapted teacher has learned on other boxes (random parts of the tiles),
and looks at the student's boxes as it is. The control learns without a teacher, for four times as many steps, which
takes about the CPU time of all losses.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgd_timm.data import open_shards
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.teachers.packages import locate_classifier
from lgd_timm.utils.distributed import Ranks
from lgd_timm.utils.files import atomic_file, fingerprint
from lgd_timm.vision_language.batch import Encoded, Encoder, TrainingSet, all_texts, collate
from lgd_timm.vision_language.data.mosaics import CELLS, MosaicsDataset
from lgd_timm.vision_language.features import ImageRegions, open_region_features
from lgd_timm.vision_language.generate import generate
from lgd_timm.vision_language.learner import Distillation, Learner
from lgd_timm.vision_language.losses.attention import AttentionConfig
from lgd_timm.vision_language.losses.hidden_mse import HiddenMSEConfig
from lgd_timm.vision_language.losses.logits import LogitsConfig
from lgd_timm.vision_language.losses.nce import NCEConfig
from lgd_timm.vision_language.model import ModelConfig, VisionLanguageModel
from lgd_timm.vision_language.recipe import Captions, DistillationRecipe, TextRecipe, VisionRecipe
from lgd_timm.vision_language.regions import box_numbers
from lgd_timm.vision_language.scores import score_captions
from lgd_timm.vision_language.teacher import StoredTeacher, Teacher, store_states
from lgd_timm.vision_language.text import Tokenizer, find_tokenizer

from ..settings import cores
from .report import spread

CPU = torch.device("cpu")
TASK = Captions(predict="next", label_smoothing=0.0, words=30)
TEXT = TextRecipe(tokenizer="words", length=32, tags=0)
REGIONS = len(CELLS)


@dataclass(frozen=True)
class Scale:
    """Sizes of the experiment; all of them are part of a run's name."""

    train_tiles: int = 3000
    test_tiles: int = 1000
    teacher_scenes: int = 8000
    student_scenes: int = 1000
    test_scenes: int = 200
    teacher_steps: int = 2000
    student_steps: int = 1000
    teacher_batch: int = 32
    student_batch: int = 16
    variants: int = 5  # captions of a scene, whose teacher states are stored
    student_rate: float = 4e-3
    teacher_rate: float = 3e-3
    teacher_layers: int = 3
    teacher_width: int = 128
    student_layers: int = 2
    student_width: int = 64
    heads: int = 4
    teacher_pixels: int = 96  # of a tile
    student_pixels: int = 48


@dataclass(frozen=True)
class Row:
    """One arm: weights of the losses, the teacher that is asked, how long it learns."""

    attention: float = 0.0
    nce: float = 0.0
    mse: float = 0.0
    logits: float = 0.0
    queue: int = 4096
    teacher: str = "adapted"
    length: int = 1  # times the usual steps

    @property
    def taught(self) -> bool:
        return any((self.attention, self.nce, self.mse, self.logits))

    @property
    def recipe(self) -> DistillationRecipe:
        return DistillationRecipe(
            attention=AttentionConfig(weight=self.attention),
            nce=NCEConfig(weight=self.nce, queue=self.queue),
            hidden_mse=HiddenMSEConfig(weight=self.mse),
            logits=LogitsConfig(weight=self.logits),
        )


ROWS = {
    "no teacher": Row(),
    "full": Row(attention=1, nce=1, logits=1),
    "no teacher, four times the steps": Row(length=4),
    "+ logits": Row(logits=1),
    "+ attention": Row(attention=1),
    "+ NCE, queue 4,096": Row(nce=1),
    "+ hidden MSE": Row(mse=1),
    "+ NCE, queue 256": Row(nce=1, queue=256),
    "+ NCE, queue 1,024": Row(nce=1, queue=1024),
    "full, unadapted teacher": Row(attention=1, nce=1, logits=1, teacher="unadapted"),
}  # the most telling first: a benchmark that is stopped has them
TEACHERS = ("adapted", "unadapted")
COLUMNS = {"cider": "CIDEr-D", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "tiles": "tiles named rightly"}


def main() -> int:
    arguments = _parser().parse_args()
    logging.disable(logging.WARNING)
    scale = Scale(student_steps=arguments.steps, teacher_steps=arguments.teacher_steps)
    rows = {name: row for name, row in ROWS.items() if not arguments.rows or name in arguments.rows}
    first, last = ((f"teacher, {kind}", 0, _identity(scale, {"teacher": kind}, 0)) for kind in TEACHERS)
    runs = [(row, seed, _identity(scale, asdict(rows[row]), seed)) for row in rows for seed in arguments.seeds]
    names = [first, *runs, last]
    try:
        if not arguments.show:
            lab = Lab(scale, shards=arguments.shards, teacher=arguments.teacher, output=arguments.output)
            for row, seed, name in names:
                if name not in {note["identity"] for note in _noted(arguments.notes)}:
                    print(f"{row}, seed {seed}", file=sys.stderr, flush=True)
                    scores = lab.student(rows[row], seed) if row in rows else lab.teacher_scores(row.split(", ")[1])
                    _note(arguments.notes, {"row": row, "seed": seed, "identity": name, **scores})
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    wanted = {name for _, _, name in names}
    print(markdown([note for note in _noted(arguments.notes) if note["identity"] in wanted]))
    return 0


class TileFeatures:
    """Features of scenes, looked up by their tiles: the two methods of `FeatureTable` that are used.

    Args:
        scenes: the data set.
        tiles: position of a tile -> its feature and its box within the tile.
    """

    def __init__(self, scenes: MosaicsDataset, tiles: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        self._scenes, self._tiles = scenes, tiles

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> ImageRegions:
        scene, (height, width) = self._scenes.scene(index), self._scenes.tile_size
        corners = [torch.tensor([cell % 2 * width, cell // 2 * height] * 2) for cell in scene.cells]
        found = [self._tiles[position] for position in scene.positions]
        boxes = torch.stack([box + corner for (_, box), corner in zip(found, corners, strict=True)])
        features = torch.stack([feature for feature, _ in found])
        return ImageRegions(features, box_numbers(boxes, (2 * width, 2 * height)), ())


class Kept:
    """A training set of few variants whose items are encoded once for all runs."""

    def __init__(self, data: TrainingSet) -> None:
        self._data = data
        self._items: dict[tuple[int, int], Encoded] = {}

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, item: tuple[int, int]) -> Encoded:
        index, epoch = item
        key = index, epoch % self._data.variants
        if key not in self._items:
            self._items[key] = self._data[key]
        return self._items[key]


class Lab:
    """Scenes, features and teachers that all rows share."""

    def __init__(self, scale: Scale, *, shards: str, teacher: str, output: Path) -> None:
        self.scale, self._output = scale, output / f"vl-{fingerprint(asdict(scale))}"
        train, test = open_shards(shards, split="train"), open_shards(shards, split="val")
        tiles = {"train": range(scale.train_tiles), "test": range(scale.test_tiles)}
        print("scenes", file=sys.stderr, flush=True)
        self._many = MosaicsDataset(train, tiles=tiles["train"], scenes=scale.teacher_scenes, seed=1)
        self._few = MosaicsDataset(train, tiles=tiles["train"], scenes=scale.student_scenes, seed=2)
        self._test = MosaicsDataset(test, tiles=tiles["test"], scenes=scale.test_scenes, seed=3)
        self._tokenizer: Tokenizer = find_tokenizer("words", texts=all_texts(self._few))
        models = {"student": ("lgd_mobilenetv2", scale.student_pixels), "teacher": (teacher, scale.teacher_pixels)}
        self._features = {
            (who, split): _tile_features(scenes, positions, model=model, pixels=pixels, folder=output)
            for who, (model, pixels) in models.items()
            for split, scenes, positions in (("train", self._few, tiles["train"]), ("test", self._test, tiles["test"]))
        }

    @cached_property
    def _data(self) -> Kept:
        """What every student learns from."""
        features, scale = self._table(self._few, "student"), self.scale
        return Kept(TrainingSet(self._few, encoder=self._encoder(0), features=features, variants=scale.variants))

    def _table(self, scenes: MosaicsDataset, who: str, *, jittered: bool = False) -> Any:
        split = "test" if scenes is self._test else "train"
        features, boxes = self._features[who, split][jittered]
        return TileFeatures(scenes, dict(enumerate(zip(features, boxes, strict=True))))

    def _encoder(self, seed: int) -> Encoder:
        return Encoder(TASK, TEXT, tokenizer=self._tokenizer, seed=seed)

    def _model(self, who: str, seed: int) -> VisionLanguageModel:
        scale, student = self.scale, who == "student"
        width = scale.student_width if student else scale.teacher_width
        torch.manual_seed(seed)
        return VisionLanguageModel(
            ModelConfig(
                features=self._features[who, "train"][0][0].shape[1],
                vocabulary=len(self._tokenizer),
                length=TEXT.length,
                tags=TEXT.tags,
                layers=scale.student_layers if student else scale.teacher_layers,
                width=width,
                heads=scale.heads,
                inner=4 * width,
                dropout=0.1,
                causal=True,
            )
        )

    def _teacher(self, kind: str) -> VisionLanguageModel:
        """Train a teacher, or load it."""
        path, model = self._output / f"teacher-{kind}.safetensors", self._model("teacher", 100)
        if path.is_file():
            model.load_state_dict(load_file(path))
            return model.eval()
        print(f"teacher, {kind}", file=sys.stderr, flush=True)
        scale, features = self.scale, self._table(self._many, "teacher", jittered=kind == "unadapted")
        data = TrainingSet(self._many, encoder=self._encoder(100), features=features)
        train(
            Learner(model, task=TASK),
            data,
            steps=scale.teacher_steps,
            batch=scale.teacher_batch,
            rate=scale.teacher_rate,
        )
        with atomic_file(path) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, temporary)
        return model.eval()

    def teacher_scores(self, kind: str) -> dict[str, Any]:
        """Score a teacher on the student's boxes."""
        return self._score(self._teacher(kind), "teacher") | {"steps": self.scale.teacher_steps}

    def student(self, row: Row, seed: int) -> dict[str, Any]:
        """Train a student and score it."""
        scale, model, encoder = self.scale, self._model("student", seed), self._encoder(0)
        teacher, distillation = None, None
        if row.taught:
            asked = self._teacher(row.teacher)
            torch.manual_seed(seed)  # whether the teacher was trained just now or loaded
            distillation = Distillation(row.recipe, student=model, teacher=asked)
            teacher = self._stored(row.teacher, asked, encoder)
        learner, steps = Learner(model, task=TASK, distillation=distillation), row.length * scale.student_steps
        torch.manual_seed(seed)
        seconds = train(
            learner,
            self._data,
            steps=steps,
            batch=scale.student_batch,
            rate=scale.student_rate,
            teacher=teacher,
            seed=seed,
        )
        return self._score(model.eval(), "student") | {"steps": steps, "cpu_seconds": round(seconds, 1)}

    def _stored(self, kind: str, model: VisionLanguageModel, encoder: Encoder) -> StoredTeacher:
        scale, table = self.scale, self._table(self._few, "student")
        seen = self._table(self._few, "teacher")
        data = TrainingSet(self._few, encoder=encoder, features=table, teacher=seen, variants=scale.variants)
        folder = self._output / f"states-{kind}"
        return store_states(
            folder, data, model, regions=REGIONS, facts={"teacher": kind}, batch_size=64, device=CPU, ranks=Ranks()
        )

    @torch.no_grad()
    def _score(self, model: VisionLanguageModel, who: str) -> dict[str, Any]:
        encoder, table, said = self._encoder(0), self._table(self._test, who), []
        for start in range(0, len(self._test), 100):
            indices = range(start, min(start + 100, len(self._test)))
            batch = collate([encoder.ask(table[index]) for index in indices]).to(CPU)
            said += generate(model, batch, tokenizer=self._tokenizer, task=TASK)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {**score_captions(dict(enumerate(said)), self._test), "parameters": parameters}


def train(
    learner: Learner,
    data: TrainingSet | Kept,
    *,
    steps: int,
    batch: int,
    rate: float,
    teacher: Teacher | None = None,
    seed: int = 0,
) -> float:
    """Train by AdamW, the rate rising for a tenth of the steps and falling linearly. Returns CPU seconds."""
    optimizer = torch.optim.AdamW(learner.parameters(), lr=rate, weight_decay=0.01)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    learner.train()
    began = time.process_time()
    for step, items in enumerate(_items(len(data), batch, steps, seed)):
        made = collate([data[item] for item in items]).to(CPU)
        taught = None if teacher is None else teacher(made)
        losses = learner(made, taught)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if taught is not None and learner.distillation is not None:
            learner.distillation.update(taught.states)
        if step % 100 == 0:
            parts = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"  {step}: {parts}; {time.process_time() - began:.0f} CPU s", file=sys.stderr, flush=True)
    return time.process_time() - began


def _items(count: int, batch: int, steps: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of (index, epoch), each epoch in an order of its own."""
    per_epoch = count // batch
    for step in range(steps):
        epoch, number = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        yield [(int(index), epoch) for index in order[number * batch : (number + 1) * batch]]


def _tile_features(
    scenes: MosaicsDataset, positions: Sequence[int], *, model: str, pixels: int, folder: Path
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Features [N, F] and boxes [N, 4] of whole tiles, and of a random part of each; computed once."""
    name = fingerprint(1, model, pixels, scenes.tiles_fingerprint, list(positions))
    path = folder / f"tiles-{name}.safetensors"
    if not path.is_file():
        print(f"features of {len(positions)} tiles by {model}", file=sys.stderr, flush=True)
        extract = open_region_features(VisionRecipe(model=locate_classifier(model), image_size=pixels), seed=0)
        (height, width), draw = scenes.tile_size, np.random.default_rng(0)
        boxes = torch.stack([_two_boxes(height, width, draw) for _ in positions])
        parts = []
        for start in range(0, len(positions), 50):
            chunk = positions[start : start + 50]
            images = [scenes.tile(position) for position in chunk]
            parts += extract(images, list(boxes[start : start + 50]))
        with atomic_file(path) as temporary:
            save_file({"features": torch.stack(parts).contiguous(), "boxes": boxes}, temporary)
    stored = load_file(path)
    whole, part = ((stored["features"][:, place], stored["boxes"][:, place]) for place in range(2))
    return whole, part


def _two_boxes(height: int, width: int, draw: np.random.Generator) -> Tensor:
    """The whole tile, and a part of half to nine tenths of its side, float32 [2, 4]."""
    share = draw.uniform(0.5, 0.9)
    left, top = draw.uniform(0, (1 - share) * width), draw.uniform(0, (1 - share) * height)
    part = [left, top, left + share * width, top + share * height]
    return torch.tensor([[0.0, 0.0, width, height], part], dtype=torch.float32)


def markdown(notes: Sequence[Mapping[str, Any]]) -> str:
    """One line a row: mean ± sample standard deviation over seeds."""
    lines = [f"| | {' | '.join(COLUMNS.values())} | CPU s | n |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in [*(f"teacher, {kind}" for kind in TEACHERS), *ROWS]:
        runs = [note for note in notes if note["row"] == row]
        if runs:
            cells = [spread([run[key] for run in runs]) for key in COLUMNS]
            seconds = [run["cpu_seconds"] for run in runs if "cpu_seconds" in run]
            lines.append(f"| {row} | {' | '.join(cells)} | {mean(seconds):.0f} | {len(runs)} |" if seconds else
                         f"| {row} | {' | '.join(cells)} | - | {len(runs)} |")  # fmt: skip
    return "\n".join(lines)


def _identity(scale: Scale, row: Mapping[str, Any], seed: int) -> str:
    return fingerprint(asdict(scale), dict(row), seed)


def _noted(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.is_file() else []


def _note(notes: Path, note: Mapping[str, Any]) -> None:
    facts = {"cores": cores(), "torch": version("torch"), "date": date.today().isoformat()}
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**note, **facts}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy.vl", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", default="data/cifar10")
    parser.add_argument("--teacher", default="builtin:efficientnet_lite0", help="its backbone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone")
    parser.add_argument("--steps", type=int, default=Scale.student_steps, help="of a student")
    parser.add_argument("--teacher-steps", type=int, default=Scale.teacher_steps)
    parser.add_argument("--notes", type=Path, default=Path("docs/results/vision_language.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("output/vl"))
    parser.add_argument("--show", action="store_true", help="run nothing, print what is noted")
    return parser


if __name__ == "__main__":
    sys.exit(main())
