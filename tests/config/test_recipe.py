"""Recipes: typed, checked, overridable, and nothing in them can run code."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lgd_timm.config.reader import read_recipe, read_teach_recipe, read_teacher, recipe_from_dict
from lgd_timm.config.recipe import DataRecipe, MachineRecipe, Recipe, TeachRecipe
from lgd_timm.errors import RecipeError
from lgd_timm.teachers import Conse, OpenCLIP, Stored
from lgd_timm.utils.schema import MACHINE, marked
from tests.helpers import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

MINIMAL: dict[str, Any] = {
    "name": "small",
    "teacher": {"kind": "open_clip", "model": "RN50", "pretrained": "openai"},
    "vocabulary": {"source": ["cat", "dog"]},
    "data": {"shards": "shards"},
}
TEACH = """
teacher: {kind: conse, classifier: resnet18, encoder: some/encoder}
views: {size: 64, count: 2}
shards: shards
"""


def changed(field: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one dotted field set."""
    data = copy.deepcopy(MINIMAL)
    *parents, last = field.split(".")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return data


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, yaml.safe_dump(MINIMAL))


# ----------------------------------------------------------------------------------------------------- unknown, missing


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("optimiser", "'optimiser'; did you mean 'optimizer'?"),
        ("optimizer.learning", "'optimizer.learning'; known: name, lr, "),
        ("optimizer.clip_gard", "did you mean 'optimizer.clip_grad'?"),
        ("student.modle", "did you mean 'student.model'?"),
        ("views.augmentaton", "did you mean 'views.augmentation'?"),
        ("teacher.pretrianed", "did you mean 'teacher.pretrained'?"),
        ("objective.student_temprature", "did you mean 'objective.student_temperature'?"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(field: str, message: str) -> None:
    with pytest.raises(RecipeError, match="Unknown recipe field .*" + re.escape(message)):
        recipe_from_dict(changed(field, 1))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("name", "The recipe lacks name"),
        ("teacher", "The recipe lacks teacher"),
        ("data", "The recipe lacks data"),
    ],
)
def test_a_missing_field_is_named(missing: str, message: str) -> None:
    data = {key: value for key, value in MINIMAL.items() if key != missing}
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(data)


def test_all_missing_fields_are_named_at_once() -> None:
    with pytest.raises(RecipeError, match=r"^The recipe lacks name, teacher, vocabulary\.$"):
        recipe_from_dict({"data": {}})


def test_a_missing_nested_field_is_named_with_its_place() -> None:
    with pytest.raises(RecipeError, match=r"^teacher lacks teacher\.classifier\.$"):
        recipe_from_dict(changed("teacher", {"kind": "conse", "encoder": "x"}))


# ---------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.batch_size", "many", "data.batch_size = 'many' is no int"),
        ("data.batch_size", 32.5, "data.batch_size = 32.5 is no int"),
        ("data.batch_size", True, "data.batch_size = True is no int"),
        ("optimizer.lr", "fast", "optimizer.lr = 'fast' is no number"),
        ("optimizer.lr", True, "optimizer.lr = True is no float"),
        ("optimizer.lr", [0.1], r"optimizer.lr = \[0.1\] is no number"),
        ("run.compile", 1, "run.compile = 1 is no bool"),
        ("run.compile", "yes", "run.compile = 'yes' is no bool"),
        ("run.amp", "fp16", "run.amp = 'fp16'; choose one of none, float16, bfloat16"),
        ("student.projector", None, "student.projector = None; choose one of linear, mlp"),
        ("student.model", 18, "student.model = 18 is no str"),
        ("student.image_size", "big", "student.image_size = 'big' is no int"),
        ("student.mean", [0.5, 0.5], r"student.mean = \[0.5, 0.5\] is no tuple"),
        ("student.mean", 0.5, "student.mean = 0.5 is no tuple"),
        ("student.mean", [0.5, 0.5, "x"], "student.mean = 'x' is no number"),
        ("vocabulary.source", 7, "vocabulary.source = 7 is no list"),
        ("vocabulary.source", ["cat", False], "vocabulary.source = False is no str"),  # a bare `no` in YAML
        ("objective", "paper", "objective = 'paper' is no dict"),
        ("objective.alpha", "most", "objective.alpha = 'most' is no number"),
        ("objective.positive", 1, "objective.positive = 1 is no bool"),
        ("objective.assignment", "sharp", "objective.assignment = 'sharp'; choose one of hard, soft"),
        ("objective.preset", ["paper"], r"objective.preset = \['paper'\] is no str"),
        ("optimizer", "sgd", "optimizer must be a mapping of fields, not 'sgd'"),
        ("views", 224, "views must be a mapping of fields, not 224"),
        ("schedule.name", "plateau", "schedule.name = 'plateau'; choose one of cosine"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(changed(field, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.batch_size", 0),
        ("data.workers", -1),
        ("data.max_bad", 1.5),
        ("optimizer.lr_base_size", 0),
        ("optimizer.momentum", 1.01),
        ("schedule.epochs", 0),
        ("schedule.warmup_epochs", -1.0),
        ("run.seed", -1),
        ("run.log_every", 0),
        ("run.checkpoint_every", 0),
        ("run.evaluate_every", 0),
        ("run.ema_decay", 2.0),
        ("student.image_size", 0),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"^{field} = {value} is outside \["):
        recipe_from_dict(changed(field, value))


def test_what_the_objective_and_the_views_refuse_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match=r"objective.alpha = 2.0 is outside \[0, 1\]"):
        recipe_from_dict(changed("objective.alpha", 2))
    with pytest.raises(RecipeError, match=r"objective.preset 'papre' is unknown; choose one of reference, paper"):
        recipe_from_dict(changed("objective.preset", "papre"))
    with pytest.raises(RecipeError, match=r"views.augmentation 'heavy' is unknown"):
        recipe_from_dict(changed("views.augmentation", "heavy"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-.inf", "1e999", 10**400])
@pytest.mark.parametrize(
    "field", ["optimizer.lr", "optimizer.betas", "schedule.min_lr", "student.mean", "objective.threshold"]
)
def test_numbers_are_finite(field: str, value: Any) -> None:
    data = changed(field, [value] * {"optimizer.betas": 2, "student.mean": 3}.get(field, 0) or value)
    with pytest.raises(RecipeError, match=rf"^{field} = .* is (not finite|no number)"):
        recipe_from_dict(data)


@pytest.mark.parametrize("field", ["name", "data.train_split", "data.val_split"])
def test_what_becomes_a_file_name_is_one(field: str) -> None:
    for good in ("a", "conse_cifar10", "a-b.c", "_", "1", "x" * 100):
        recipe_from_dict(changed(field, good))
    for bad in ("", ".", "..", ".a", "a/b", "../a", "/a", "a\\b", "a b", "ä", "a\n", "a\0", "~", "x" * 101):
        with pytest.raises(RecipeError, match=rf"^{field} = .* becomes part of file names\. Use at most 100 letters"):
            recipe_from_dict(changed(field, bad))


def test_values_in_messages_are_short() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 1_000_000, ["y" * 1000] * 1000, deep, {"z" * 1_000_000: 1}):
        with pytest.raises(RecipeError) as caught:
            recipe_from_dict(changed("data.batch_size", value))
        assert len(str(caught.value)) < 1000


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 wants a dot in a float: `1e-4` is text, and `1` an integer."""
    text = yaml.safe_dump(MINIMAL) + "optimizer: {weight_decay: 1e-4, lr: 1}\nobjective: {teacher_temperature: 5e-2}\n"
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.optimizer.weight_decay == 1e-4
    assert (recipe.optimizer.lr, type(recipe.optimizer.lr)) == (1.0, float)
    assert recipe.objective == {"teacher_temperature": 5e-2}


def test_null_means_the_default_where_there_is_one_to_choose() -> None:
    recipe = recipe_from_dict(changed("optimizer.lr", None))
    assert recipe.optimizer.lr is None
    with pytest.raises(RecipeError, match=r"optimizer.momentum = None is no number"):
        recipe_from_dict(changed("optimizer.momentum", None))


# ------------------------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize(
    ("teacher", "kind"),
    [
        ({"kind": "open_clip", "model": "RN50"}, OpenCLIP),
        ({"kind": "conse", "classifier": "resnet18", "encoder": "x", "image_size": 192}, Conse),
        ({"kind": "stored", "embeddings": "somewhere"}, Stored),
    ],
)
def test_teacher_kind_chooses_the_spec(teacher: dict[str, Any], kind: type) -> None:
    recipe = recipe_from_dict({**MINIMAL, "teacher": teacher})
    assert isinstance(recipe.teacher, kind)
    assert recipe.to_dict()["teacher"].items() >= teacher.items()


@pytest.mark.parametrize("teacher", [{"kind": "clip"}, {"model": "RN50"}, "open_clip", None, {"kind": ["conse"]}])
def test_unknown_teacher_kinds_are_refused_with_the_known_ones(teacher: Any) -> None:
    with pytest.raises(RecipeError, match=r"^teacher.kind = .*; choose one of conse, open_clip, stored\.$"):
        recipe_from_dict({**MINIMAL, "teacher": teacher})


def test_a_teach_recipe_reads_its_fields_and_overrides(tmp_path: Path) -> None:
    recipe = read_teach_recipe(written(tmp_path, TEACH), overrides={"split": "val", "views.count": "1"})
    assert (recipe.split, recipe.views.count, recipe.views.size) == ("val", 1, 64)
    again = read_teach_recipe(written(tmp_path, recipe.to_yaml(), "again.yaml"))
    assert again == recipe


def test_a_teach_recipe_with_a_stored_teacher_is_refused(tmp_path: Path) -> None:
    text = TEACH.replace("{kind: conse, classifier: resnet18, encoder: some/encoder}", "{kind: stored, embeddings: x}")
    with pytest.raises(RecipeError, match=r"teacher.kind is 'stored', which has taught already"):
        read_teach_recipe(written(tmp_path, text))


def test_the_teacher_is_read_from_recipes_of_either_sort(tmp_path: Path, path: Path) -> None:
    teacher, names, _ = read_teacher(path)
    assert isinstance(teacher, OpenCLIP)
    assert names is not None
    assert names.names == ("cat", "dog")
    teacher, names, _ = read_teacher(written(tmp_path, TEACH, "teach.yaml"))
    assert (teacher, names) == (Conse("resnet18", "some/encoder"), None)


# ---------------------------------------------------------------------------------------------------------------- files


def test_the_name_is_the_files_unless_the_recipe_says_so(tmp_path: Path) -> None:
    nameless = yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != "name"})
    assert read_recipe(written(tmp_path, nameless, "birds_rn50.yaml")).name == "birds_rn50"
    assert read_recipe(written(tmp_path, yaml.safe_dump(MINIMAL), "other.yaml")).name == "small"


def test_a_missing_file_names_its_neighbours(path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"No recipe at .*recipes\.yaml\. There are: {re.escape(str(path))}\.$"):
        read_recipe(path.with_name("recipes.yaml"))
    with pytest.raises(
        RecipeError, match=r"No recipe at .*Give a YAML file, builtin:NAME .*, a published folder or hub://ORG/NAME\.$"
    ):
        read_recipe(path.parent / "nowhere" / "recipe.yaml")


def test_a_published_folder_is_its_recipe(path: Path) -> None:
    assert read_recipe(path.parent) == read_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a, b", "is not YAML: "),
        ("name: a\n\tdata: b", "is not YAML: "),
        ("- name", "holds list, not a mapping"),
        ("", "holds NoneType, not a mapping"),
        ("just text", "holds str, not a mapping"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="is not YAML"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/object/new:os.system"]
)
def test_nothing_in_a_recipe_is_executed(tmp_path: Path, path: Path, tag: str) -> None:
    witness = tmp_path / "executed"
    attack = f"{tag} ['touch {witness}']"
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 1\d: the tag 'tag:yaml\.org,2002:python/.* is not read"):
        read_recipe(written(tmp_path, yaml.safe_dump(MINIMAL) + f"student: {attack}\n"))
    with pytest.raises(RecipeError, match=r"^--student\.model ['\"]!!python.*line 1: the tag .* is not read"):
        read_recipe(written(tmp_path, yaml.safe_dump(MINIMAL)), overrides={"student.model": attack})
    assert not witness.exists()


# ------------------------------------------------------------------------------------------------------------ overrides


def test_overrides_change_their_field_and_nothing_else(path: Path) -> None:
    plain = read_recipe(path)
    recipe = read_recipe(
        path, overrides={"optimizer.lr": "0.25", "teacher.model": "RN101", "student.mean": "[0.1, 0.2, 0.3]"}
    )
    assert recipe.optimizer.lr == 0.25
    assert recipe.teacher == OpenCLIP("RN101", "openai")
    assert recipe.student.mean == (0.1, 0.2, 0.3)
    expected = plain.to_dict()
    expected["optimizer"]["lr"], expected["teacher"]["model"], expected["student"]["mean"] = (
        0.25,
        "RN101",
        [0.1, 0.2, 0.3],
    )
    assert recipe.to_dict() == expected


def test_overrides_are_checked_like_the_file(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'optimizer.lr'"):
        read_recipe(path, overrides={"optimizer.lr_": "1"})
    with pytest.raises(RecipeError, match=r"optimizer.lr = 'x' is no number"):
        read_recipe(path, overrides={"optimizer.lr": "x"})
    with pytest.raises(RecipeError, match="'name' holds a single value, it has no field 'first'"):
        read_recipe(path, overrides={"name.first": "x"})
    with pytest.raises(RecipeError, match=r"--data.shards '\[a' is not YAML"):
        read_recipe(path, overrides={"data.shards": "[a"})


def test_overrides_may_be_values_instead_of_text(path: Path) -> None:
    recipe = read_recipe(path, overrides={"vocabulary.source": ["a b", "c"], "run.compile": True})
    assert (recipe.vocabulary.source, recipe.machine.compile) == (["a b", "c"], True)


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(
    "field",
    [
        ("student.mean", (0.1, 0.2, 0.3)),
        ("vocabulary.source", ["größe", "no", "1e-4", "a: b"]),
        ("objective", {"preset": "paper", "alpha": 0.1, "visual_student_temperature": None}),
        ("views", {"size": 96, "count": 4, "augmentation": "light"}),
        ("optimizer.betas", [0.9, 0.95]),
        ("optimizer.weight_decay", 1e-9),
        ("teacher", {"kind": "stored", "embeddings": "a/b"}),
    ],
    ids=lambda field: field[0],
)
def test_what_is_written_reads_back_equal(tmp_path: Path, field: tuple[str, Any]) -> None:
    recipe = recipe_from_dict(changed(*field))
    assert read_recipe(written(tmp_path, recipe.to_yaml())) == recipe
    assert recipe_from_dict(recipe.to_dict()) == recipe


def test_the_written_recipe_is_complete(path: Path) -> None:
    """Defaults are spelled out, so that a later version's other defaults do not change a published recipe."""
    data = read_recipe(path).to_dict()
    assert data["optimizer"]["momentum"] == 0.9
    assert data["schedule"]["epochs"] == 90
    assert set(data) == {
        "name",
        "teacher",
        "vocabulary",
        "data",
        "student",
        "views",
        "objective",
        "optimizer",
        "schedule",
        "run",
    }


def test_a_field_has_its_key_in_yaml_and_its_name_in_python(path: Path) -> None:
    recipe = read_recipe(path, overrides={"run.seed": "7"})
    assert recipe.machine.seed == recipe.to_dict()["run"]["seed"] == 7
    with pytest.raises(RecipeError, match=r"Unknown recipe field 'machine'"):
        recipe_from_dict({**MINIMAL, "machine": {"seed": 7}})
    with pytest.raises(RecipeError, match=r"Unknown recipe field 'run.sede'; did you mean 'run.seed'"):
        recipe_from_dict(changed("run.sede", 7))


def test_how_small_convolutions_are_computed_is_written_where_it_was_chosen(path: Path) -> None:
    assert "small_convs" not in read_recipe(path).to_yaml()
    for text, value in (("auto", "auto"), ("true", True), ("false", False)):
        recipe = read_recipe(path, overrides={"run.small_convs": text})
        assert (type(recipe.machine.small_convs), recipe.machine.small_convs) == (type(value), value)
        assert recipe_from_dict(recipe.to_dict()) == recipe
    with pytest.raises(RecipeError, match=r"run.small_convs = 1; choose one of auto, True, False"):
        recipe_from_dict(changed("run.small_convs", 1))


def test_fields_of_the_machine_are_marked() -> None:
    assert marked(DataRecipe, MACHINE) == ("workers", "in_memory", "max_bad")
    assert {"device", "photometry", "small_convs", "log_every"} <= {*marked(MachineRecipe, MACHINE)}
    assert {"seed", "amp", "ema_decay", "accumulate"}.isdisjoint(marked(MachineRecipe, MACHINE))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_package_parses_and_reads_back(recipe: Path, tmp_path: Path) -> None:
    teach = recipe.name.startswith("teach")
    read = read_teach_recipe if teach else read_recipe
    parsed = read(recipe)
    assert isinstance(parsed, TeachRecipe if teach else Recipe)
    assert read(written(tmp_path, parsed.to_yaml())) == parsed
