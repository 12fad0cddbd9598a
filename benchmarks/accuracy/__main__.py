"""Run every row of a table for every seed, then print mean and spread: `python -m benchmarks.accuracy TABLE`.

A run that is noted is not made again, so a stopped command goes on where it was. Notes are kept in
docs/results/evidence.jsonl, one line a run, whatever table it stands in, and the published folders in output/evidence.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import yaml

from lgd_timm.cli.common import parse_overrides
from lgd_timm.errors import LGDError, MissingExtra
from lgd_timm.utils.device import keep_memory

from .report import markdown
from .runs import identity, noted, recipe_of, run_once
from .tables import TABLES


def main() -> int:
    arguments, rest = _parser().parse_known_args()
    keep_memory()
    warnings.filterwarnings("ignore")  # of other libraries, between the bars
    logging.disable(logging.WARNING)
    rows = {name: row for name, row in TABLES[arguments.table].items() if not arguments.rows or name in arguments.rows}
    try:
        own = {key: yaml.safe_load(value) for key, value in parse_overrides(rest).items()}
        recipes = {
            (row, seed): recipe_of(arguments.recipe, {**rows[row], **own}, seed)
            for seed in arguments.seeds
            for row in rows
        }
        if not arguments.show:
            for (row, seed), recipe in recipes.items():
                print(f"{row}, seed {seed}", file=sys.stderr, flush=True)
                run_once(
                    row,
                    recipe=recipe,
                    notes=arguments.notes,
                    output=arguments.output,
                    elsewhere=arguments.elsewhere,
                )
    except (LGDError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return 1
    wanted = {identity(recipe): row for (row, _), recipe in recipes.items()}
    print(
        markdown(
            [
                {**note, "row": wanted[note["identity"]]}
                for note in noted(arguments.notes)
                if note["identity"] in wanted
            ],
            rows=list(rows),
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone")
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path("recipes/evidence_cifar10.yaml"),
        help="the footing; --field.sub value changes it",
    )
    parser.add_argument("--notes", type=Path, default=Path("docs/results/evidence.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("output/evidence"))
    parser.add_argument(
        "--elsewhere",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="also score zero-shot on these images, by their names.txt",
    )
    parser.add_argument("--show", action="store_true", help="run nothing, print what is noted")
    return parser


if __name__ == "__main__":
    sys.exit(main())
