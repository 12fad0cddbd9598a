"""`python -m benchmarks.accuracy.read_out FOLDER...`: students that are told of equal frequencies when they are read.

Zero-shot as it is, and with the names' logits shifted until every name is answered equally often over unlabelled
training images (Sinkhorn's scaling, by the function of `refined`). A rival of `refined, balanced` gets the same
knowledge in this way, without another training.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from lgd_timm.data import ShardSet, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.loader import loader
from lgd_timm.data.samplers import SequentialSampler
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.evaluate.zero_shot import zero_shot_classifier
from lgd_timm.evaluate.zero_shot_model import ZeroShotModel, open_zero_shot_model
from lgd_timm.objectives.refined import balance_names
from lgd_timm.publish.folder import load as load_published

from .report import spread


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.read_out", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="published folders, ROW-sSEED-... above them")
    parser.add_argument("--shards", help="instead of each recipe's")
    parser.add_argument("--images", type=int, default=5000, help="unlabelled training images to balance over")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the answers that are balanced")
    arguments = parser.parse_args()
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        for folder in arguments.folders:
            rows[row_of(folder)].append(
                scores(folder, shards=arguments.shards, images=arguments.images, temperature=arguments.temperature)
            )
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    print("| | zero-shot | names balanced at read-out | n |\n|---|---|---|---|")
    for row, runs in rows.items():
        plain, balanced = zip(*runs, strict=True)
        print(f"| {row} | {spread(plain)} | {spread(balanced)} | {len(runs)} |")
    return 0


def row_of(folder: str) -> str:
    """The run's row, from the folder name that `runs.run_once` gives."""
    return re.sub(r"-s\d+-\w+$", "", Path(folder).resolve().parent.name)


def scores(folder: str, *, shards: str | None, images: int, temperature: float) -> tuple[float, float]:
    """Top-1 in percent, plain and balanced."""
    data = load_published(folder).recipe.data
    where = shards or data.shards
    assert data.val_split is not None
    train, test = (open_shards(where, split=split) for split in (data.train_split, data.val_split))
    model = open_zero_shot_model(folder, None)
    unlabelled, _ = logits_of(model, train, limit=images)
    logits, labels = logits_of(model, test, limit=None)
    shift = balance_names(torch.softmax(unlabelled / temperature, 1)).potential.log() * temperature
    plain, balanced = ((answers.argmax(1) == labels).float().mean() * 100 for answers in (logits, logits + shift))
    return float(plain), float(balanced)


@torch.no_grad()
def logits_of(model: ZeroShotModel, shards: ShardSet, *, limit: int | None) -> tuple[Tensor, Tensor]:
    """Cosines [N, C] of the first `limit` images, and their labels int64 [N]."""
    dataset = ShardDataset(shards, views=model.views, allow_empty=True)
    classify = zero_shot_classifier(model.encoder.eval(), model.bank)
    chosen = range(len(dataset) if limit is None else min(limit, len(dataset)))
    batches = [(classify(batch), batch.labels) for batch in loader(dataset, SequentialSampler(chosen, 256), workers=0)]
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(labels)


if __name__ == "__main__":
    sys.exit(main())
