"""The paper's rows: recipes that parse, one command a row, numbers that agree wherever they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lgd_timm.cli.common import parse_overrides
from lgd_timm.cli.main import build_parser, main
from lgd_timm.config.reader import read_recipe, recipe_from_dict
from lgd_timm.data import Views, open_shards
from lgd_timm.data.subset import draw_labels, labelled_keys
from lgd_timm.students.entrypoints import STUDENTS
from lgd_timm.training.build import build
from tests.helpers import ROOT

PAPER = ROOT / "recipes" / "paper"
PAGE = ROOT / "docs" / "results" / "imagenet.md"
RECIPES = sorted(PAPER.glob("*.yaml"))

# Typed from the tables of arXiv 2406.11689, a second time:
# row -> zero-shot ImageNet, Caltech-256; linear probe 1 %, 10 %, 100 %, Caltech-256
TABLE = {
    "lgd_resnet18_in1k_200": (49.5, 63.9, 53.5, 61.7, 67.2, 82.7),
    "lgd_resnet18_in1k_90": (47.8, 62.3, 52.9, 61.5, 66.4, 81.6),
    "lgd_resnet18_in1k_ct256_90": (34.3, 65.8),
    "lgd_resnet18_ct256_ct256_90": (18.9, 66.5),
    "lgd_mobilenetv2_in1k_200": (50.3, 64.7, 51.9, 60.7, 67.4, 81.3),
    "lgd_mobilenetv2_in1k_90": (48.5, 63.0, 50.3, 59.4, 66.3, 81.2),
    "lgd_mobilenetv2_in1k_ct256_90": (35.0, 66.8),
    "lgd_mobilenetv2_ct256_ct256_90": (19.2, 67.4),
    "seed_resnet18_in1k_200": (44.2, 62.1, 43.1, 56.3, 62.7, 79.5),
    "seed_mobilenetv2_in1k_200": (42.2, 55.5, 63.5, 79.1),
}


def commands(row: str, *words: str, **environment: str) -> list[list[str]]:
    """What `run.sh ROW --dry-run` prints, as words."""
    out = subprocess.run(
        ["bash", PAPER / "run.sh", row, "--dry-run", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "GPUS": "8", **environment},
    ).stdout
    return [shlex.split(line) for line in out.splitlines()]


def of_lgd_timm(words: list[str]) -> list[str]:
    """The words for `lgd_timm.cli.main`, whoever starts it."""
    return words[words.index("lgd_timm.cli") + 1 :] if words[0] == "torchrun" else words[1:]


@pytest.fixture(scope="module")
def rows(script: Callable[[str], ModuleType]) -> dict[str, Any]:
    return script("rows").read_rows()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_the_released_settings(path: Path) -> None:
    recipe = read_recipe(path)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.weight_decay_all) == (
        "momentum",
        0.9,
        1e-4,
        True,
    )
    assert (recipe.data.batch_size, optimizer.lr, optimizer.lr_base, optimizer.lr_base_size) == (2048, None, 0.03, 256)
    assert (schedule.name, schedule.warmup_epochs, schedule.warmup_lr, schedule.per_step) == ("cosine", 5, 0.03, False)
    assert recipe.views == Views(size=224, augmentation="mocov2", interpolation="bilinear", count=200)
    assert (recipe.data.val_crop, recipe.student.projector, recipe.vocabulary.templates) == (0.875, "mlp", "openai")
    assert recipe.student.mean == (0.48145466, 0.4578275, 0.40821073)
    assert recipe.student.std == (0.26862954, 0.26130258, 0.27577711)
    if recipe.objective.get("kind", "lgd") == "seed":
        assert recipe.objective == {
            "kind": "seed",
            "queue_size": 65536,
            "student_temperature": 0.2,
            "teacher_temperature": 1e-4,
        }
    else:
        assert recipe.objective == {"preset": "reference"}  # tau 0.2 and 0.01, momentum 0.999: tests/objectives


def test_the_rows_are_the_papers(rows: dict[str, Any]) -> None:
    assert {name: tuple(row.paper.values()) for name, row in rows.items()} == TABLE
    assert {row.recipe for row in rows.values()} == set(RECIPES)


@pytest.mark.parametrize("row", TABLE)
def test_a_rows_numbers_stand_in_its_recipe_and_in_the_page(row: str, rows: dict[str, Any]) -> None:
    numbers = [f"{number:.1f}" for number in TABLE[row]]
    spelled = [" / ".join(numbers[-4:])] if len(numbers) >= 4 else []
    spelled += [" / ".join(numbers[:2])] if len(numbers) != 4 else []
    header = rows[row].recipe.read_text().partition("\nname:")[0]
    (line,) = [line for line in PAGE.read_text().splitlines() if f"`{row}`" in line]
    for text in spelled:
        assert text in header
        assert text in line


def test_the_page_holds_the_estimates_tables(script: Callable[[str], ModuleType]) -> None:
    estimate, page = script("estimate"), PAGE.read_text()
    for table in (estimate.table_of_rows(), estimate.table_of_storage()):
        assert "\n".join(table) in page


def test_the_estimates_are_the_arithmetic_that_the_page_says(
    script: Callable[[str], ModuleType], rows: dict[str, Any]
) -> None:
    estimate, row = script("estimate"), rows["lgd_resnet18_in1k_200"]
    views = 1_281_167 * 200
    assert estimate.bare(row) == pytest.approx(views / 3482 / 3600)
    assert estimate.online(row)[0] == pytest.approx(views / 3482 / 3600 + views / 3700 / 3600)
    assert estimate.online(row)[1] == pytest.approx(views / 3482 / 3600 * 1.05 * 1.96)
    assert estimate.storage("in1k", 10, 2) == pytest.approx(1_281_167 * (10 * 1024 * 2 + 1024) / 1e9)


def test_scripts_are_valid_bash() -> None:
    for path in PAPER.glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("row", TABLE)
def test_a_row_is_distilled_and_evaluated_as_the_table_says(row: str, rows: dict[str, Any]) -> None:
    """Each command is one that the command line knows, with flags that it has."""
    facts, (distil, *evaluations) = rows[row], commands(row)
    assert distil[:3] == ["torchrun", "--nproc-per-node", "8"]
    options, rest = build_parser().parse_known_args(of_lgd_timm(distil))
    assert (Path(options.recipe), options.resume, options.output) == (
        Path("recipes/paper") / facts.recipe.name,
        True,
        f"output/paper/{row}/run",
    )
    recipe = read_recipe(
        ROOT / options.recipe, overrides={**parse_overrides(rest), "vocabulary.source": options.vocabulary}
    )
    names = {"in1k": "open_clip:imagenet-disambiguated", "ct256": "data/ct256/names.txt"}
    assert (recipe.student.model, recipe.schedule.epochs) == (f"lgd_{facts.student}", facts.epochs)
    assert recipe.student.drop_rate == (0.2 if facts.student == "mobilenetv2" else 0.0)
    assert (recipe.data.shards, recipe.data.val_vocabulary) == (f"data/{facts.images}", names[facts.images])
    assert recipe.vocabulary.source == names[facts.names]
    assert str(facts.epochs) in row
    parsed = [build_parser().parse_args(of_lgd_timm(words)) for words in evaluations]
    assert all(options.model == f"output/paper/{row}/run/published" and options.json for options in parsed)
    asked = [
        (options.what, options.data, getattr(options, "vocabulary", None), getattr(options, "subset", None))
        for options in parsed
    ]
    expected = [
        ("zero-shot", f"data/{labels}", names[labels], None)
        for labels in ("in1k", "ct256")
        if f"zs_{labels}" in facts.paper
    ]
    if "lp_100" in facts.paper:
        subsets = ["data/in1k/subset_13.json", "data/in1k/subset_128.json", None]
        expected += [("linear-probe", "data/in1k", None, subset) for subset in subsets] + [
            ("linear-probe", "data/ct256", None, None)
        ]
        assert {(options.protocol, options.sgd_batch_size) for options in parsed[-4:]} == {("sgd", 2048)}
    assert asked == expected


def test_an_unknown_row_is_one_line_that_names_the_known_ones() -> None:
    for row in ("lgd_resnet50_in1k_90", "lgd_.*", "row", ""):
        result = subprocess.run(
            ["bash", PAPER / "run.sh", row, "--dry-run"], check=False, capture_output=True, text=True, timeout=60
        )
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert all(known in result.stderr for known in TABLE)


def test_a_tag_without_weights_names_a_recipe_that_is_there() -> None:
    for name, entry in STUDENTS.items():
        if "clip_rn50_in1k" in entry.recipes:
            path, *overrides = entry.recipes["clip_rn50_in1k"].split()
            recipe = read_recipe(ROOT / path, overrides=parse_overrides(overrides))
            assert (recipe.student.model, recipe.name) == (name, "clip_rn50_in1k")


def test_a_run_is_evaluated_on_the_recipes_crop(recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    recipe_dict["data"]["val_crop"] = 0.875
    run = build(recipe_from_dict(recipe_dict), tmp_path / "run")
    assert run.validation is not None
    assert run.validation.dataset.views == Views(size=32, augmentation="none", crop=0.875)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """The data folder of a row: coloured squares in place of ImageNet and of Caltech-256."""
    root = tmp_path_factory.mktemp("paper") / "data"
    for name in ("in1k", "ct256"):
        shutil.copytree(shard_folder, root / name)
        (root / name / "names.txt").write_text("blue\ngreen\nred\n")
        for per_class, called in ((2, 13), (8, 128)):
            keys, labels = labelled_keys(open_shards(root / name, split="train"))
            draw_labels(keys, labels, per_class=per_class).write(root / name / f"subset_{called}.json")
    return root


def small(data: Path, tiny_clip: Path) -> tuple[list[str], dict[str, str]]:
    """Recipe fields and environment with which a row takes seconds."""
    fields = {
        "teacher": f"{{kind: open_clip, model: 'local-dir:{tiny_clip}'}}",
        "schedule.epochs": "1",
        "schedule.warmup_epochs": "0",
        "views.size": "32",
        "views.count": "2",
        "data.batch_size": "16",
        "data.workers": "0",
        "run.device": "cpu",
        "run.amp": "none",
    }
    environment = {
        "DATA": str(data),
        "OUT": str(data.parent / "out"),
        "GPUS": "1",
        "WORKERS": "0",
        "IN1K_NAMES": str(data / "in1k" / "names.txt"),
        "TEMPLATES": "none",
        "PROBE": "--sgd-batch-size 16 --device cpu",
    }
    return [word for key, value in fields.items() for word in (f"--{key}", value)], environment


def check_results(out: Path, row: Any) -> None:
    scores = {metric: json.loads((out / f"{metric}.json").read_text()) for metric in row.paper}
    assert {path.stem for path in out.glob("*.json")} == set(row.paper)
    for metric, score in scores.items():
        if metric.startswith("lp_"):
            assert score["protocol"] == "sgd"
            assert score["train"] == {"lp_1": 6, "lp_10": 24}.get(metric, 48)
    recipe = read_recipe(out / "run" / "published" / "recipe.yaml")
    assert (recipe.data.val_crop, recipe.student.projector) == (0.875, "mlp")


@pytest.mark.parametrize("row", ["lgd_resnet18_in1k_90", "lgd_mobilenetv2_ct256_ct256_90", "seed_mobilenetv2_in1k_200"])
def test_a_rows_commands_run_from_shards_to_the_last_number(
    row: str,
    data: Path,
    tiny_clip: Path,
    rows: dict[str, Any],
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which is quicker than a new one for each; the script itself runs below."""
    monkeypatch.chdir(ROOT)
    words, environment = small(data, tiny_clip)
    distil, *evaluations = commands(row, *words, **environment)
    out = Path(environment["OUT"]) / row
    assert main(of_lgd_timm(distil)) == 0
    capsys.readouterr()
    for metric, command in zip(rows[row].paper, evaluations, strict=True):
        assert main(of_lgd_timm(command)) == 0
        (out / f"{metric}.json").write_text(capsys.readouterr().out)
    check_results(out, rows[row])
    script("rows").main(row, str(out))
    said = capsys.readouterr().out
    for metric, paper in rows[row].paper.items():
        assert re.search(rf"{re.escape(script('rows').METRICS[metric])} +{paper:.1f} +\d+\.\d\n", said)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_script_runs_a_row_and_goes_on_where_it_was(
    data: Path, tiny_clip: Path, rows: dict[str, Any], tmp_path: Path
) -> None:
    row = "lgd_resnet18_in1k_200"
    words, environment = small(data, tiny_clip)
    out = Path(environment["OUT"]) / row
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings: dict[str, Any] = {
        "env": {**os.environ, **environment, "PATH": path},
        "capture_output": True,
        "text": True,
        "cwd": tmp_path,
    }
    subprocess.run(["bash", PAPER / "run.sh", row, *words], check=True, **settings)
    check_results(out, rows[row])
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    (out / "lp_1.json").unlink()
    said = subprocess.run(["bash", PAPER / "run.sh", row, *words], check=True, **settings).stdout
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert [path.stem for path in before if before[path] != after[path]] == ["lp_1"]
    assert "linear probe, Caltech-256" in said
