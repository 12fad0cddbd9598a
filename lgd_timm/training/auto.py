"""From a folder of pictures to a published student in one call: shards, teaching, distilling, evaluation, report.

A stage that is done is skipped, and one whose input has changed is done again with all that follow. `auto.json` in the
output folder says what was done with which inputs; the folder itself is the run's, as `distill` leaves it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.reader import read_teacher, recipe_from_dict
from ..config.recipe import Recipe
from ..data.dataset import ShardDataset
from ..data.index import INFO, ShardSet, open_shards, read_info
from ..data.stored_embeddings import StoredEmbeddings, open_stored
from ..data.writer import write_shards
from ..errors import LGDError, RecipeError, TeacherError, WeightsError
from ..evaluate.report import report
from ..evaluate.zero_shot import (
    match_classes,
    stored_classifier,
    warn_of_weak_teacher,
    with_stored_embeddings,
    zero_shot,
)
from ..hub.weights import local_folder, manifest
from ..publish.metrics import read_metrics
from ..students.entrypoints import STUDENTS
from ..teachers import Conse, OpenCLIP, Stored
from ..teachers.catalog import find_teacher, get_teacher
from ..teachers.prepare import prepare_teacher
from ..utils.device import pick_device
from ..utils.files import atomic_file, fingerprint, hold_folder, write_json
from ..utils.schema import build, to_plain
from ..utils.typed_json import JSONError, read_json
from .distill import distill
from .photos import Photos, chosen, read_photos
from .plan import Plan, make_plan, settings_of
from .teach import folder_name, teach

log = logging.getLogger(__name__)

RECORD = "auto.json"
VERSION = 1  # raised when the same inputs would be done otherwise
UNITS = {"s": 1, "m": 60, "h": 3600}
LONGEST = 30 * 24 * 3600.0  # seconds that a call may take
RUN = ("checkpoints", "tensorboard", "published", "report", "log.jsonl", "recipe.yaml")  # what follows the teaching


@dataclass(frozen=True)
class AutoResult:
    """What `distill_folder` made.

    Attributes:
        published: folder of the student, which timm loads.
        recipe: YAML, for a longer run with `lgd-timm distill`.
        report: the page with pictures, HTML.
        student: zero-shot accuracy of the student on the held-out images in percent; None without class folders.
        teacher: the teacher's.
        chance: of guessing.
    """

    published: Path
    recipe: Path
    report: Path
    student: float | None
    teacher: float | None
    chance: float | None


def distill_folder(
    images: str | Path,
    *,
    names: str | Sequence[str] | None = None,
    teacher: str | Conse | OpenCLIP = "conse-lite2",
    student: str = "lgd_mobilenetv2",
    templates: str | Sequence[str] | None = None,
    time: str = "4m",
    from_scratch: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
) -> AutoResult:
    """Distil a student from a folder of pictures and names.

    What is chosen is logged, a line each. A call that was stopped goes on where it was when it is made again.

    Args:
        images: folder of pictures, with one folder a class, or flat. Labels are used to evaluate, and for nothing else.
        names: a vocabulary source, such as a text file with one name a line; None: the class folders' names.
        teacher: a short name (see `teachers.catalog`), a recipe's file whose teacher is taken, or a spec.
        student: timm's name of the model.
        templates: prompt templates of the names; None: the teacher's own.
        time: for teaching and distilling: "90s", "4m", "1h".
        from_scratch: start from random weights, also where the package has published ones of the student.
        out: folder of the results; None: output/STUDENT.FOLDER.
        device: "auto", "cpu", "cuda", ...

    Returns:
        Where everything is, and the accuracies.

    Raises:
        LGDError: bad input, before anything is written.
        Stopped: SIGTERM ended the run, which is saved.
    """
    root, seconds, device = Path(images).resolve(), read_seconds(time), pick_device(device)
    tag = _tag(root)
    work = _Work.open(Path(out) if out is not None else Path("output") / f"{student}.{tag}")
    photos = read_photos(root, names=names, templates=_templates_of(teacher) if templates is None else templates)
    spec = _find_teacher(teacher)
    pretrained = not from_scratch and _start_of(student) is not None
    work.begin()
    plan = _planned(
        work,
        photos,
        spec,
        tune=isinstance(teacher, str) and not _is_recipe(teacher),
        student=student,
        pretrained=pretrained,
        seconds=seconds,
        device=device,
    )
    shards = _written(work, photos, plan, name=tag)
    stored = _taught(work, shards, plan, photos)
    recipe = _recipe(plan, photos, stored, shards, student=student, name=tag)
    _report_teacher(recipe, photos, stored, shards)
    published = _distilled(work, recipe, shards)
    page = _reported(work, shards)
    return _result(published, work.out / "recipe.yaml", page)


def read_seconds(text: str) -> float:
    """Read a span of time such as 90s, 4m or 1.5h. Raises: RecipeError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    seconds = 0.0 if found is None else float(found[1]) * UNITS[found[2]]
    if not 0 < seconds <= LONGEST:
        raise RecipeError(f"time {text[:50]!r} is no span of time up to 30 days. Write 90s, 4m or 1h.")
    return seconds


class _Work:
    """The output folder, and which stages were done in it with which inputs."""

    def __init__(self, out: Path, done: dict[str, Any]) -> None:
        self.out, self.done = out, done

    @classmethod
    def open(cls, out: Path) -> _Work:
        """Read the folder's record. Raises: RecipeError for a folder of something else."""
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return cls(out, {})
        try:
            done = read_json(out / RECORD, dict[str, dict[str, Any]])
        except (OSError, JSONError):
            raise RecipeError(
                f"{out} is not empty, and nothing that lgd-timm auto has begun. Choose another --out."
            ) from None
        return cls(out, done)

    def begin(self) -> None:
        """Make the folder, and keep other processes out of it. Raises: WeightsError."""
        hold_folder(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._save()

    def is_done(self, stage: str, key: str) -> bool:
        """Whether a stage was begun or done with inputs of this fingerprint."""
        return self.done.get(stage, {}).get("inputs") == key

    def note(self, stage: str, key: str, **facts: Any) -> None:
        """Write down that a stage was begun or done."""
        self.done[stage] = {"inputs": key, **facts}
        self._save()

    def remove(self, *names: str) -> None:
        """Remove what an earlier call left."""
        for name in names:
            path = self.out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _save(self) -> None:
        write_json(self.out / RECORD, self.done)


def _planned(
    work: _Work,
    photos: Photos,
    teacher: Conse | OpenCLIP,
    **options: Any,
) -> Plan:
    found = [photos.fingerprint, photos.vocabulary.fingerprint, photos.labelled]
    key = fingerprint(VERSION, found, to_plain(teacher), options)
    if work.is_done("plan", key):
        try:
            before: Plan = build(Plan, work.done["plan"].get("plan"), where="plan")
        except LGDError as error:
            log.warning("%s is damaged (%s): the plan is made anew", work.out / RECORD, error)
        else:
            log.info("plan: as before")
            return before
    plan = make_plan(photos, teacher, **options)
    work.note("plan", key, plan=to_plain(plan))
    return plan


def _written(work: _Work, photos: Photos, plan: Plan, *, name: str) -> ShardSet:
    """Write the shards: split train, and val where images are held out."""
    key = fingerprint(photos.fingerprint, photos.labelled, plan.learned, len(photos.val))
    folder = work.out.resolve() / "shards"
    if not work.is_done("shards", key):
        work.remove("shards")
        work.note("shards", key)
    there = read_info(folder)["splits"] if (folder / INFO).exists() else {}
    splits = {"train": chosen(photos.train, plan.learned, root=photos.root), "val": photos.val}
    for split, paths in splits.items():
        if paths and split not in there:
            write_shards(photos.root, folder, split=split, labels=photos.labelled, name=name, skip_bad=True, only=paths)
    log.info("shards: %s%s", folder, " are there" if set(there) == {split for split in splits if splits[split]} else "")
    return open_shards(folder, split="train")


def _taught(work: _Work, shards: ShardSet, plan: Plan, photos: Photos) -> StoredEmbeddings:
    """Store the teacher's embeddings of each image, whole."""
    splits = [shards, *([open_shards(str(shards.root), split="val")] if photos.val else [])]
    key = fingerprint([split.fingerprint for split in splits], to_plain(plan.teacher), plan.taught_on.fingerprint)
    done = work.done.get("teach", {}).get("folder")
    if work.is_done("teach", key) and isinstance(done, str):
        log.info("teacher's embeddings: %s are there", done)
        return open_stored(done)
    tower, text = plan.teacher.image(), plan.teacher.text().fingerprint
    out = work.out.resolve() / "shards" / folder_name(tower, plan.taught_on)
    for split in splits:
        stored = teach(
            tower,
            split,
            spec=to_plain(plan.teacher),
            text_fingerprint=text,
            views=plan.taught_on,
            out=out,
            device=plan.device,
            max_bad=1.0,  # they were readable when the shards were written, by their headers
        )
    work.note("teach", key, folder=str(out))
    return stored


def _recipe(
    plan: Plan, photos: Photos, stored: StoredEmbeddings, shards: ShardSet, *, student: str, name: str
) -> Recipe:
    settings = settings_of(plan)
    teacher = Stored(str(stored.root), plan.teacher, "float16", "image", plan.taught_on)
    data = {"shards": str(shards.root), "val_split": "val" if photos.val else None, "max_bad": 0.1, **settings["data"]}
    data["batch_size"] = min(data["batch_size"], len(shards))  # some may have been left out
    return recipe_from_dict(
        {
            "name": name,
            "teacher": to_plain(teacher),
            "vocabulary": {"source": list(photos.vocabulary.names), "templates": list(photos.vocabulary.templates)},
            "student": {"model": student, "image_size": plan.size, "pretrained": plan.pretrained},
            **settings,
            "data": data,
        }
    )


def _report_teacher(recipe: Recipe, photos: Photos, stored: StoredEmbeddings, shards: ShardSet) -> None:
    """Log how often the teacher is right, before a student learns from it."""
    if not photos.val:
        return
    _, bank_of = prepare_teacher(recipe.teacher, vocabulary=photos.vocabulary, views=recipe.views)
    val, names = open_shards(str(shards.root), split="val"), photos.vocabulary.names
    order = match_classes(val, names) or list(range(len(names)))
    dataset = ShardDataset(val, views=stored.views, allow_empty=True)
    images = with_stored_embeddings(dataset, views=None, teacher=stored.metadata["fingerprint"])
    assert images is not None, "they were stored just now"
    bank = bank_of(photos.vocabulary)[order]
    score = zero_shot(stored_classifier(bank), images, names=[names[number] for number in order], max_bad=1.0)
    log.info("teacher: %s", score)
    warn_of_weak_teacher(score)


def _distilled(work: _Work, recipe: Recipe, shards: ShardSet) -> Path:
    key = fingerprint(VERSION, recipe.to_dict(), shards.fingerprint)
    if not work.is_done("distill", key):
        work.remove(*RUN)
        work.note("distill", key)
    if recipe.student.pretrained:
        log.info(
            "student: %s from its published weights %s, not from scratch (--from-scratch)",
            recipe.student.model,
            _start_of(recipe.student.model),
        )
    else:
        log.info("student: %s from random weights", recipe.student.model)
    path = work.out / "recipe.yaml"
    try:
        published = distill(recipe, out=work.out, resume=True)
    finally:
        if path.exists():
            _write_recipe(path, recipe)
    return published


def _write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe with a word on what to do with it."""
    start = "from published weights (student.pretrained)" if recipe.student.pretrained else "from random weights"
    header = (
        f"# What lgd-timm auto chose for {Path(recipe.data.shards).parent.name}; the student starts {start}.\n"
        "# A longer run, from the same shards and embeddings:\n"
        f"#   lgd-timm distill {path} --schedule.epochs {4 * recipe.schedule.epochs} --output output/longer\n"
    )
    with atomic_file(path) as temporary:
        temporary.write_text(header + recipe.to_yaml(), encoding="utf-8")


def _reported(work: _Work, shards: ShardSet) -> Path:
    page, key = work.out / "report" / "index.html", work.done["distill"]["inputs"]
    if work.is_done("report", key) and page.is_file():
        return page
    info = read_info(shards.root)
    report([work.out], data=str(shards.root), split="val" if "val" in info["splits"] else "train", out=page.parent)
    work.note("report", key)
    return page


def _result(published: Path, recipe: Path, page: Path) -> AutoResult:
    metrics = read_metrics(published)
    own, teacher = metrics.get("zero_shot") or {}, metrics.get("teacher_zero_shot") or {}
    return AutoResult(published, recipe, page, own.get("top1"), teacher.get("top1"), own.get("chance"))


def _tag(root: Path) -> str:
    """Make a name for weights and shards from the folder's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", root.name).strip("_")[:60] or "photos"


def _is_recipe(teacher: str) -> bool:
    return teacher.endswith((".yaml", ".yml"))


def _templates_of(teacher: str | Conse | OpenCLIP) -> str:
    """Return in which templates a teacher reads names. Raises: TeacherError for an unknown short name."""
    return "none" if not isinstance(teacher, str) or _is_recipe(teacher) else find_teacher(teacher).templates


def _find_teacher(teacher: str | Conse | OpenCLIP) -> Conse | OpenCLIP:
    """Get a teacher. Raises: TeacherError, RecipeError."""
    if not isinstance(teacher, str):
        return teacher
    if not _is_recipe(teacher):
        log.info("teacher: %s, %s", teacher, find_teacher(teacher).about)
        return get_teacher(teacher)
    found = read_teacher(teacher).teacher
    spec = found.taught_by if isinstance(found, Stored) else found
    if spec is None:
        raise TeacherError(f"{teacher} has stored embeddings, and does not say who made them. Name another teacher.")
    return spec


def _start_of(student: str) -> str | None:
    """Name the published weights on this disk that a student starts from; None where there are none."""
    base, _, tag = student.partition(".")
    if base not in STUDENTS:
        return None
    rows = [row for row in manifest() if row.startswith(f"{base}.") and (not tag or row == student)]
    try:
        return rows[0] if rows and local_folder(rows[0]) is not None else None
    except WeightsError:  # damaged: a run from random weights needs none
        return None
