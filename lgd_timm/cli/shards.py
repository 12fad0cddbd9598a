"""`lgd-timm shards write | resize | index | verify | subset`: write WebDataset shards, check them, draw subsets."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..utils.schema import Count, Quality, Seed, ShortSide, Workers
from .common import add_command, add_group, number, plain

if TYPE_CHECKING:
    from ..data.index import Resize, ShardSet
    from .common import Commands


def add_shards(commands: Commands) -> None:
    """Add the parsers."""
    shards, actions = add_group(
        commands, "shards", "write images as shards, verify shards, draw subsets", metavar="ACTION"
    )
    shards.advice = {
        "invalid choice": "shards are written with `lgd-timm shards write IMAGES OUT` "
        "(others: shards verify ADDRESS, shards subset SHARDS FILE --per-class N)."
    }
    _add_write(actions)
    _add_resize(actions)
    _add_index(actions)
    _add_verify(actions)
    _add_subset(actions)


def _add_write(actions: Commands) -> None:
    parser = add_command(actions, "write", _write, "write an image folder as WebDataset shards")
    parser.add_argument("images", help="folder of images, or of class folders of images")
    parser.add_argument("out", help="shard folder; it may already hold other splits")
    parser.add_argument("--split", default="train", help="name of the split that is written")
    parser.add_argument("--no-labels", action="store_true", help="write no cls field, even from class folders")
    parser.add_argument(
        "--samples-per-shard", type=number(Count), default=5000, metavar="N", help="images in a tar, at most"
    )
    parser.add_argument(
        "--min-shards",
        type=number(Count),
        default=1,
        metavar="N",
        help="tars, at least; too few images for it are an error",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that can't be used and list them (default: refuse)"
    )
    _add_sizes(parser, short_side=None)


def _add_resize(actions: Commands) -> None:
    parser = add_command(actions, "resize", _resize, "write shards again with smaller images, which are read faster")
    parser.add_argument("source", metavar="shards", help="shard folder, or address of one")
    parser.add_argument("out", help="folder that is written; a run that was stopped goes on")
    parser.add_argument("--split", help="only this one (default: all)")
    _add_sizes(parser, short_side=288)


def _add_sizes(parser: argparse.ArgumentParser, *, short_side: int | None) -> None:
    """Add what says how images are made smaller."""
    parser.add_argument(
        "--short-side",
        type=number(ShortSide),
        default=short_side,
        metavar="PIXELS",
        help="encode images anew as JPEGs whose short side has at most so many pixels"
        + ("" if short_side else " (default: keep their bytes)"),
    )
    parser.add_argument("--quality", type=number(Quality), default=92, metavar="Q", help="of these JPEGs, 1 to 100")
    parser.add_argument(
        "--workers", type=number(Workers), metavar="N", help="processes that encode, 0: this one (default: one a core)"
    )


def _add_index(actions: Commands) -> None:
    parser = add_command(actions, "index", _index, "index tars that lie in a folder already, such as img2dataset's")
    parser.add_argument("folder", help="folder of WebDataset tars; gets an _info.json")
    parser.add_argument("--split", default="train", help="name of the split that they become")


def _add_verify(actions: Commands) -> None:
    parser = add_command(actions, "verify", _verify, "check shards and the embeddings beside them; status 1 if wrong")
    parser.add_argument(
        "address", help="shard folder, or address of one: https://HOST/FOLDER, hf://datasets/ORG/NAME/FOLDER, s3://..."
    )
    parser.add_argument("--split", help="only this one (default: all)")
    parser.add_argument("--decode", action="store_true", help="decode every image whole, not its header alone")
    parser.add_argument(
        "--embeddings",
        nargs="+",
        default=[],
        metavar="ADDRESS",
        help="folders or addresses of embeddings that lie elsewhere (default: those beside the shards)",
    )


def _add_subset(actions: Commands) -> None:
    parser = add_command(
        actions, "subset", _subset, "draw N images of each class, with a seed, as a JSON of their keys"
    )
    parser.add_argument("shards", help="shard folder or address, with labels")
    parser.add_argument("out", metavar="file", help="JSON file, for `lgd-timm evaluate linear-probe --subset`")
    parser.add_argument("--per-class", type=number(Count), required=True, metavar="N", help="images of each class")
    parser.add_argument("--split", default="train", help="split that is drawn from")
    parser.add_argument("--seed", type=number(Seed), default=0, help="of the draw; equal seeds draw equal keys")


def _write(options: argparse.Namespace) -> None:
    from ..data.writer import write_shards

    written = write_shards(
        options.images,
        options.out,
        split=options.split,
        labels=not options.no_labels,
        samples_per_shard=options.samples_per_shard,
        min_shards=options.min_shards,
        skip_bad=options.skip_bad,
        resize=None if options.short_side is None else _sizes(options),
        workers=_workers(options),
    )
    _print_written(options.out, written)


def _resize(options: argparse.Namespace) -> None:
    from ..data.resize_shards import resize_shards

    for written in resize_shards(
        options.source, options.out, how=_sizes(options), split=options.split, workers=_workers(options)
    ):
        _print_written(options.out, written)


def _sizes(options: argparse.Namespace) -> Resize:
    from ..data.index import Resize

    return Resize(options.short_side, options.quality)


def _workers(options: argparse.Namespace) -> int:
    if options.workers is not None:
        return int(options.workers)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def _print_written(out: str, shards: ShardSet) -> None:
    size = sum(os.path.getsize(os.path.join(out, name)) for name in shards.filenames)
    print(
        f"{out}: {len(shards)} images in {len(shards.filenames)} shards, {size / 1e6:.1f} MB, split {shards.split!r}"
        + (f" ({shards.resized})" if shards.resized else "")
    )


def _index(options: argparse.Namespace) -> None:
    from ..data.writer import index_shards

    found = index_shards(options.folder, split=options.split)
    print(f"{options.folder}: {len(found)} samples in {len(found.filenames)} shards, split {found.split!r}")


def _verify(options: argparse.Namespace) -> int:
    from ..data.verify_shards import check_shards

    found = check_shards(options.address, split=options.split, decode=options.decode, embeddings=options.embeddings)
    for line in found.problems:
        print(plain(line))
    print(plain(f"{options.address}: {found}"))
    return 1 if found.problems else 0


def _subset(options: argparse.Namespace) -> None:
    from ..data import open_shards
    from ..data.subset import draw_labels, labelled_keys

    shards = open_shards(options.shards, split=options.split)
    subset = draw_labels(
        *labelled_keys(shards), per_class=options.per_class, seed=options.seed, class_names=shards.class_names
    )
    subset.write(options.out)
    print(f"{options.out}: {len(subset)} images, {options.per_class} of each class")
