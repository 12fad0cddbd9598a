"""Train a vision-language model from its recipe: alone, as the teacher of a student, or with a teacher.

OUT/   recipe.yaml  log.jsonl  checkpoints/  model/  metrics.json
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import __version__
from ..errors import RecipeError, TeacherError, WeightsError
from ..training.engine import check_output, fit, start
from ..utils.device import pick_device
from ..utils.distributed import Ranks, init_distributed
from ..utils.files import write_json
from ..utils.typed_json import JSONError, read_json
from .batch import Encoder, TrainingSet, all_texts, frequent_answers
from .card import vl_card
from .data.sample import Dataset
from .features import Extract, FeatureTable, open_region_features, stored_features
from .folder import METRICS, VLModel, model_folder, open_model, save_model
from .initial import load_initial
from .job import VLJob
from .learner import Distillation, Learner
from .model import ModelConfig, VisionLanguageModel
from .recipe import Answers, Captions, GridRegions, VLRecipe
from .regions import RegionSource, open_regions
from .scores import Scorer, score_most_frequent
from .self_critical import SelfCritical
from .stock import AnyModel, CausalConfig, CausalModel
from .teacher import OnlineTeacher, Teacher, last_only, store_states
from .text import Tokenizer, find_tokenizer
from .tower import TowerFeatures, open_tower

log = logging.getLogger(__name__)

MODEL = "model"


class Process(NamedTuple):
    """This process's device, and the ranks that it trains with."""

    device: torch.device
    ranks: Ranks


@dataclass(frozen=True)
class _Parts:
    """What a run is made of."""

    recipe: VLRecipe
    train: Dataset
    val: Dataset | None
    teacher: VLModel | None
    encoder: Encoder
    source: RegionSource
    extract: Extract
    process: Process

    def features(self, dataset: Dataset, extract: Extract | None = None) -> FeatureTable:
        return stored_features(
            dataset,
            regions=self.source,
            extract=extract or self.extract,
            batch_size=self.recipe.backbone.batch_size,
            device=self.process.device,
            ranks=self.process.ranks,
        )


def pretrain(recipe: VLRecipe, *, out: str | Path, resume: bool = False) -> dict[str, Any]:
    """Train a model without a teacher, on whichever task its recipe has.

    Args:
        recipe: without `distillation.teacher`.
        out: the run's folder, which is made.
        resume: whether to go on from the last checkpoint in `out`, if there is one.

    Returns:
        The content of `out/metrics.json`.

    Raises:
        LGDError: bad input, before anything is written into `out`.
        Stopped: SIGTERM ended the run, which is saved.
    """
    if recipe.distillation.teacher is not None:
        raise RecipeError("The recipe names distillation.teacher. Use lgd-timm vl distill, or leave the teacher out.")
    return _train(recipe, Path(out), resume=resume)


def adapted(teacher: VLRecipe, *, student: VLRecipe) -> VLRecipe:
    """Change a teacher's recipe so that it is trained on the boxes of its student, which its own backbone looks at.

    Args:
        teacher: backbone, transformer, data and schedule; `model.init` names an earlier run of it, if there is one.
        student: whose `regions`, and lengths of texts, take the place of the teacher's: tokens correspond then.
    """
    text = replace(teacher.text, length=student.text.length, tags=student.text.tags)
    return replace(teacher, regions=student.regions, text=text)


def distill(recipe: VLRecipe, *, out: str | Path, resume: bool = False) -> dict[str, Any]:
    """Train a student with the teacher that its recipe names.

    Args, Returns, Raises: as of `pretrain`; and TeacherError for a teacher of other boxes or another tokenizer.
    """
    if recipe.distillation.teacher is None:
        raise RecipeError(
            "The recipe names no distillation.teacher. Make one by lgd-timm vl adapt, or use lgd-timm vl pretrain."
        )
    return _train(recipe, Path(out), resume=resume)


def evaluate(folder: str | Path, recipe: VLRecipe | None = None, *, device: str = "auto") -> dict[str, float]:
    """Score a model on the evaluation data of a recipe.

    Args:
        folder: of a run, or published.
        recipe: whose `data.val` is taken; None: the model's own.
        device: auto, cpu, cuda or mps.

    Raises:
        LGDError: there is no such model, or no evaluation data.
    """
    opened = open_model(folder)
    recipe = recipe or opened.recipe
    if recipe.data.val is None:
        raise RecipeError("The recipe has no data.val. Set it, with --recipe or --data.val.path.")
    dataset, picked = recipe.data.val.open(), torch.device(pick_device(device))
    table = stored_features(
        dataset,
        regions=open_regions(opened.regions),
        extract=opened.extract,
        batch_size=recipe.backbone.batch_size,
        device=picked,
        ranks=Ranks(),
    )
    scorer = Scorer(
        dataset,
        encoder=opened.encoder,
        features=table,
        batch_size=recipe.data.batch_size,
        device=picked,
        ranks=Ranks(),
    )
    return scorer(opened.model.to(picked))


def publish(run: str | Path, folder: str | Path, *, compare: Sequence[str | Path] = ()) -> Path:
    """Write a finished run's model as a folder of float16 weights, with a card.

    Args:
        run: its folder.
        folder: must not exist; its name is the model's.
        compare: other runs, whose scores the card has beside this one's.

    Raises:
        WeightsError: a run is not finished, or the folder exists.
    """
    folder, model = Path(folder), open_model(run)
    others = {Path(other).name: _compared(open_model(other)) for other in compare}
    metrics = {**model.metrics, "compared": others, "summary": model.metrics["scores"]}
    card = vl_card(model, name=folder.name, metrics=metrics)
    save_model(replace(model, metrics=metrics), folder, dtype=torch.float16, card=card)
    return folder


def _compared(model: VLModel) -> dict[str, Any]:
    """What a card says of another run."""
    taught = model.recipe.distillation.teacher is not None
    return {"scores": model.metrics["scores"], "taught": taught, "epochs": model.recipe.schedule.epochs}


def _stored_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics: dict[str, Any] = read_json(path, dict[str, Any])
    except JSONError as error:
        raise WeightsError(f"{path} can't be read ({error}). Remove it: the run scores its model again.") from error
    return metrics


def _train(recipe: VLRecipe, out: Path, *, resume: bool) -> dict[str, Any]:
    if resume and (out / METRICS).is_file():
        log.info("%s is finished already", out)
        return _stored_metrics(out / METRICS)
    check_output(out, resume=resume)
    process = Process(torch.device(init_distributed(pick_device(recipe.machine.device))), Ranks.join())
    parts, job, facts = _prepare(recipe, out, process)
    start(job, recipe=recipe.to_yaml(), resume=resume)
    scores = fit(job)
    metrics = _metrics(parts, job, scores, facts)
    if process.ranks.first:
        shutil.rmtree(out / MODEL, ignore_errors=True)  # of a run that was killed before its scores were written
        save_model(_finished(parts, job, metrics), out / MODEL)
        write_json(out / METRICS, metrics)
    process.ranks.wait()
    return metrics


def _prepare(recipe: VLRecipe, out: Path, process: Process) -> tuple[_Parts, VLJob, dict[str, Any]]:
    train = recipe.data.train.open()
    val = None if recipe.data.val is None else recipe.data.val.open()
    tokenizer = find_tokenizer(recipe.text.tokenizer, texts=all_texts(train), vocabulary=recipe.text.vocabulary)
    source = open_regions(recipe.regions)
    teacher = _open_teacher(recipe, source, tokenizer)
    answers = frequent_answers(train, recipe.task) if teacher is None else teacher.encoder.answers
    seed = recipe.machine.seed
    encoder = Encoder(recipe.task, recipe.text, tokenizer=tokenizer, answers=answers, seed=seed)
    parts = _Parts(recipe, train, val, teacher, encoder, source, _open_backbone(recipe), process)
    student, distillation = _build(parts, teacher)
    features = parts.features(train)
    data = TrainingSet(train, encoder=encoder, features=features, variants=recipe.data.variants)
    facts = {
        "samples": train.fingerprint,
        "boxes": source.fingerprint,
        "features": parts.extract.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        **({} if teacher is None else {"teacher": teacher.fingerprint}),
    }
    taught = None
    if teacher is not None:
        data, taught = _teacher(parts, data, teacher, facts)
    learner = Learner(student, task=recipe.task, distillation=distillation, critic=_critic(parts)).to(process.device)
    scorer = None if val is None else _scorer(parts, val)
    job = VLJob(
        recipe=recipe,
        learner=learner,
        data=data,
        teacher=taught,
        scores=None if scorer is None else lambda: scorer(student),
        facts=facts,
        out=out,
        device=process.device,
        ranks=process.ranks,
    )
    return parts, job, facts


def _critic(parts: _Parts) -> SelfCritical | None:
    task = parts.recipe.task
    if parts.recipe.self_critical is None:
        return None
    assert isinstance(task, Captions)
    return SelfCritical(task, dataset=parts.train, tokenizer=parts.encoder.tokenizer)


def _open_teacher(recipe: VLRecipe, source: RegionSource, tokenizer: Tokenizer) -> VLModel | None:
    """Open the recipe's teacher, if it names one. Raises: TeacherError where its tokens would not be the student's."""
    name = recipe.distillation.teacher
    if name is None:
        return None
    teacher = open_model(name)
    if teacher.regions_fingerprint != source.fingerprint:
        raise TeacherError(
            f"{name} was trained on other boxes than the recipe's regions. Adapt it: lgd-timm vl adapt TEACHER_RECIPE "
            "--student RECIPE."
        )
    if teacher.encoder.tokenizer.fingerprint != tokenizer.fingerprint:
        raise TeacherError(
            f"{name} has another tokenizer than the recipe. Set text.tokenizer to {str(model_folder(name))!r}."
        )
    ours, theirs = recipe.text, teacher.encoder.text
    if (ours.length, ours.tags) != (theirs.length, theirs.tags):
        raise TeacherError(
            f"{name} has texts of {theirs.length} and names of {theirs.tags} tokens, and the recipe {ours.length} and "
            f"{ours.tags}. Set text.length and text.tags alike."
        )
    if _mode(recipe.task) != _mode(teacher.encoder.task):
        raise TeacherError(
            f"{name} was trained for {_mode(teacher.encoder.task)}, and the recipe is for {_mode(recipe.task)}. Adapt "
            "the teacher by a recipe of the same task."
        )
    return teacher


def _mode(task: Any) -> str:
    """What decides the mask and what is predicted."""
    return f"{task.kind} ({task.predict})" if isinstance(task, Captions) else str(task.kind)


def _open_backbone(recipe: VLRecipe) -> Extract:
    """What looks at the images."""
    if recipe.model.form == "bert":
        return open_region_features(recipe.backbone, seed=recipe.machine.seed)
    assert isinstance(recipe.regions, GridRegions)
    return open_tower(recipe.backbone, cells=recipe.regions.rows, seed=recipe.machine.seed)


def _build(parts: _Parts, teacher: VLModel | None) -> tuple[AnyModel, Distillation | None]:
    """Build the student, and its losses to a teacher; random weights are drawn by the recipe's seed."""
    recipe = parts.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.machine.seed)
        student = _causal(parts) if recipe.model.form == "fastvlm" else _bert(parts)
        distillation = None
        if teacher is not None:
            distillation = Distillation(recipe.distillation, student=student, teacher=teacher.model)
    if recipe.model.init is not None:
        load_initial(student, recipe.model.init, tokenizer=parts.encoder.tokenizer)
    if recipe.self_critical is not None:
        _check_captioner(student, recipe)
    return student, distillation


def _check_captioner(student: AnyModel, recipe: VLRecipe) -> None:
    """Check that self-critical training begins with a captioner of the recipe's task and sizes. Raises: RecipeError."""
    assert recipe.model.init is not None
    first = open_model(recipe.model.init)
    theirs, ours = (
        {"task": _mode(task), **model.config.to_dict(), "dropout": None}
        for task, model in ((first.encoder.task, first.model), (recipe.task, student))
    )
    if wrong := [f"{name} {theirs.get(name)} (here {ours[name]})" for name in ours if theirs.get(name) != ours[name]]:
        raise RecipeError(
            f"task.self_critical trains a captioner on, and model.init {recipe.model.init!r} has another "
            f"{', '.join(wrong)}. Set task, text, model and backbone alike, or train one by cross-entropy first."
        )


def _bert(parts: _Parts) -> VisionLanguageModel:
    recipe, encoder = parts.recipe, parts.encoder
    sizes, task = recipe.model, recipe.task
    return VisionLanguageModel(
        ModelConfig(
            features=parts.extract.dim,
            vocabulary=len(encoder.tokenizer),
            length=recipe.text.length,
            tags=recipe.text.tags,
            layers=sizes.layers,
            width=sizes.width,
            heads=sizes.heads,
            inner=sizes.inner,
            dropout=sizes.dropout,
            answers=len(encoder.answers),
            words=not isinstance(task, Answers),
            causal=isinstance(task, Captions),
            answer_dropout=task.dropout if isinstance(task, Answers) else 0.0,
        )
    )


def _causal(parts: _Parts) -> CausalModel:
    sizes, tokenizer = parts.recipe.model, parts.encoder.tokenizer
    assert isinstance(parts.extract, TowerFeatures)
    config = CausalConfig(
        vocabulary=len(tokenizer),
        length=parts.recipe.text.length,
        layers=sizes.layers,
        width=sizes.width,
        heads=sizes.heads,
        inner=sizes.inner,
    )
    return CausalModel(config, tokenizer=tokenizer, tower=parts.extract)


def _teacher(
    parts: _Parts, data: TrainingSet, teacher: VLModel, facts: Mapping[str, Any]
) -> tuple[TrainingSet, Teacher]:
    """The teacher, computed with every batch or stored; and the training set, with its features where it looks."""
    recipe, device = parts.recipe, parts.process.device
    model, distillation = teacher.model.to(device), recipe.distillation
    seen = replace(data, teacher=parts.features(data.dataset, teacher.extract))
    if distillation.stored is None:
        return seen, OnlineTeacher(model)
    blocks = [
        pair
        for config in (distillation.attention, distillation.nce, distillation.hidden_mse)
        if config.weight
        for pair in config.blocks
    ]
    if not last_only(blocks, layers=model.config.layers):
        raise RecipeError("distillation.stored keeps the teacher's last block alone. Leave it out, or set blocks -1.")
    made_of = {
        **{key: facts[key] for key in ("samples", "boxes", "tokenizer", "teacher")},
        **{key: recipe.to_dict()[key] for key in ("task", "text")},
        "variants": data.variants,
        "seed": recipe.machine.seed,
    }
    states = store_states(
        Path(distillation.stored),
        seen,
        model,
        regions=parts.source.count,
        facts=made_of,
        batch_size=recipe.data.batch_size,
        device=device,
        ranks=parts.process.ranks,
    )
    return data, states


def _scorer(parts: _Parts, val: Dataset) -> Scorer:
    return Scorer(
        val,
        encoder=parts.encoder,
        features=parts.features(val),
        batch_size=parts.recipe.data.batch_size,
        device=parts.process.device,
        ranks=parts.process.ranks,
    )


def _metrics(parts: _Parts, job: VLJob, scores: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    task, teacher, val = job.recipe.task, parts.teacher, parts.val
    blind = {} if val is None else score_most_frequent(parts.train, val, task)
    return {
        "task": task.kind,
        "scores": _rounded(scores),
        "most_frequent": _rounded(blind),
        **({} if teacher is None else {"teacher_scores": teacher.metrics["scores"]}),
        "samples": len(job.data),
        **({} if val is None else {"val_samples": len(val)}),
        "steps": job.step,
        "parameters": sum(parameter.numel() for parameter in job.learner.student.parameters()),
        "fingerprints": dict(facts),
        "lgd_timm": __version__,
        "torch": torch.__version__,
    }


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in scores.items()}


def _finished(parts: _Parts, job: VLJob, metrics: Mapping[str, Any]) -> VLModel:
    return VLModel(
        model=job.learner.student,
        extract=parts.extract,
        encoder=parts.encoder,
        regions=parts.recipe.regions,
        regions_fingerprint=parts.source.fingerprint,
        recipe=parts.recipe,
        metrics=metrics,
    )
