"""Choose a recipe by what was found and measured: the images' sizes and number, the machine's speed, the time allowed.

Everything is said in one line of the log each. The plan is kept, so that a run that goes on is the same run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Views
from ..data.decode import EncodedImage
from ..errors import ShardError
from ..students.model import create_student
from ..students.small_conv import speed_up_small_convs
from ..teachers import Conse, ImageTeacher, OpenCLIP
from ..teachers.conse import confidences
from ..teachers.text_bank import text_bank
from .photos import Photos

log = logging.getLogger(__name__)

SIZES = (224, 192, 160, 128, 96, 64, 48, 32)  # of students, in pixels
TINY, FOR_TINY = 64, 192  # pixels: images so small are enlarged to 192 for a ConSE teacher, and not to its own size
PROBED = 200  # images on which the teacher is tried
LARGEST = 256  # pixels of the views that a teacher sees, if the images have them
TEACHING = 0.35  # share of the time that teaching may take
MARGIN = 0.9  # share of the time that is planned for, as speeds are not the same all the time
SHOWN = 30_000  # images that a student should be shown at least, or each image 4 times: it decides on its size
MOST_EPOCHS = 150
TRIED = 64  # images of a trial step, at most
TRIAL = 2.0  # seconds that a trial takes, at least
IN_MEMORY = 512e6  # bytes of rendered views that are kept
AUGMENTATION = "light"


@dataclass(frozen=True)
class Plan:
    """What is run, decided once for a folder.

    Attributes:
        teacher: with its temperature and image size.
        learned: how many images are learned from.
        teach_size: pixels of the images that the teacher sees.
        size: pixels of the images that the student sees.
        batch_size: images a step.
        epochs: passes over the images.
        views: random views of each image.
        in_memory: whether rendered views are kept.
        pretrained: whether the student starts from published weights.
        device: where both work.
    """

    teacher: Conse | OpenCLIP
    learned: int
    teach_size: int
    size: int
    batch_size: int
    epochs: int
    views: int
    in_memory: bool
    pretrained: bool
    device: str

    @property
    def taught_on(self) -> Views:
        """The views that the teacher embeds: each image whole."""
        return Views(size=self.teach_size, augmentation="none")

    @property
    def student_views(self) -> Views:
        """The views that the student learns from."""
        return Views(size=self.size, augmentation=AUGMENTATION, count=self.views)


@dataclass(frozen=True)
class Speed:
    """What was measured, in images a second."""

    teacher: float
    student: float
    reading: float


def make_plan(
    photos: Photos,
    teacher: Conse | OpenCLIP,
    *,
    tune: bool,
    student: str,
    pretrained: bool,
    seconds: float,
    device: str,
) -> Plan:
    """Measure teacher and student on some of the images, and choose what fits into the time.

    Args:
        photos: the images and names.
        teacher: who teaches.
        tune: whether temperature and image size are chosen here, where it is a ConSE teacher.
        student: timm's name of the model.
        pretrained: whether it starts from published weights.
        seconds: for teaching and distilling.
        device: where both work.

    Raises:
        LGDError: the teacher or the student can't be built, or no image can be read.
    """
    teach_size = min(photos.side, LARGEST)
    if tune and isinstance(teacher, Conse) and photos.side <= TINY:
        teacher = replace(teacher, image_size=FOR_TINY)
    images, reading = _read(photos.sample(PROBED), size=teach_size)
    teacher, embed_dim, rate = _try_teacher(teacher, images, photos, tune=tune, device=device)
    trial = _Trial(student, embed_dim, device)
    size = _student_size(photos, trial, seconds)
    speed = Speed(rate, trial.rate(size), reading)
    plan = _fit(photos, teacher, speed, seconds=seconds, size=size, teach_size=teach_size)
    plan = replace(plan, pretrained=pretrained, device=device)
    _report(plan, speed, photos)
    return plan


def _read(paths: Sequence[Path], *, size: int) -> tuple[Tensor, float]:
    """Read images whole, uint8 [N, 3, size, size], and measure images/s."""
    views, rows, start = Views(size=size, augmentation="none"), [], time.perf_counter()
    for path in paths:
        try:
            rows.append(views.render(EncodedImage(path.read_bytes()), path.name, 0))
        except (ShardError, OSError):  # left out, with its reason, when the shards are written
            continue
    if not rows:
        raise ShardError(f"None of {len(paths)} images can be read, the first of them {paths[0]}. Give another folder.")
    return torch.stack(rows), len(rows) / (time.perf_counter() - start)


def _try_teacher(
    spec: Conse | OpenCLIP, images: Tensor, photos: Photos, *, tune: bool, device: str
) -> tuple[Conse | OpenCLIP, int, float]:
    """Choose a ConSE teacher's temperature, and measure its speed. Returns the spec, D and images/s."""
    tower, text = spec.image(), spec.text()
    bank = text_bank(photos.vocabulary, text_fingerprint=text.fingerprint, text=lambda: text)
    tower.to(device).to(memory_format=torch.channels_last)
    batches = [batch.to(device) for batch in images.split(TRIED)]
    tower(batches[0][:2])  # memory and kernels are found now
    start = time.perf_counter()
    if not (tune and isinstance(spec, Conse)):
        _embed(tower, batches[:2])
        return spec, tower.embed_dim, sum(map(len, batches[:2])) / (time.perf_counter() - start)
    found = confidences(tower, batches, bank)
    rate = len(images) / (time.perf_counter() - start)
    best = max(found, key=lambda temperature: found[temperature])
    log.info(
        "teacher's temperature: %g, of %s the one of the surest answers to %d images, without labels",
        best,
        ", ".join(f"{temperature:g}" for temperature in found),
        len(images),
    )
    return replace(spec, temperature=best), tower.embed_dim, rate


def _embed(tower: ImageTeacher, batches: Sequence[Tensor]) -> None:
    for batch in batches:
        tower(batch).cpu()


class _Trial:
    """Measures training steps of a student, in images/s."""

    def __init__(self, model: str, embed_dim: int, device: str) -> None:
        self._model, self._embed_dim, self._device = model, embed_dim, device

    def rate(self, size: int) -> float:
        student = create_student(self._model, embed_dim=self._embed_dim, image_size=size).train().to(self._device)
        if self._device == "cpu":
            speed_up_small_convs(student)
        student.to(memory_format=torch.channels_last)
        images = torch.randint(0, 256, (TRIED, 3, size, size), dtype=torch.uint8, device=self._device)
        times = list(self._steps(student, images))
        return TRIED / min(times[1:])

    def _steps(self, student: torch.nn.Module, images: Tensor) -> Iterator[float]:
        """Take steps until `TRIAL` seconds are over, at least 3; yields the seconds of each. The first one warms up."""
        begun, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - begun < TRIAL:
            start, count = time.perf_counter(), count + 1
            loss = student(images).square().mean()
            loss.backward()
            loss.item()  # waits for the device
            student.zero_grad()
            yield time.perf_counter() - start


def _student_size(photos: Photos, trial: _Trial, seconds: float) -> int:
    """Choose the largest size at which the student is shown enough images; larger ones than the images say no more."""
    sizes = [size for size in SIZES if size <= photos.side] or [SIZES[-1]]
    if len(sizes) == 1:
        return sizes[0]
    known = min(sizes, key=lambda size: abs(size - 64))
    wanted = max(SHOWN, 4 * len(photos.train)) / (MARGIN * (1 - TEACHING) * seconds)  # images/s
    rate = trial.rate(known)
    return next((size for size in sizes if rate * (known / size) ** 2 >= wanted), sizes[-1])


def _fit(
    photos: Photos, teacher: Conse | OpenCLIP, speed: Speed, *, seconds: float, size: int, teach_size: int
) -> Plan:
    """Fit number of images and epochs into the time."""
    seconds *= MARGIN
    step = 1 / speed.student + 1 / speed.reading
    teach = 1 / speed.teacher + 1 / speed.reading
    most = min(TEACHING * seconds / teach, seconds / (teach + 2 * step))  # two epochs at least
    learned = max(min(len(photos.train), TRIED), min(len(photos.train), int(most) - len(photos.val)))
    left = seconds - (learned + len(photos.val)) * teach
    epochs = max(1, min(MOST_EPOCHS, int(left / (learned * step))))
    views = min(epochs, int(IN_MEMORY / (learned * 3 * size**2)))
    in_memory = views >= min(epochs, 8)
    return Plan(
        teacher=teacher,
        learned=learned,
        teach_size=teach_size,
        size=size,
        batch_size=min(learned, 64 if learned < 5000 else 128 if learned < 20_000 else 256),
        epochs=epochs,
        views=views if in_memory else epochs,
        in_memory=in_memory,
        pretrained=False,
        device="cpu",
    )


def _report(plan: Plan, speed: Speed, photos: Photos) -> None:
    cores = f", {os.cpu_count()} cores" if plan.device == "cpu" else ""
    log.info("device: %s%s", plan.device, cores)
    log.info("teacher's images: %d px, %.1f images/s", plan.teach_size, speed.teacher)
    log.info("student's images: %d px, %.0f images/s", plan.size, speed.student)
    if plan.learned < len(photos.train):
        log.warning(
            "%d of %d images are learned from: the others do not fit into --time", plan.learned, len(photos.train)
        )
    log.info("learning: batches of %d, %d epochs", plan.batch_size, plan.epochs)
    minutes = minutes_of(plan, speed, photos)
    log.info("expected: %.1f minutes for teaching and distilling", minutes)


def minutes_of(plan: Plan, speed: Speed, photos: Photos) -> float:
    """Estimate the minutes that teaching and distilling take."""
    teach = (plan.learned + len(photos.val)) * (1 / speed.teacher + 1 / speed.reading)
    return (teach + plan.learned * plan.epochs * (1 / speed.student + 1 / speed.reading)) / 60


def settings_of(plan: Plan) -> dict[str, Any]:
    """Give the parts of a recipe that the plan decides."""
    cuda = plan.device.startswith("cuda")
    workers = min(8, max(1, (os.cpu_count() or 2) - 1)) if cuda and not plan.in_memory else 0
    return {
        "views": {"size": plan.size, "augmentation": AUGMENTATION, "count": plan.views},
        "objective": {"kind": "refined"},
        "optimizer": {
            "name": "sgd",
            "lr": round(0.05 * plan.batch_size / 64, 5),
            "weight_decay": 5e-4,
            "weight_decay_all": False,
        },
        "schedule": {"epochs": plan.epochs, "warmup_epochs": min(1.0, plan.epochs / 10)},
        "run": {
            "device": plan.device,
            "amp": "bfloat16" if cuda else "none",
            "checkpoint_every": max(1, plan.epochs // 10),
            "checkpoint_minutes": 2.0,
            "evaluate_every": max(1, plan.epochs // 4),
        },
        "data": {"batch_size": plan.batch_size, "workers": workers, "in_memory": plan.in_memory},
    }
