"""Run every row of a table for every seed, then print mean and spread: `python -m benchmarks.accuracy TABLE`.

A run that is noted is not made again, so a stopped command goes on where it was. Notes are kept in
docs/results/evidence.jsonl, one line a run, whatever table it stands in, and the published folders in output/evidence.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd_timm.config.recipe import Recipe
from lgd_timm.errors import LGDError, MissingExtra, RecipeError
from lgd_timm.utils.device import keep_memory

from .report import markdown
from .runs import identity, noted, recipe_of, run_once
from .tables import TABLES, overrides_of


def main() -> int:
    keep_memory()
    warnings.filterwarnings("ignore")  # of other libraries, between the bars
    logging.disable(logging.WARNING)
    try:
        arguments, recipes = selected(sys.argv[1:])
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
    print(table(recipes, noted(arguments.notes)))
    return 0


Recipes = Mapping[tuple[str, int], Recipe]  # of a row and a seed


def selected(words: Sequence[str]) -> tuple[argparse.Namespace, Recipes]:
    """Read the command line: its arguments, and the recipe of each run. Raises: LGDError."""
    arguments, rest = _parser().parse_known_args(words)
    rows = TABLES[arguments.table]
    unknown = [row for row in arguments.rows or () if row not in rows]
    if unknown:
        raise RecipeError(
            f"No row {unknown[0]!r} in table {arguments.table!r}; its rows are {', '.join(map(repr, rows))}."
        )
    own = overrides_of(rest)
    return arguments, {
        (row, seed): recipe_of(arguments.recipe, {**rows[row], **own}, seed)
        for seed in arguments.seeds
        for row in arguments.rows or rows
    }


def table(recipes: Recipes, notes: Iterable[Mapping[str, Any]]) -> str:
    """Those of the notes that are of these recipes, as Markdown."""
    wanted = {identity(recipe): row for (row, _), recipe in recipes.items()}
    return markdown(
        [{**note, "row": wanted[note["identity"]]} for note in notes if note["identity"] in wanted],
        rows=list(dict.fromkeys(wanted.values())),
    )


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
