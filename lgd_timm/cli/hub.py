"""`lgd-timm push | pull | list`: published folders to the Hugging Face Hub, from it, and which there are."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .common import WIDTH, add_command, plain, print_json, table

if TYPE_CHECKING:
    from ..hub.status import Row
    from .common import Commands

# The metrics that `list` has room for, and their columns; `list --json` prints all.
MAIN_METRICS = {"zero_shot_top1": "zero-shot %", "knn_top1": "k-NN %", "linear_probe_top1": "probe %"}


def add_hub(commands: Commands) -> None:
    """Add the parsers."""
    _add_push(commands)
    _add_pull(commands)
    listing = add_command(commands, "list", _list, "what is published, where it is, whether it is right")
    listing.add_argument("--json", action="store_true", help="print JSON, with paths, all metrics and what is wrong")


def _add_push(commands: Commands) -> None:
    parser = add_command(commands, "push", _push, "publish a folder on the Hugging Face Hub")
    parser.add_argument("folder", help="published folder, as `lgd-timm distill`, `save` and `vl publish` make it")
    parser.add_argument("repo", help="ORG/NAME; created if there is none")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--tag", help="tag that the commit gets, such as v1 (default: none)")
    parser.add_argument("--message", help="commit message (default: Publish FOLDER)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, send nothing")
    parser.add_argument(
        "--register", action="store_true", help="write the weight's row, which is printed, into the package's manifest"
    )


def _add_pull(commands: Commands) -> None:
    parser = add_command(commands, "pull", _pull, "download and verify a published folder")
    parser.add_argument("name", help="a name that `lgd-timm list` prints, or ORG/NAME[@REVISION]")
    parser.add_argument("--revision", help="branch, tag or commit (default: the manifest's commit, else main)")
    parser.add_argument("--local-dir", help="new folder for the files (default: the Hub's cache)")


def _push(options: argparse.Namespace) -> None:
    from ..publish.registration import check_name, manifest_row, register
    from ..publish.upload import name_in_card, push

    folder, registering = Path(options.folder).resolve(), options.register and not options.dry_run
    if options.register:
        check_name(folder.name)
    if registering:
        name_in_card(folder, options.repo)
    result = push(
        folder, options.repo, private=options.private, tag=options.tag, message=options.message, dry_run=options.dry_run
    )
    print(f"{'would send' if options.dry_run else 'sent'}: {', '.join(result.sent) or 'nothing, all is there'}")
    print(f"{result.url} at {result.commit}")
    print_json({folder.name: manifest_row(folder, repo_id=options.repo, commit=result.commit, files=result.files)})
    if registering:
        register(folder, repo_id=options.repo, commit=result.commit)


def _pull(options: argparse.Namespace) -> None:
    from ..hub import pull

    print(pull(options.name, revision=options.revision, local_dir=options.local_dir))


def _list(options: argparse.Namespace) -> None:
    from ..hub import listing

    rows = listing()
    if options.json:
        print_json([asdict(row) for row in rows])
        return
    for line in list_lines(rows):
        print(line)


def list_lines(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of `lgd-timm list`: a table, then what is wrong with which folder. At most 120 columns."""
    head = ("name", "size", "where", "state", *MAIN_METRICS.values())
    yield from table(head, [_cells(row) for row in rows])
    for row in rows:
        if row.verified is False:
            yield from textwrap.wrap(
                f"{_cells(row)[0]}: {plain(row.state)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
            )


def _cells(row: Row) -> tuple[str, ...]:
    name, at, commit = row.name.partition("@")
    scores = (row.metrics.get(key) for key in MAIN_METRICS)
    return (
        plain(f"{name}{at}{commit[:7]}"),
        f"{row.size / 1e6:.1f} MB",
        "+".join(row.places) or "nowhere yet",
        row.state.partition(":")[0],
        *("" if score is None else plain(score) for score in scores),
    )
