"""`python -m benchmarks.accuracy.refined_targets`: how often is the likeliest name of a student's target right?

The plain target (the teacher's own answers) beside that of the objective `refined`, without and with `balance`, for the
stored embeddings of all images, of long-tailed draws of them, and over a hundred names. Labels score the targets and
draw the long tails; no objective sees them. `--objective.ridge 1` and the like change the objective's settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.data import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.objectives import RefinedDistillation, create_objective
from lgd_timm.objectives.registry import check_objective
from lgd_timm.teachers import Conse, spec_from_dict
from lgd_timm.teachers.conse import whitening

from .tables import CIFAR10, HUNDRED, objective_settings
from .teachers import names_bank, read_embeddings

TARGETS: dict[str, dict[str, Any]] = {
    "plain": {"refine": False},
    "refined": {},
    "balance 0.5": {"balance": 0.5},
    "balance 1": {"balance": 1.0},
    "plain, balance 1": {"refine": False, "balance": 1.0},
}
TAIL = 0.7  # class k of a long-tailed draw keeps TAIL^k of its images


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.refined_targets", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shards", default="data/cifar10")
    parser.add_argument("--split", default="train")
    parser.add_argument("--embeddings", default="data/cifar10/conse_efficientnet_lite0-none-s0-k1-f58c2abd36d1")
    parser.add_argument(
        "--names", default=None, help="file of the names in the order of the labels; CIFAR-10's if None"
    )
    parser.add_argument("--more-names", default=HUNDRED, help="file of more names, with those among them; '' for none")
    parser.add_argument(
        "--whiten", action="store_true", help="as if their teacher, a ConSE one, had been told to whiten its texts"
    )
    arguments, rest = parser.parse_known_args()
    try:
        own = check_objective({"kind": "refined", **objective_settings(rest)})
        stored = open_stored(arguments.embeddings)
        teacher, labels = read_embeddings(open_shards(arguments.shards, split=arguments.split), stored)
        names = CIFAR10 if arguments.names is None else load_vocabulary(arguments.names).names
        spec = spec_from_dict(stored.metadata["teacher"])
        if arguments.whiten:
            assert isinstance(spec, Conse)
            spec = replace(spec, whiten=True)
            teacher = normalize(teacher @ whitening(spec.class_embeddings()), dim=1)
        text = spec.text()

        draws = {"all images": torch.arange(len(labels)), **long_tails(labels, len(names))}
        print(f"{len(labels):,} images of {arguments.shards} ({arguments.split}), {stored.metadata['name']}\n")
        print(f"| | {' | '.join(TARGETS)} | images |")
        print("|---" * (len(TARGETS) + 2) + "|")
        bank = names_bank(text, names)
        for title, chosen in draws.items():
            print(line(title, scores(bank, teacher[chosen], labels[chosen], settings=own), images=len(chosen)))
        if arguments.more_names:
            many = list(load_vocabulary(arguments.more_names).names)
            place = torch.tensor([many.index(name) for name in names])
            title = f"all images, {len(many)} names"
            print(line(title, scores(names_bank(text, many), teacher, place[labels], settings=own), images=len(labels)))
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def long_tails(labels: Tensor, classes: int) -> dict[str, Tensor]:
    """Indices of two draws: the first classes have most images, or the last ones."""
    draws = {}
    for title, order in (
        ("long tail, first classes most", range(classes)),
        ("long tail, last most", range(classes)[::-1]),
    ):
        places = [torch.nonzero(labels == k).flatten() for k in order]
        draws[title] = torch.cat([found[: max(1, round(len(found) * TAIL**i))] for i, found in enumerate(places)])
    return draws


def scores(bank: Tensor, teacher: Tensor, labels: Tensor, *, settings: Mapping[str, Any]) -> Mapping[str, float]:
    """Percent of the rows [N, D] whose target's likeliest name is the label's, for each of `TARGETS`."""
    right = {}
    for name, switches in TARGETS.items():
        objective = create_objective(bank, **{**settings, **switches})
        assert isinstance(objective, RefinedDistillation)
        objective.fit(teacher.split(5000))
        right[name] = 100 * float((objective.target(teacher).argmax(1) == labels).float().mean())
    return right


def line(title: str, right: Mapping[str, float], *, images: int) -> str:
    return f"| {title} | {' | '.join(f'{value:.1f}' for value in right.values())} | {images:,} |"


if __name__ == "__main__":
    sys.exit(main())
