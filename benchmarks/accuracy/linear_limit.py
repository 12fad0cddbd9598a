"""`python -m benchmarks.accuracy.linear_limit`: where does an objective lead that is minimised to the end?

A linear map of the teacher's own embedding takes the student's place, so that nothing but the objective limits it.
It is trained on all shards but the last, and scored zero-shot on the last, whose labels no objective sees.
`--objective.ridge 1` and the like change settings of the chosen rows.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn

from lgd_timm.data import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.objectives import create_objective
from lgd_timm.objectives.registry import check_objective

from .report import spread
from .tables import CIFAR10, RIVALS, objective_settings
from .teachers import read_embeddings, stored_names_bank

ROWS = [row for row in RIVALS if row not in ("supervised, with labels", "regression, deep head")]
BATCH = 128


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.linear_limit", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shards", default="data/cifar10")
    parser.add_argument("--embeddings", default="data/cifar10/conse_efficientnet_lite0-none-s0-k1-f58c2abd36d1")
    parser.add_argument("--steps", type=int, default=390)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help="these alone")
    arguments, rest = parser.parse_known_args()
    try:
        own = objective_settings(rest)
        settings = {row: check_objective({**RIVALS[row]["objective"], **own}) for row in arguments.rows}
        stored, shards = open_stored(arguments.embeddings), open_shards(arguments.shards, split="train")
        teacher, labels = read_embeddings(shards, stored)
        names = stored_names_bank(stored, CIFAR10)
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    held = shards.lengths[-1]

    def top1(rows: Tensor) -> float:
        return 100 * float(((rows @ names.T).argmax(1) == labels[-held:]).float().mean())

    print(f"{len(teacher) - held:,} images to learn from, {held:,} to score; {arguments.steps} steps of {BATCH}\n")
    print(f"| | zero-shot | n |\n|---|---|---|\n| the teacher itself | {top1(teacher[-held:]):.2f} | |")
    for row in arguments.rows:
        maps = [
            train(names, teacher[:-held], seed=seed, steps=arguments.steps, **settings[row]) for seed in arguments.seeds
        ]
        scores = [top1(linear(teacher[-held:])) for linear in maps]
        print(f"| {row} | {spread(scores)} | {len(scores)} |", flush=True)
    return 0


def train(names: Tensor, teacher: Tensor, *, seed: int, steps: int, **settings: Any) -> nn.Linear:
    """A linear map from random weights, by Adam at 1e-3 with a cosine schedule; it can be the identity."""
    torch.manual_seed(seed)
    linear = nn.Linear(teacher.shape[1], teacher.shape[1])
    objective = create_objective(names, seed=seed, **settings)
    objective.fit(teacher.split(5000))
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.cat([torch.randperm(len(teacher)) for _ in range(1 + steps * BATCH // len(teacher))])
    for chosen in order[: steps * BATCH].split(BATCH):
        losses = objective(linear(teacher[chosen]), teacher[chosen])
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
        objective.update(teacher[chosen], assigned=losses.get("assigned"))
    return linear.requires_grad_(False)


if __name__ == "__main__":
    sys.exit(main())
