"""Write shards again with smaller images. Keys, labels, names of files and the order of the samples stay.

Each shard appears whole or not at all, and the index comes last. A run that was stopped goes on at the first shard that
is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from ..errors import ShardError
from ..utils.files import atomic_file, sha256_of, sole_writer, write_json
from ..utils.progress import progress_bar
from ..utils.typed_json import JSONError, read_json
from .index import INFO, Resize, ShardSet, open_shards, read_info, read_split
from .paths import AnyPath, require_local, resolve_path
from .resize import ResizeReport, Sample, resize_samples
from .tar import IndexedTar

log = logging.getLogger(__name__)


def resize_shards(
    source: str | AnyPath, out: str | Path, *, how: Resize, split: str | None = None, workers: int = 0
) -> list[ShardSet]:
    """Write the shards of a folder again, each image an upright JPEG with a short side of at most so many pixels.

    Upright JPEGs that are small enough keep their bytes, and so do images that can't be decoded.

    Embeddings that were stored for the source match by file name and key. They are accepted with `target: image`, where
    one embedding stands for an image; those of views are refused, as the views have other pixels now.

    Args:
        source: the shard folder, or its address.
        out: the folder that is written. If a run with the same settings was stopped, it goes on.
        how: sizes and quality.
        split: one split; None: every split.
        workers: processes that decode and encode; 0: this one does.

    Returns:
        The splits that were written.

    Raises:
        ShardError: the source is no shard folder or damaged, or `out` holds something else.
    """
    source, out = resolve_path(source), require_local(out, what="out")
    info = read_info(source)
    splits = [read_split(source, info, split=name) for name in (info["splits"] if split is None else [split])]
    if any("taught" in info["splits"][shards.split] for shards in splits):
        raise ShardError(f"{source} holds a teacher's embeddings, and no images. Resize the shards that they are of.")
    if isinstance(source, Path) and source.resolve() == out.resolve():
        raise ShardError(f"{out} is the folder that is read. Write to another one.")
    for shards in splits:  # all of them before anything is written
        _check_output(shards, out, how)
    return [_resize_split(shards, out, how, workers=workers) for shards in splits]


def _resize_split(shards: ShardSet, out: Path, how: Resize, *, workers: int) -> ShardSet:
    claim = out / _claim_name(shards.split)
    entry = _splits(out).get(shards.split)
    if entry is not None:
        log.info("%s (%s) is finished already", out, shards.split)
        claim.unlink(missing_ok=True)  # of a run that was killed after its index
        return open_shards(out, split=shards.split)
    if not claim.exists():
        write_json(claim, _record(shards, how))
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(claim, written=(*shards.filenames, INFO, claim.name)))
        except BlockingIOError as error:
            raise ShardError(f"Another lgd-timm shards resize is writing to {out}. Wait for it.") from error
        _write_shards(shards, out, how, workers=workers)
        _write_index(shards, out, how)
        claim.unlink()
    return open_shards(out, split=shards.split)


def _claim_name(split: str) -> str:
    return f"_resize-{split}.json"


def _record(shards: ShardSet, how: Resize) -> dict[str, Any]:
    """What is written, and from what."""
    return {**asdict(how), "source": shards.fingerprint, "from": list(shards.sha256)}


def _splits(out: Path) -> dict[str, Any]:
    splits: dict[str, Any] = read_info(out)["splits"] if (out / INFO).exists() else {}
    return splits


def _check_output(shards: ShardSet, out: Path, how: Resize) -> None:
    """Refuse a folder that holds something else. Raises: ShardError."""
    splits, record = _splits(out), _record(shards, how)
    if (entry := splits.get(shards.split)) is not None:
        if entry.get("resized") != record:
            raise ShardError(
                f"{out} already has a split {shards.split!r}, of other images or other settings. Choose another folder."
            )
        return
    claim = out / _claim_name(shards.split)
    if claim.exists():
        if _read_claim(claim) != record:
            raise ShardError(
                f"{out} holds a part of other shards, or of the same in other sizes ({claim.name}). "
                "Choose another folder, or remove it."
            )
    elif strange := [name for name in shards.filenames if (out / name).exists()]:
        raise ShardError(f"{out} already holds {strange[0]}, which is not of this split. Choose another folder.")
    names = list(shards.class_names)
    if names and splits and read_info(out).get("class_names", names) != names:
        raise ShardError(f"The classes of {shards.root} differ from those already in {out}. Choose another folder.")


def _read_claim(claim: Path) -> Any:
    try:
        return read_json(claim)
    except JSONError as error:
        raise ShardError(f"{claim} can't be read ({error}). Remove the folder and start again.") from error


def _write_shards(shards: ShardSet, out: Path, how: Resize, *, workers: int) -> None:
    """Write the shards that are missing. One loader reads them all, so that its workers start once."""
    missing = [number for number, name in enumerate(shards.filenames) if not (out / name).exists()]
    report, done = ResizeReport(), len(shards) - sum(shards.lengths[number] for number in missing)
    samples = resize_samples(_ShardSamples(shards, missing), how, workers=workers)
    with progress_bar(total=len(shards), initial=done, unit="img", desc=f"resize {shards.split}") as bar:
        for number in missing:
            # Names of foreign tars may be longer than those of tar's oldest format.
            with (
                atomic_file(out / shards.filenames[number]) as temporary,
                webdataset.TarWriter(
                    str(temporary), encoder=False, mtime=0, user="", group="", format="GNU_FORMAT"
                ) as tar,
            ):
                for resized in islice(samples, shards.lengths[number]):
                    report.add(resized)
                    key = resized.sample.key
                    if resized.problem is not None:
                        log.warning("%s/%s keeps its bytes: %s", shards.filenames[number], key, resized.problem)
                    tar.write({"__key__": key, **resized.sample.fields})
                    bar.update()
    before = f"; {done} images were there before" if done else ""
    log.info("%s: %s: %s%s", shards.split, how, report, before)


def _write_index(shards: ShardSet, out: Path, how: Resize) -> None:
    info = read_info(out) if (out / INFO).exists() else {"splits": {}}
    info["splits"][shards.split] = {
        "name": shards.split,
        "num_samples": len(shards),
        "filenames": list(shards.filenames),
        "shard_lengths": list(shards.lengths),
        "sha256": [sha256_of(out / name) for name in shards.filenames],
        "resized": _record(shards, how),
    }
    if shards.class_names:
        info["class_names"] = list(shards.class_names)
    write_json(out / INFO, info)


class _ShardSamples:
    """The samples of some shards, one shard after the other."""

    def __init__(self, shards: ShardSet, numbers: Sequence[int]) -> None:
        self._shards, self._numbers = shards, numbers
        self._starts = np.concatenate([[0], np.cumsum([shards.lengths[number] for number in numbers])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        place = int(np.searchsorted(self._starts, position, side="right")) - 1
        tar = _open(self._shards, self._numbers[place])
        key = tar.keys[position - int(self._starts[place])]
        return Sample(key, {field: tar.read(key, field) for field in tar.samples[key]})


@lru_cache(maxsize=2)
def _open(shards: ShardSet, number: int) -> IndexedTar:
    """Open a shard whole. Raises: ShardError where it is damaged, or not as its index says."""
    tar, length = IndexedTar(shards.path(number)), shards.lengths[number]
    if tar.damage or len(tar.keys) != length:
        found = tar.damage or f"it holds {len(tar.keys)} samples, its index says {length}"
        raise ShardError(
            f"{shards.root / shards.filenames[number]} is damaged ({found}). Copy it again, or see what else is wrong: "
            f"lgd-timm shards verify {shards.root}"
        )
    return tar
