"""Teach once: run a teacher over shards and store its embeddings of K fixed views beside them."""

from __future__ import annotations

import io
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from tqdm import tqdm

from ..devices import pick_device
from ..errors import TeacherError
from ..files import differing, replacing, sha256_of, write_json
from ..recipe import TeachRecipe
from ..teachers import ImageTeacher, Stored
from .index import INFO, IndexedTar, ShardSet, open_shards, read_info
from .read import BadSamples, InOrder, ShardDataset, loader
from .stored import TEACHER, StoredEmbeddings, open_stored, read_teacher_facts
from .views import Views

log = logging.getLogger(__name__)


def folder_name(teacher: ImageTeacher, views: Views) -> str:
    """`<teacher>-<views>`: speaks to people, and its last part differs whenever the embeddings would."""
    return f"{teacher.name}-{views.augmentation}-s{views.seed}-k{views.count}-{teacher.fingerprint[:6]}{views.fingerprint[:6]}"


def teach(
    teacher: ImageTeacher,
    shards: ShardSet,
    *,
    spec: dict[str, Any],
    text_fingerprint: str,
    views: Views,
    out: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    compile: bool = False,
    max_bad: float = 0.001,
) -> StoredEmbeddings:
    """Store float16 embeddings [K, D] of each sample in `<shards>/<teacher>-<views>/<shard>.tar`.

    Stopped and started again, it goes on at the first shard that is not whole. `spec` is the teacher's part of a recipe and
    goes into `_teacher.json` with the fingerprints, so that later runs can rebuild the text tower alone.
    Raises: TeacherError when the folder holds embeddings of another teacher, of other views or of other shards; ShardError for
    too many bad samples.
    """
    out = out or shards.root / folder_name(teacher, views)
    facts = {
        "teacher": spec,
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "text_fingerprint": text_fingerprint,
        "embed_dim": teacher.embed_dim,
        "dtype": "float16",
        "views": asdict(views),
        "views_fingerprint": views.fingerprint,
    }
    _claim(out, facts, shards)
    teacher.to(device).to(memory_format=torch.channels_last)
    if compile:
        teacher.compile_encoder()
    dataset = ShardDataset(shards, views=views, allow_empty=True)
    bad = BadSamples(max_bad, size=len(shards))
    start = 0
    with tqdm(total=len(shards) * views.count, unit="img", desc=f"teach {shards.split}", disable=None) as progress:
        for shard, filename in enumerate(shards.filenames):
            positions = range(start, start := start + shards.lengths[shard])
            if (out / filename).is_file() and IndexedTar(out / filename).keys == IndexedTar(shards.path(shard)).keys:
                progress.update(len(positions) * views.count)
                continue
            sampler = InOrder(positions, batch_size=max(1, batch_size // views.count), views=views.count)
            with (
                replacing(out / filename) as temporary,
                # compress: else it goes by the name's end, and a temporary name may end in "gz"
                webdataset.TarWriter(str(temporary), mtime=0, user="", group="", compress=False) as tar,
            ):
                for batch in loader(dataset, sampler, workers=workers):
                    for line in bad.add(batch.bad):
                        log.warning(line)
                    if batch.keys:
                        embeddings = _embed(teacher, batch.images.to(device))
                        _write(tar, batch.keys, embeddings, views.count)
                        progress.update(len(batch.keys))
    _index(out, shards)
    return open_stored(out)


def teach_recipe(recipe: TeachRecipe, *, out: str | Path | None = None) -> StoredEmbeddings:
    """Run a teach recipe. Raises: as `teach`, and for bad teachers and shards before anything is written."""
    shards = open_shards(recipe.shards, split=recipe.split)
    spec = recipe.teacher
    assert not isinstance(spec, Stored), "read_teach_recipe refuses it"
    return teach(
        spec.image(),
        shards,
        spec=recipe.to_dict()["teacher"],
        text_fingerprint=spec.text().fingerprint,
        views=recipe.views,
        out=None if out is None else Path(out),
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        device=pick_device(recipe.device),
        compile=recipe.compile,
        max_bad=recipe.max_bad,
    )


def _claim(out: Path, facts: dict[str, Any], shards: ShardSet) -> None:
    """Write `_teacher.json`, or check that it says the same: embeddings of different origin never mix."""
    entry = read_info(out)["splits"].get(shards.split) if (out / INFO).exists() else None
    if entry is not None and tuple(entry["taught"]) != shards.sha256:
        raise TeacherError(f"{out} was made from other shards than {shards.root} ({shards.split}). Choose another --out, or remove it.")
    if not (out / TEACHER).exists():
        write_json(out / TEACHER, facts)
        return
    # The spec itself may be spelled otherwise (another path to the same weights): the fingerprints say what it is.
    if other := differing(read_teacher_facts(out), {key: fact for key, fact in facts.items() if key != "teacher"}):
        raise TeacherError(
            f"{out} holds embeddings of another origin ({', '.join(other)} differ). Choose another --out, or remove the folder."
        )


def _embed(teacher: ImageTeacher, images: torch.Tensor) -> np.ndarray:
    embeddings = torch.nn.functional.normalize(teacher(images), dim=1)
    if not embeddings.isfinite().all():
        raise TeacherError(f"The teacher {teacher.name} gave embeddings that are not finite. Check its weights and precision.")
    return embeddings.half().cpu().numpy()


def _write(tar: webdataset.TarWriter, keys: list[str], embeddings: np.ndarray, count: int) -> None:
    """One `.npy` [K, D] a sample. A sample of which a view is missing (a bad image) is left out whole."""
    rows: dict[str, list[np.ndarray]] = {}
    for key, embedding in zip(keys, embeddings, strict=True):
        rows.setdefault(key, []).append(embedding)
    for key, views in rows.items():
        if len(views) == count:
            buffer = io.BytesIO()
            np.save(buffer, np.stack(views), allow_pickle=False)
            tar.write({"__key__": key, "npy": buffer.getvalue()})


def _index(out: Path, shards: ShardSet) -> None:
    """Write `_info.json` last: a folder that has it is complete. `taught` are the sums of the shards that were seen."""
    info = read_info(out) if (out / INFO).exists() else {"splits": {}}
    lengths = [len(IndexedTar(out / name).keys) for name in shards.filenames]
    info["splits"][shards.split] = {
        "name": shards.split,
        "num_samples": sum(lengths),
        "filenames": list(shards.filenames),
        "shard_lengths": lengths,
        "sha256": [sha256_of(out / name) for name in shards.filenames],
        "taught": list(shards.sha256),
    }
    write_json(out / INFO, info)
