"""`lgd-timm shards write | verify | subset`: write WebDataset shards, check them, draw subsets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import add_command, add_group, plain

if TYPE_CHECKING:
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
    _add_index(actions)
    _add_verify(actions)
    _add_subset(actions)


def _add_write(actions: Commands) -> None:
    parser = add_command(actions, "write", _write, "write an image folder as WebDataset shards")
    parser.add_argument("images", help="folder of images, or of class folders of images")
    parser.add_argument("out", help="shard folder; it may already hold other splits")
    parser.add_argument("--split", default="train", help="name of the split that is written")
    parser.add_argument("--no-labels", action="store_true", help="write no cls field, even from class folders")
    parser.add_argument("--samples-per-shard", type=int, default=5000, metavar="N", help="images in a tar, at most")
    parser.add_argument(
        "--min-shards", type=int, default=1, metavar="N", help="tars, at least; too few images for it are an error"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that can't be used and list them (default: refuse)"
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
    parser.add_argument("--per-class", type=int, required=True, metavar="N", help="images of each class")
    parser.add_argument("--split", default="train", help="split that is drawn from")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; equal seeds draw equal keys")


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
    )
    print(f"{options.out}: {len(written)} images in {len(written.filenames)} shards, split {written.split!r}")


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
