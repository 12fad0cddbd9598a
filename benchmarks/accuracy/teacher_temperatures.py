"""`python -m benchmarks.accuracy.teacher_temperatures`: how sure is a ConSE teacher at which temperature and size?

The largest mean similarity with the likeliest name chooses both for a recipe, without labels.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from torch import Tensor

from lgd_timm.data import open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.views import Views
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.teachers.catalog import TEACHERS
from lgd_timm.teachers.conse import TEMPERATURES, Conse, confidences

from .tables import CIFAR10
from .teachers import names_bank

BATCH = 100


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.teacher_temperatures", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shards", default="data/cifar10")
    parser.add_argument("--names", default=None, help="file of the names; CIFAR-10's if None")
    parser.add_argument("--teachers", nargs="+", default=["conse-lite0", "conse-lite2"], help="short names")
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[192, 224, 260])
    parser.add_argument("--size", type=int, default=32, help="of the images, as `teach` stores its views of them")
    parser.add_argument("--images", type=int, default=500, help="how many, the first ones")
    arguments = parser.parse_args()
    try:
        names = CIFAR10 if arguments.names is None else load_vocabulary(arguments.names).names
        images = read(arguments.shards, count=arguments.images, size=arguments.size)
        print(f"{len(images)} training images of {arguments.shards}: similarity with the likeliest of the names\n")
        print(f"| | {' | '.join(f'{temperature:g}' for temperature in TEMPERATURES)} |")
        print("|---" * (len(TEMPERATURES) + 1) + "|")
        for name in arguments.teachers:
            spec = TEACHERS[name].spec
            assert isinstance(spec, Conse)
            bank = names_bank(spec.text(), names)
            for size in arguments.image_sizes:
                found = confidences(replace(spec, image_size=size).image(), images.split(BATCH), bank)
                print(f"| {name}, {size} px | {' | '.join(f'{value:.4f}' for value in found.values())} |", flush=True)
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def read(shards: str, *, count: int, size: int) -> Tensor:
    """Read the first training images whole, uint8 [count, 3, size, size]."""
    dataset = ShardDataset(open_shards(shards, split="train"), views=Views(size=size, augmentation="none"))
    return dataset.__getitems__([(position, 0) for position in range(min(count, len(dataset)))]).images


if __name__ == "__main__":
    sys.exit(main())
