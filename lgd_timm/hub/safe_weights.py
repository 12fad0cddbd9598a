"""Resolve the weights that a recipe names to folders without pickles.

    local-dir:PATH              a folder, which must hold the safetensors file that its library prefers to a pickle
    hf-hub:ORG/NAME[@REVISION]  a repository, of which only such files are downloaded, each verified (`hub.snapshot`)

timm, open_clip and sentence-transformers load a pickle if they find no safetensors. These functions raise before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from ..errors import RecipeError, WeightsError
from ..utils.lfs import pointers_in
from .snapshot_download import snapshot

# Endings of files that are pickles, or (.npz, .tar) may contain them.
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar", ".tgz", ".npz", ".npy", ".joblib", ".jit")

# What the libraries raise for a name, a folder or a configuration that they can't use.
BUILD_ERRORS = (
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    SafetensorError,
)

_CONVERT = (
    "Convert it where you trust it: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')."
)


def refuse_pickle(value: str | None, *, field: str) -> None:
    """Refuse the name of a file that is, or may be, a pickle.

    Args:
        value: file name or address; None is accepted.
        field: field of the recipe that has it, for the message.

    Raises:
        RecipeError: for such a name.
    """
    if value is not None and value.lower().rstrip("/\\ ").endswith(PICKLES):
        raise RecipeError(
            f"{field} = {value!r} names a pickle, and pickles can run code: they are never opened. {_CONVERT}"
        )


def weights_folder(name: str, *, field: str, require: Sequence[str], allow: Sequence[str] = ()) -> Path | None:
    """Return the folder that `local-dir:` or `hf-hub:` names, or None for a name without either.

    Args:
        name: a model's name, as in a recipe.
        field: field of the recipe that has it, for messages.
        require: files that the folder must hold.
        allow: patterns (`fnmatch`) of further files to download.

    Raises:
        RecipeError: for a malformed name.
        WeightsError: for a folder that does not exist or lacks a file, and as `hub.snapshot`.
    """
    schema, colon, rest = name.partition(":")
    if not colon:
        return None
    if schema not in ("local-dir", "hf-hub") or not rest:
        raise RecipeError(
            f"{field} = {name!r} is no library's name. Write local-dir:FOLDER or hf-hub:ORG/NAME[@REVISION]."
        )
    if schema == "hf-hub":
        return snapshot(rest, require=require, allow=allow)
    folder = Path(rest)
    if not folder.is_dir():
        raise WeightsError(f"{field} {name!r}: no such folder. Give one that holds {', '.join(require)}.")
    if missing := [file for file in require if not (folder / file).is_file()]:
        pickles = ", ".join(sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(PICKLES)))
        reason = f"; it has {pickles}, and pickles can run code: they are never opened. {_CONVERT}" if pickles else "."
        raise WeightsError(f"{field} {name!r} lacks {', '.join(missing)}{reason}")
    if pointers := pointers_in(folder):
        raise WeightsError(
            f"{field} {name!r}: {', '.join(pointers)} are git-lfs pointers and not the files. Run there: git lfs pull"
        )
    return folder


def timm_source(name: str, *, field: str, pretrained: bool) -> str:
    """Return the name for `timm.create_model`: timm's own unchanged, a folder or repository as `local-dir:FOLDER`.

    Args:
        name: a model's name, as in a recipe.
        field: field of the recipe that has it, for messages.
        pretrained: whether its weights are needed, and not its config.json alone.

    Raises:
        RecipeError, WeightsError: as `weights_folder`.
    """
    refuse_pickle(name, field=field)
    require = ("config.json", "model.safetensors") if pretrained else ("config.json",)
    folder = weights_folder(name, field=field, require=require)
    return name if folder is None else f"local-dir:{folder}"
