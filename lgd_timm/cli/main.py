"""`lgd-timm shards [verify] | subset | teach | distill | evaluate | save | push | pull | report | list | transfer | export`: one short
function a command, or a module of them where there are several (`transfer/commands.py`, `export/commands.py`).

A command parses, calls one function of the package and prints what it made. Bad input ends with one line and status 2; a command
may return another status than 0.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import LGDError, MissingExtra, RecipeError
from ..utils.signals import STATUS, Stopped, ending_in_order
from .export import add_export
from .transfer import add_transfer

VERIFY = "shards verify"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit status."""
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == VERIFY.split():  # a command of its own, whose name is of two words
        words[:2] = [VERIFY]
    options, rest = parser.parse_known_args(words)
    logging.basicConfig(
        level=logging.INFO if first_rank() else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    for noisy in ("sentence_transformers", "httpx", "httpx2", "timm", "onnx_ir", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if rest and not options.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.takes_overrides:
            options.overrides = parse_overrides(rest)
        with ending_in_order():
            status: int | None = options.command(options)
    except Stopped as stopped:
        print(f"lgd-timm: {stopped}", file=sys.stderr)
        return STATUS
    except (
        LGDError,
        MissingExtra,
        OSError,
    ) as error:  # OSError: a full disk, a folder that is a file or may not be written
        print(f"lgd-timm: error: {_message(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not str(error).startswith(
            "DataLoader worker"
        ):  # torch raises it wherever the main thread was when the worker died
            raise
        print(f"lgd-timm: error: {_worker_died(error)}", file=sys.stderr)
        return 1
    return status or 0


def _worker_died(error: RuntimeError) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    return (
        f"{said}. Memory may have run out: lower data.workers or data.batch_size. A distillation goes on with --resume."
    )


def _message(error: Exception) -> str:
    """What a DataLoader's worker raises comes with its traceback, whose last line ends with the message."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


def first_rank() -> bool:
    """One of torchrun's processes speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lgd-timm", description="Small timm backbones that know your category names.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_shards(commands)
    subset = _add(
        commands, "subset", _subset, "draw so many images of each class, with a seed, as a JSON of their keys"
    )
    subset.add_argument("shards", help="shard folder or address, with labels")
    subset.add_argument("out", help="JSON file, for `evaluate linear-probe --subset`")
    subset.add_argument("--per-class", type=int, required=True)
    subset.add_argument("--split", default="train")
    subset.add_argument("--seed", type=int, default=0)

    teach = _add(commands, "teach", _teach, "store a teacher's embeddings beside shards", overrides=True)
    teach.add_argument(
        "recipe", help="YAML with teacher, views and shards; or what distill takes, if it says who taught"
    )
    teach.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    teach.add_argument(
        "--out", help="folder of the embeddings (default: what a recipe of distill names, else beside the shards)"
    )

    distill = _add(commands, "distill", _distill, "distil a student", overrides=True)
    distill.add_argument("recipe", help="YAML recipe, a published folder or hub://ORG/NAME[@REV]")
    distill.add_argument("--output", help="run folder (default: output/MODEL.NAME)")
    distill.add_argument(
        "--vocabulary", help="other names: a text file, '[a, b]', folder:PATH, coco:PATH, ... (vocabulary.source)"
    )
    distill.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    distill.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")

    _add_evaluate(
        commands.add_parser("evaluate", help="evaluate a model").add_subparsers(required=True, metavar="WHAT")
    )

    save = _add(commands, "save", _save, "make a published folder from a run's last checkpoint, or its best")
    save.add_argument("run", help="run folder of `lgd-timm distill`")
    save.add_argument("out", help="new folder")
    save.add_argument(
        "--best", action="store_true", help="of the checkpoints that were scored, the one with the highest score"
    )
    save.add_argument(
        "--open-clip",
        action="store_true",
        help="add the two files that open_clip loads: the teacher's text tower is large",
    )
    save.add_argument("--register", metavar="ORG/NAME", help="also write the weight's row into the package's manifest")

    _add_hub(commands)
    add_transfer(commands, _add)
    add_export(commands, _add)

    report = _add(commands, "report", _report, "one page about runs: numbers, curves, confusions, images")
    report.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder of `lgd-timm distill`, or published folder; seeds are grouped",
    )
    report.add_argument("--data", help="shard folder of the images that are shown (default: the recipe's data.shards)")
    report.add_argument("--split", help="which split of them (default: the recipe's data.val_split, else val)")
    report.add_argument("--out", default="output/report", help="folder; an earlier report in it is replaced")

    return parser


def _add_hub(commands: Any) -> None:
    """What goes to the Hub and comes from it."""
    push = _add(commands, "push", _push, "publish a folder on the Hugging Face Hub")
    push.add_argument("folder")
    push.add_argument("repo", help="ORG/NAME")
    push.add_argument("--private", action="store_true")
    push.add_argument("--tag")
    push.add_argument("--message")
    push.add_argument("--dry-run", action="store_true", help="check everything, send nothing")
    push.add_argument(
        "--register", action="store_true", help="write the weight's row, which is printed, into the package's manifest"
    )

    pull = _add(commands, "pull", _pull, "download and verify a published folder")
    pull.add_argument("name", help="a published name, or ORG/NAME[@REVISION]")
    pull.add_argument("--revision")
    pull.add_argument("--local-dir", help="a new folder for the files (default: the Hub's cache)")

    listing = _add(commands, "list", _list, "what is published, where it is, whether it is right")
    listing.add_argument("--json", action="store_true", help="print JSON, with paths and what is wrong")


def _add_shards(commands: Any) -> None:
    """To write shards, and to verify them."""
    shards = _add(commands, "shards", _shards, "write an image folder as WebDataset shards")
    shards.usage = "lgd-timm shards IMAGES OUT [options]\n       lgd-timm shards verify FOLDER [options]"
    shards.add_argument("images", help="folder of images, or of class folders of images; ./verify if that is its name")
    shards.add_argument("out", help="shard folder; may already hold other splits")
    shards.add_argument("--split", default="train")
    shards.add_argument("--no-labels", action="store_true", help="write no cls field, even from class folders")
    shards.add_argument("--samples-per-shard", type=int, default=5000)
    shards.add_argument(
        "--min-shards", type=int, default=1, help="at least so many shards; too few images are an error"
    )

    verify = _add(
        commands,
        VERIFY,
        _verify_shards,
        "check shards and the embeddings beside them against their index; status 1 if one is wrong",
    )
    verify.add_argument(
        "folder", help="shard folder, or address of one: https://HOST/FOLDER, hf://datasets/ORG/NAME/FOLDER, ..."
    )
    verify.add_argument("--split", help="only this one (default: all)")
    verify.add_argument("--decode", action="store_true", help="decode every image whole, and not its header alone")
    verify.add_argument(
        "--embeddings", nargs="+", default=[], help="folders or addresses of embeddings that lie elsewhere"
    )


def _add_evaluate(evaluate: Any) -> None:
    """The evaluations: which model, on which images, and what each can be told."""
    student = "published folder, hub://ORG/NAME[@REV], name as lgd_mobilenetv2, run folder"
    any_model = f"{student}; also a timm name, local-dir:FOLDER, hf-hub:ORG/NAME, FILE.safetensors"
    for name, text in {
        "zero-shot": "zero-shot accuracy, the teacher's beside it",
        "knn": "weighted k-NN on frozen features",
        "linear-probe": "a linear classifier on frozen features",
        "fine-tune": "train the whole model on the labels, or some of them",
        "calibration": "whether zero-shot confidences can be believed",
        "agreement": "how often a student answers as its teacher, and how alike they are",
        "all": "all of these but fine-tune, as far as the model allows",
    }.items():
        parser = _add(evaluate, name, _evaluate, text)
        parser.set_defaults(what=name)
        asks = name in ("zero-shot", "calibration", "agreement")
        teacher = ", or a YAML recipe: its teacher" if name == "zero-shot" else ""
        parser.add_argument("model", help=student + teacher if asks else any_model)
        parser.add_argument("--data", required=True, help="shard folder, or address of one")
        parser.add_argument("--split", default="val", help="which is scored")
        parser.add_argument("--batch-size", type=int, default=64 if name == "fine-tune" else 256)
        parser.add_argument("--workers", type=int, default=0)
        parser.add_argument("--device", default="auto")
        parser.add_argument("--json", action="store_true", help="print JSON, per-class accuracies included")
        if asks:
            parser.add_argument(
                "--vocabulary",
                help="names in label order, or a file (default: what its run was scored on, else its own)",
            )
            parser.add_argument(
                "--templates", default="none", help="prompt templates for --vocabulary: none, simple, openai, a file"
            )
        else:
            parser.add_argument(
                "--random-weights", action="store_true", help="a timm model before any training, for comparison"
            )
            parser.add_argument("--model-name", help="timm's name of the architecture, for FILE.safetensors")
            parser.add_argument(
                "--image-size", type=int, help="pixels, of a model that is no student (default: timm's)"
            )
        if name not in ("zero-shot", "agreement"):
            parser.add_argument("--train-split", default="train", help="whose labels are used")
            parser.add_argument("--seed", type=int, default=0, help="of which labels are used, and of random weights")
        _EVALUATE_OPTIONS.get(name, lambda parser: None)(parser)


def _knn_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, nargs="+", default=[20], help="neighbours; of several, the first is reported")
    parser.add_argument("--temperature", type=float, default=0.07)


def _subset_options(parser: argparse.ArgumentParser) -> None:
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--fraction", type=float, help="learn from this share of each class's labels: 0.01, 0.1")
    labels.add_argument("--per-class", type=int, help="learn from so many of each class")
    labels.add_argument("--subset", help="learn from the keys in a JSON file, as `lgd-timm subset` writes it")


def _probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", default="lbfgs", help="lbfgs, ridge, or the paper's sgd")
    parser.add_argument("--strength", type=float, help="L2 penalty (default: chosen on held-out training images)")
    parser.add_argument(
        "--sgd-batch-size", type=int, default=256, help="of protocol sgd, whose learning rate is 30 * batch / 256"
    )
    _subset_options(parser)


def _fine_tune_options(parser: argparse.ArgumentParser) -> None:
    _subset_options(parser)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--optimizer", default="adamw", help="any of timm's")
    parser.add_argument("--lr", type=float, default=5e-4, help="of the backbone")
    parser.add_argument("--head-lr", type=float, default=5e-3)
    parser.add_argument(
        "--layer-decay", type=float, help="each layer at this share of the next one's rate, such as 0.75"
    )
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--augmentation", default="light", help="of the training views: none, flip, light, mocov2")


def _all_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, default=20, help="neighbours")
    parser.add_argument("--protocol", default="lbfgs", help="of the linear probes: lbfgs, ridge, or the paper's sgd")
    parser.add_argument(
        "--write", action="store_true", help="put the scores into the published folder's metrics.json and its card"
    )


_EVALUATE_OPTIONS = {
    "knn": _knn_options,
    "linear-probe": _probe_options,
    "fine-tune": _fine_tune_options,
    "all": _all_options,
}


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """`--a.b value` and `--a.b=value` pairs -> {"a.b": "value"}. Raises: RecipeError."""
    overrides, words = {}, list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"{word!r} stands alone; recipe fields are overridden with --field.sub value.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise RecipeError(f"{word} lacks a value.")
            value = words.pop(0)
        overrides[key] = value
    return overrides


def _add(commands: Any, name: str, function: Any, text: str, *, overrides: bool = False) -> argparse.ArgumentParser:
    usage = f"{text[0].upper()}{text[1:]}." + (
        " Recipe fields are overridden with --field.sub value." if overrides else ""
    )
    parser = commands.add_parser(name, help=text, description=usage, allow_abbrev=False)
    parser.set_defaults(command=function, takes_overrides=overrides)
    return parser


def _shards(options: argparse.Namespace) -> None:
    from ..data.writer import write_shards

    written = write_shards(
        options.images,
        options.out,
        split=options.split,
        labels=not options.no_labels,
        samples_per_shard=options.samples_per_shard,
        min_shards=options.min_shards,
    )
    print(f"{options.out}: {len(written)} images in {len(written.filenames)} shards, split {written.split!r}")


def _verify_shards(options: argparse.Namespace) -> int:
    from ..data.verify_shards import check_shards

    found = check_shards(options.folder, split=options.split, decode=options.decode, embeddings=options.embeddings)
    for line in found.problems:
        print(line)
    print(f"{options.folder}: {found}")
    return 1 if found.problems else 0


def _subset(options: argparse.Namespace) -> None:
    from ..data import open_shards
    from ..data.subset import write_subset

    count = write_subset(
        open_shards(options.shards, split=options.split), options.out, per_class=options.per_class, seed=options.seed
    )
    print(f"{options.out}: {count} images, {options.per_class} of each class")


def _teach(options: argparse.Namespace) -> None:
    from ..config.reader import read_teach_recipe
    from ..training.teach import teach_recipe
    from ..utils.device import keep_memory

    if options.out:
        options.overrides["out"] = options.out
    recipe = read_teach_recipe(options.recipe, overrides=options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return
    keep_memory()
    stored = teach_recipe(recipe)
    if first_rank():
        print(f"embeddings: {stored.root}")


def _distill(options: argparse.Namespace) -> None:
    from ..config.reader import local_source, read_recipe
    from ..publish.card import weight_name
    from ..training.distill import distill
    from ..utils.device import keep_memory

    if options.vocabulary:
        options.overrides["vocabulary.source"] = options.vocabulary
    source = local_source(options.recipe)
    recipe = read_recipe(source, overrides=options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return
    keep_memory()
    out = options.output or f"output/{weight_name(recipe)}"
    published = distill(recipe, out=out, resume=options.resume, source=source)
    if first_rank():
        print(f"published: {published}")


def _evaluate(options: argparse.Namespace) -> None:
    from ..utils.device import keep_memory
    from .evaluate import COMMANDS

    keep_memory()
    COMMANDS[options.what](options)


def _save(options: argparse.Namespace) -> None:
    from ..publish.registration import check_name, register
    from ..training.distill import save_run

    if options.register:
        check_name(Path(options.out).resolve().name)
    folder = save_run(options.run, out=options.out, open_clip=options.open_clip, best=options.best)
    if options.register:
        register(folder, repo_id=options.register)
    print(f"published: {folder}")


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
    row = manifest_row(folder, repo_id=options.repo, commit=result.commit, files=result.files)
    print(json.dumps({folder.name: row}, indent=1, ensure_ascii=False))
    if registering:
        register(folder, repo_id=options.repo, commit=result.commit)


def _pull(options: argparse.Namespace) -> None:
    from .. import hub

    print(hub.pull(options.name, revision=options.revision, local_dir=options.local_dir))


def _report(options: argparse.Namespace) -> None:
    from ..evaluate.report import report

    print(f"report: {report(options.runs, data=options.data, split=options.split, out=options.out)}")


def _list(options: argparse.Namespace) -> None:
    from .. import hub

    rows = hub.listing()
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False))
        return
    for row in rows:
        metrics = ", ".join(f"{name} {value}" for name, value in row.metrics.items())
        print(f"{row.name}  {row.size / 1e6:.1f} MB  {'+'.join(row.places) or 'nowhere yet'}  {row.state}  {metrics}")
