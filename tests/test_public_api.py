"""Every public name, listed once: none may vanish, and none may appear unlisted."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType

import pytest

import lgd_timm

ALL = {
    "": "LGDError MissingExtra __version__ distill_folder hub load students",
    "cli": "main",
    "config": "Recipe TeachRecipe read_recipe read_teach_recipe recipe_from_dict",
    "data": "ShardSet Views open_shards",
    "errors": "CacheError LGDError MissingExtra RecipeError ShardError TeacherError VocabularyError WeightsError "
    "WorkerError require",
    "evaluate": "Agreement Backbone Calibration FeatureSplits Features FineTuned FineTuning KNN LinearProbe Model "
    "Results Subset ZeroShot agreement calibration draw_labels evaluate_all evaluate_zero_shot extract find_model "
    "fine_tune knn linear_probe open_zero_shot_model read_subset zero_shot zero_shot_classifier",
    "evaluate.report": "report",
    "hub": "Row Weight listing locate manifest pull snapshot",
    "objectives": "Assigned CLIPKD LGD Logits OBJECTIVES Objective RefinedDistillation Regression SEED Supervised "
    "create_objective join_assigned objective_config",
    "objectives.lgd": "LGD LGDConfig",
    "publish": "Banks Published PushResult load push register save",
    "settings": (
        "cache_folder cache_size hub_folder hub_patience hub_timeout lock_timeout offline push_timeout "
        "recipes_folder shard_patience"
    ),
    "students": "STUDENTS Student create_student stock_name",
    "task": "LGDTask",
    "teachers": "Conse ImageTeacher OpenCLIP Stored TeacherSpec TextTeacher spec_from_dict",
    "training": "distill save_run teach teach_recipe",
}  # module below lgd_timm -> all of its public names
AMONG = {
    "export.loading": "ExportModel open_export_model",
    "export.targets": "export",
    "transfer.backbone": "find_backbone",
    "transfer.recipe": "TransferRecipe read_transfer",
    "transfer.run": "compare open_run predict transfer",
    "vision_language.describe": "Describer answer caption",
    "vision_language.folder": "VLModel open_model save_model",
    "vision_language.recipe": "VLRecipe read_vl_recipe",
    "vision_language.run": "adapted distill evaluate pretrain publish",
    "utils.device": "keep_memory pick_device",
}  # module -> those of its names that are public; the others may change


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"lgd_timm.{name}".rstrip("."))


def public_names(module: ModuleType) -> set[str]:
    """`__all__`; of a module without one, functions and classes that are defined in it and begin with no underscore."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def unlisted(modules: Mapping[str, ModuleType]) -> list[str]:
    """Modules with an `__all__` that the table lacks."""
    return [name for name, module in modules.items() if hasattr(module, "__all__") and name not in ALL]


@pytest.mark.parametrize("name", ALL)
def test_a_module_has_the_listed_names_and_no_others(name: str) -> None:
    assert public_names(module_of(name)) == set(ALL[name].split())


@pytest.mark.parametrize("name", [*ALL, *AMONG])
def test_every_public_name_can_be_used(name: str) -> None:
    listed = {**ALL, **AMONG}[name].split()
    assert [public for public in listed if not hasattr(module_of(name), public)] == []


def test_every_room_that_exports_names_is_listed() -> None:
    rooms = [room.name for room in pkgutil.iter_modules(lgd_timm.__path__)]
    assert unlisted({room: module_of(room) for room in rooms}) == []


def test_a_room_that_is_not_listed_is_noticed() -> None:
    room = ModuleType("lgd_timm.attic")
    room.__dict__["__all__"] = ["box"]
    assert unlisted({"attic": room}) == ["attic"]
