"""The errors that this package raises on purpose.

    LGDError(ValueError)      bad input: names the value, the reason and what to do
    |-- RecipeError           a recipe that can't be read, or a field that it does not have
    |-- VocabularyError       names: missing, empty, duplicated
    |-- ShardError            images, shards, stored embeddings
    |-- CacheError            a cache that can't be written
    |-- TeacherError          a teacher that can't be built, or does not fit what was stored
    |-- WeightsError          a published folder, a download, a push
    |-- WorkerError           a process that loads images died: the command line ends with status 1, else with 2
    MissingExtra(ImportError) an optional library: names the extra that installs it

Invariants are `assert`s; whatever else escapes is a bug.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class LGDError(ValueError):
    """Bad input. The message names the value, the reason and what to do."""


class RecipeError(LGDError):
    """A recipe that can't be read, or a field that it does not have."""


class VocabularyError(LGDError):
    """Category names that are missing, empty or duplicated."""


class ShardError(LGDError):
    """Images, shards or stored embeddings that can't be used."""


class CacheError(LGDError):
    """The cache can't be written, for example on a full disk. Samples that it affects do not count as bad."""


class TeacherError(LGDError):
    """A teacher that can't be built, or that does not fit what was stored."""


class WeightsError(LGDError):
    """A published folder, a download or a push that is incomplete, altered or refused."""


class WorkerError(LGDError):
    """A worker process of a DataLoader died, mostly because memory ran out."""


class MissingExtra(ImportError):
    """An optional library is not installed."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: its name, such as `open_clip`.
        extra: extra of lgd_timm that installs it.

    Raises:
        MissingExtra: says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{module!r} can't be imported ({error}). Install it with: pip install 'lgd_timm[{extra}]'"
        ) from error
