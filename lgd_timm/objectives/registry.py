"""Find objectives by their name in a recipe: `objective: {kind: seed, queue_size: 8192}`. Without a kind: `lgd`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import Tensor

from ..errors import LGDError, RecipeError
from ..utils.schema import values
from .base import Objective
from .clip_kd import CLIPKD
from .lgd import LGD
from .logits import Logits
from .refined import RefinedDistillation
from .regression import Regression
from .seed import SEED
from .supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    "lgd": LGD,
    "seed": SEED,
    "regression": Regression,
    "clip_kd": CLIPKD,
    "logits": Logits,
    "refined": RefinedDistillation,
    "supervised": Supervised,
}


def create_objective(text_bank: Tensor, *, kind: str = "lgd", seed: int = 0, **settings: Any) -> Objective:
    """Build an objective.

    Args:
        text_bank: unit rows [C, D], one a category name.
        kind: a name in `OBJECTIVES`.
        seed: of whatever starts at random.
        settings: `preset`, and switches of the objective.

    Raises:
        LGDError: the kind, the preset or a switch is unknown, or a value or the bank is wrong.
    """
    return _class(kind)(text_bank, seed=seed, **settings)


def objective_config(settings: Mapping[str, Any]) -> Any:
    """Read a recipe's `objective` as the frozen dataclass of its class, with every switch set. Raises: LGDError."""
    settings = dict(settings)
    return _class(settings.pop("kind", "lgd")).configure(**settings)


def objective_class(settings: Mapping[str, Any]) -> type[Objective]:
    """Find the class that a recipe's `objective` names. Raises: LGDError."""
    return _class(settings.get("kind", "lgd"))


def check_objective(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert each value of a recipe's `objective` to its switch's type. Raises: RecipeError that names the field."""
    try:
        types = get_type_hints(type(next(iter(objective_class(settings).presets.values()))), include_extras=True)
        checked = values({"kind": str, "preset": str, **types}, settings, where="objective")
        objective_config(checked)
    except RecipeError:
        raise
    except LGDError as error:
        raise RecipeError(str(error)) from error
    return checked


def _class(kind: Any) -> type[Objective]:
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        raise LGDError(f"objective.kind {kind!r} is unknown; choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[kind]
