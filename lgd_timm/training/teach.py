"""Store a teacher's embeddings of K fixed views of each image beside the shards.

Shards are the unit: each gets its sidecar in one step, a stopped run goes on at the first shard without one, and the
processes of torchrun share the shards out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from tqdm import tqdm

from ..config.recipe import TeachRecipe
from ..data.dataset import BadSamples, ShardDataset
from ..data.index import INFO, ShardSet, open_shards, read_info
from ..data.loader import color_device, loader
from ..data.paths import require_local
from ..data.samplers import Item, SequentialSampler
from ..data.sidecar import DTYPES, Record, overall_fidelity, read_record, write_sidecar
from ..data.stored_embeddings import TEACHER, StoredEmbeddings, open_stored, read_teacher_metadata
from ..data.views import Views
from ..errors import ShardError, TeacherError
from ..teachers import ImageTeacher, Stored
from ..utils.device import pick_device
from ..utils.distributed import Ranks, init_distributed
from ..utils.files import changed_keys, sha256_of, sole_writer, write_json
from ..utils.progress import progress_bar
from .embed import embedded

log = logging.getLogger(__name__)


def folder_name(teacher: ImageTeacher, views: Views, *, dtype: str = "float16") -> str:
    """Return `<teacher>-<views>-<fingerprints>`, which differs wherever the embeddings would."""
    form = "" if dtype == "float16" else f"-{dtype}"
    fingerprints = f"{teacher.fingerprint[:6]}{views.fingerprint[:6]}"
    return f"{teacher.name}-{views.augmentation}-s{views.seed}-k{views.count}-{fingerprints}{form}"


@dataclass(frozen=True)
class _TeachJob:
    """What `teach` works on, and how."""

    teacher: ImageTeacher
    shards: ShardSet
    views: Views
    out: Path
    dtype: str
    batch_size: int
    workers: int
    device: torch.device
    compile: bool
    max_bad: float
    ranks: Ranks

    def sidecar(self, shard: int) -> Path:
        return self.out / self.shards.filenames[shard]

    def finished(self, shard: int) -> Record | None:
        return read_record(self.sidecar(shard), self.shards, shard)


def teach(
    teacher: ImageTeacher,
    shards: ShardSet,
    *,
    spec: dict[str, Any],
    text_fingerprint: str,
    views: Views,
    out: Path | None = None,
    dtype: str = "float16",
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    compile: bool = False,
    max_bad: float = 0.001,
) -> StoredEmbeddings:
    """Store the embeddings [K, D] of each sample in `<out>/<shard>.tar`.

    A run that was stopped is resumed at the first shard that is not complete. Where torch.distributed is initialised,
    ranks share the shards out and return when all are done.

    Args:
        teacher: embeds the images.
        shards: the images.
        spec: the teacher's part of a recipe, for `_teacher.json`, so that later runs can rebuild the text tower alone.
        text_fingerprint: of the text tower, for `_teacher.json`.
        views: which views of each image.
        out: folder of the embeddings; None: `<shards>/<teacher>-<views>-<fingerprints>`.
        dtype: float16 or int8, as which embeddings are stored.
        batch_size: views that the teacher embeds at a time.
        workers: processes that read and decode.
        device: where the teacher works.
        compile: whether the teacher is compiled.
        max_bad: share of the samples that may be unreadable.

    Raises:
        TeacherError: the folder holds embeddings of another teacher, other views or other shards, another run is
        writing
            there, or the shards are remote and `out` is not given.
        ShardError: too many bad samples.
    """
    assert dtype in DTYPES, dtype
    facts = {
        "teacher": spec,
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "earlier_fingerprints": list(teacher.earlier_fingerprints),
        "text_fingerprint": text_fingerprint,
        "embed_dim": teacher.embed_dim,
        "dtype": dtype,
        "views": views.to_dict(),
        "views_fingerprint": views.fingerprint,
    }
    out = require_local(out or _folder_beside(shards) / folder_name(teacher, views, dtype=dtype), what="out")
    ranks = Ranks.join()
    job = _TeachJob(
        teacher, shards, views, out, dtype, batch_size, workers, torch.device(device), compile, max_bad, ranks
    )
    _claim(out, facts, shards, write=ranks.first)
    with _sole_writer(out, shards) if ranks.first else nullcontext():
        numbers = range(len(shards.filenames))
        done = ranks.gather({shard: record for shard in ranks.share(numbers) if (record := job.finished(shard))})
        todo = [shard for shard in numbers if shard not in done]
        start = time.perf_counter()
        _teach_shards(job, ranks.share(todo), done)
        ranks.wait()
        seconds = time.perf_counter() - start
        records = _check(job, [*ranks.share(todo), *ranks.share(list(done))])
        if ranks.first:
            _report(job, sum(records[shard].samples for shard in todo), seconds)
    return open_stored(out)


def teach_recipe(recipe: TeachRecipe, *, out: str | Path | None = None) -> StoredEmbeddings:
    """Run a teach recipe, into the folder `out` or else the recipe's own. torchrun can run it in several processes.

    Raises: as `teach`, and for bad teachers and shards before anything is written.
    """
    device = init_distributed(pick_device(recipe.device))
    shards = open_shards(recipe.shards, split=recipe.split)
    spec, out = recipe.teacher, out or recipe.out
    out = None if out is None else require_local(out, what="out")
    if out is None:
        _folder_beside(shards)  # which refuses an address now, and not after the teacher was built
    assert not isinstance(spec, Stored), "read_teach_recipe refuses it"
    stored = teach(
        spec.image(),
        shards,
        spec=recipe.to_dict()["teacher"],
        text_fingerprint=spec.text().fingerprint,
        views=recipe.views,
        out=out,
        dtype=recipe.dtype,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        device=device,
        compile=recipe.compile,
        max_bad=recipe.max_bad,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return stored


def _folder_beside(shards: ShardSet) -> Path:
    """Return the folder beside the shards. Raises: TeacherError where the shards are remote."""
    if isinstance(shards.root, Path):
        return shards.root
    raise TeacherError(
        f"{shards.root} is an address, beside which nothing is written. Say where the embeddings go: --out FOLDER."
    )


def _claim(out: Path, facts: dict[str, Any], shards: ShardSet, *, write: bool) -> None:
    """Write `_teacher.json`, or check that it says the same: embeddings of different origin never mix."""
    entry = read_info(out)["splits"].get(shards.split) if (out / INFO).exists() else None
    if entry is not None and tuple(entry["taught"]) != shards.sha256:
        raise TeacherError(
            f"{out} was made from other shards than {shards.root} ({shards.split}). Choose another --out, or remove it."
        )
    if not (out / TEACHER).exists():
        if write:
            write_json(out / TEACHER, facts)
        return
    there = read_teacher_metadata(out)
    # The spec itself may be spelled otherwise (another path to the same weights): the fingerprints say what it is.
    compared = {key: fact for key, fact in facts.items() if key not in ("teacher", "earlier_fingerprints")}
    if there["fingerprint"] in facts["earlier_fingerprints"]:
        compared["fingerprint"] = there["fingerprint"]
    if other := changed_keys(there, compared):
        raise TeacherError(
            f"{out} holds embeddings of another origin ({', '.join(other)} differ). "
            "Choose another --out, or remove the folder."
        )


@contextmanager
def _sole_writer(out: Path, shards: ShardSet) -> Iterator[None]:
    """Lock the folder against other runs, and remove what a killed run was writing. Raises: TeacherError."""
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(out / TEACHER, written=(*shards.filenames, INFO, TEACHER)))
        except BlockingIOError as error:
            raise TeacherError(
                f"Another lgd-timm teach is writing to {out}. Wait for it, or choose another --out."
            ) from error
        yield


def _teach_shards(job: _TeachJob, todo: Sequence[int], done: Mapping[int, Record]) -> None:
    """Write the sidecars of this rank's shards. One loader reads them all, so that its workers start once."""
    shards, views, shape = job.shards, job.views, (job.views.count, job.teacher.embed_dim)
    bad = BadSamples(job.max_bad, size=len(shards))
    for shard, record in done.items():
        for line in bad.add(tuple(record.left_out.items())):
            if job.ranks.first:
                log.warning("%s (as before; to try it again, remove %s)", line, job.sidecar(shard))
    samples = max(1, job.batch_size // views.count)  # all views of a sample travel together
    starts = np.concatenate([[0], np.cumsum(shards.lengths)]).tolist()
    samplers = [
        SequentialSampler(range(starts[shard], starts[shard + 1]), samples, views=views.count) for shard in todo
    ]
    dataset = ShardDataset(shards, views=views, allow_empty=True, photometry=color_device("auto", job.device))
    batches = loader(dataset, _Chain(samplers), workers=job.workers)
    size = min(job.batch_size, samples * views.count)
    embeddings = embedded(job.teacher, batches, size=size, device=job.device, compile=job.compile)
    with _progress(job, todo, done) as progress:
        for shard, sampler in zip(todo, samplers, strict=True):
            with write_sidecar(job.sidecar(shard), shards=shards, shard=shard, shape=shape, dtype=job.dtype) as sidecar:
                for batch, rows in islice(embeddings, len(sampler)):
                    for line in bad.add(batch.bad):
                        log.warning(line)
                    sidecar.add(batch.keys, rows, bad=batch.bad)
                    progress.update(len(batch.keys))


def _progress(job: _TeachJob, todo: Sequence[int], done: Mapping[int, Record]) -> tqdm:
    """Make the progress bar, in views. Rank 0 shows it, of its own part, which is the largest."""
    split, views, lengths = job.shards.split, job.views.count, job.shards.lengths
    return progress_bar(
        total=views * sum(lengths[shard] for shard in [*done, *todo]),
        initial=views * sum(record.samples for record in done.values()),
        unit="img",
        desc=f"teach {split}" + (f", 1 of {job.ranks.world_size} ranks" if job.ranks.world_size > 1 else ""),
        disable=not job.ranks.first,
    )


class _Chain(Sampler[list[Item]]):
    """The batches of several samplers one after the other."""

    def __init__(self, samplers: Sequence[SequentialSampler]) -> None:
        self._walks = samplers

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self._walks)

    def __iter__(self) -> Iterator[list[Item]]:
        return chain.from_iterable(self._walks)


def _check(job: _TeachJob, mine: Sequence[int]) -> dict[int, Record]:
    """Check this rank's part of all sidecars and, if all are complete, write `_info.json`.

    Raises: ShardError on every rank alike, for a sidecar that does not hold its shard, or too many bad samples in all.
    """
    shards, ranks = job.shards, job.ranks
    checked = ranks.gather({shard: (job.finished(shard), sha256_of(job.sidecar(shard))) for shard in mine})
    records = {}
    bad = BadSamples(job.max_bad, size=len(shards))
    for shard, (record, _) in checked.items():
        if record is None:
            raise ShardError(
                f"{job.sidecar(shard)} was written and does not hold the {shards.lengths[shard]} samples of "
                f"{shards.root / shards.filenames[shard]}, less those left out. "
                "Check the disk and the shard, remove the sidecar and start again."
            )
        bad.add(tuple(record.left_out.items()))
        records[shard] = record
    if ranks.first:
        _index(job, records, [total for _, total in checked.values()])
    ranks.wait()
    return records


def _index(job: _TeachJob, records: Mapping[int, Record], sums: Sequence[str]) -> None:
    """Write `_info.json` last: a folder that has it is complete. `taught` are the sums of the shards that were seen."""
    out, shards = job.out, job.shards
    info = read_info(out) if (out / INFO).exists() else {"splits": {}}
    info["splits"][shards.split] = {
        "name": shards.split,
        "num_samples": sum(record.samples for record in records.values()),
        "filenames": list(shards.filenames),
        "shard_lengths": [record.samples for record in records.values()],
        "sha256": list(sums),
        "taught": list(shards.sha256),
        "left_out": {key: reason for record in records.values() for key, reason in record.left_out.items()},
        "fidelity": overall_fidelity(list(records.values())),
    }
    write_json(out / INFO, info)


def _report(job: _TeachJob, samples: int, seconds: float) -> None:
    """Log how much was embedded, and how close the stored embeddings are to the teacher's."""
    split, views = job.shards.split, samples * job.views.count
    rate = f", {views / seconds:.1f} images/s through the teacher" if samples else ""
    log.info("teach %s: %d views of %d images in %.1f s%s", split, views, samples, seconds, rate)
    fidelity = read_info(job.out)["splits"][split]["fidelity"]
    if fidelity is None:
        log.info("fidelity of %s: not known, as there are no samples or an earlier version wrote some", job.dtype)
        return
    log.info(
        "fidelity of %s: mean cosine %.6f, least %.6f", job.dtype, fidelity["mean_cosine"], fidelity["least_cosine"]
    )
