"""Write the record's tables anew from the notes of all runs: `python -m benchmarks.accuracy.record`.

Above each table of docs/results/reproduction.md a comment has the words by which `python -m benchmarks.accuracy` prints
it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

from lgd_timm.errors import LGDError

from .__main__ import selected, table
from .runs import noted

RECORD = Path("docs/results/reproduction.md")
TABLE = re.compile(r"^<!-- evidence: (?P<words>.+) -->\n\n(?P<table>(?:\|.*\n)*)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy.record", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("record", nargs="?", type=Path, default=RECORD)
    record = parser.parse_args().record
    try:
        record.write_text(renewed(record.read_text(encoding="utf-8")), encoding="utf-8")
    except (LGDError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def renewed(text: str) -> str:
    """The text with each of its tables as the notes have it now."""

    def as_noted(found: re.Match[str]) -> str:
        arguments, recipes = selected(shlex.split(found["words"]))
        return f"<!-- evidence: {found['words']} -->\n\n{table(recipes, noted(arguments.notes))}\n"

    return TABLE.sub(as_noted, text)


if __name__ == "__main__":
    sys.exit(main())
