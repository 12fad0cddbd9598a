"""Print how near to one-hot the teacher's targets are: `python -m benchmarks.accuracy.targets`.

The released code puts an extra logit in front of the visual bank, the teacher's similarity to itself, which is 1
(docs/concepts/method.md, "The paper and the released code"). This prints, for temperatures from sharp to soft, the
probability that it takes, and how much is left to tell of the names.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from lgd_timm.data import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.objectives import LGD

from .tables import CIFAR10
from .teachers import read_embeddings, stored_names_bank

TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.targets", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shards", default="data/cifar10")
    parser.add_argument("--split", default="train")
    parser.add_argument("--embeddings", default="data/cifar10/conse_efficientnet_lite0-none-s0-k1-f58c2abd36d1")
    arguments = parser.parse_args()
    try:
        stored = open_stored(arguments.embeddings)
        teacher, labels = read_embeddings(open_shards(arguments.shards, split=arguments.split), stored)
        names = stored_names_bank(stored, CIFAR10)
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    objective = aggregated(names, teacher)
    visual = objective.visual_bank
    own = (teacher @ visual.T).max(1).values
    print(
        f"{len(teacher):,} images of {arguments.shards} ({arguments.split}), "
        f"teacher {stored.metadata['name']}, {stored.views}"
    )
    if labels.min() >= 0:
        right = (teacher @ names.T).argmax(1) == labels
        print(
            f"the teacher's own answers are right for {100 * right.float().mean():.2f} % "
            "(labels are looked at here alone)"
        )
    print(f"similarity to the nearest visual row: {describe(own)}; length of the rows: {describe(visual.norm(dim=1))}")
    print(f"similarity of a name's text to its own visual row: {describe(torch.cosine_similarity(names, visual))}\n")
    print(
        "| teacher temperature | text: largest p | text: as many names | visual: largest p | visual: as many names "
        "| extra positive: p |"
    )
    print("|---|---|---|---|---|---|")
    for temperature in TEMPERATURES:
        text, bare = ((teacher @ bank.T / temperature).softmax(1) for bank in (names, visual))
        ones = teacher.new_ones(len(teacher), 1)
        positive = torch.cat([ones, teacher @ visual.T], 1).div(temperature).softmax(1)[:, 0]
        cells = [f"{p.max(1).values.mean():.3f} | {perplexity(p):.2f}" for p in (text, bare)]
        print(f"| {temperature:g} | {' | '.join(cells)} | {positive.mean():.4f} |")
    return 0


def aggregated(names: Tensor, teacher: Tensor, *, batch_size: int = 128, epochs: int = 2) -> LGD:
    """The visual bank after `epochs` of the given rows, in a seeded order."""
    objective = LGD(names, preset="paper")
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for part in teacher[torch.randperm(len(teacher), generator=order)].split(batch_size):
            objective.update(part)
    return objective


def perplexity(p: Tensor) -> float:
    """Mean of the exponentiated entropy: as how many equally likely names a distribution counts."""
    return float((-(p * p.clamp_min(1e-30).log()).sum(1)).exp().mean())


def describe(values: Tensor) -> str:
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9]))
    return f"{middle:.3f} (10 % below {low:.3f}, 10 % above {high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
