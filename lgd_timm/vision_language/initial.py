"""First weights of a transformer: from another run of ours, or from a BERT such as MiniLM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config.reader import local_source
from ..errors import LGDError, TeacherError, WeightsError
from ..hub.weights import FASTVLM
from ..teachers.sentence_encoder import package_folder
from ..utils.typed_json import JSONError, read_json
from .folder import CONFIG, WEIGHTS, model_folder, open_model
from .stock import EYES, AnyModel, CausalModel
from .text import FILE, Tokenizer

log = logging.getLogger(__name__)

WORDS, PLACES = "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"


def load_initial(model: AnyModel, source: str, *, tokenizer: Tokenizer) -> list[str]:
    """Load all weights that a source has for a model; the others stay random, such as heads of another task.

    Of a source with more blocks or places the first are taken. The eyes of a FastVLM stay those of its recipe.

    Args:
        model: is changed.
        source: a run or published folder, or for our own form `package:MODULE/FOLDER`, a BERT's.
        tokenizer: the model's, which must be the source's too.

    Returns:
        Keys of the model's tensors that stay random.

    Raises:
        WeightsError: the source can't be read, or is of another width or tokenizer.
    """
    if isinstance(model, CausalModel):
        return _load_fitting(model, _of_causal(model, source, tokenizer), source=source)
    try:
        folder, state = _read(source)
        theirs = Tokenizer((folder / FILE).read_text(encoding="utf-8"))
    except (SafetensorError, OSError, UnicodeDecodeError, TeacherError) as error:
        raise WeightsError(f"model.init {source!r} can't be read ({error}). Give a run, or a BERT's folder.") from error
    if theirs.fingerprint != tokenizer.fingerprint:
        raise WeightsError(
            f"model.init {source!r} has another tokenizer than text.tokenizer. Set text.tokenizer to {str(folder)!r}."
        )
    own = model.state_dict()
    if (wanted := own[WORDS].shape) != (found := state.get(WORDS, own[PLACES][:0]).shape):
        raise WeightsError(
            f"model.init {source!r} has words of {list(found)} and the recipe of {list(wanted)} (tokens, width). "
            "Set model.width."
        )
    state[PLACES] = state[PLACES][: len(own[PLACES])] if PLACES in state else own[PLACES]
    return _load_fitting(model, state, source=source)


def _load_fitting(model: AnyModel, state: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load the tensors that have a place in the model. Returns: keys of the others, which are left as they are."""
    own = model.state_dict()
    fitting = {key: tensor for key, tensor in state.items() if key in own and tensor.shape == own[key].shape}
    model.load_state_dict({**own, **fitting})
    missing = sorted(key for key in set(own) - set(fitting) if not key.startswith(EYES))
    log.info("%s gives %d of %d tensors; not: %s", source, len(fitting), len(own), ", ".join(missing) or "none")
    return missing


def _of_causal(model: CausalModel, source: str, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A FastVLM's tensors without its eyes. Raises: WeightsError where it is none of the model's sizes and words."""
    found = open_model(source).model
    if not isinstance(found, CausalModel) or found.config != model.config:
        sizes = ", ".join(f"{name} {value}" for name, value in model.config.to_dict().items())
        raise WeightsError(f"model.init {source!r} is no fastvlm of the recipe's sizes ({sizes}). Set model and text.")
    if found.tokenizer.fingerprint != tokenizer.fingerprint:
        raise WeightsError(f"model.init {source!r} has another tokenizer. Set text.tokenizer to {source!r}.")
    return {key: tensor for key, tensor in found.state_dict().items() if not key.startswith(EYES)}


def _read(source: str) -> tuple[Path, dict[str, Tensor]]:
    """The source's folder, and its tensors by our names."""
    folder = package_folder(source) if source.startswith("package:") else local_source(source)
    if (folder / "model" / CONFIG).is_file():
        folder = model_folder(folder)
    config = _config(folder / CONFIG)
    if config.get("model_type") == FASTVLM:
        raise WeightsError(f"model.init {source!r} is a fastvlm, and model.form is bert. Set model.form to fastvlm.")
    if "regions_fingerprint" in config:
        prefix, name = "model.", ""
    else:
        prefix, name = "", "bert."
    state = load_file(folder / WEIGHTS)
    return folder, {
        name + key.removeprefix(prefix).removeprefix("bert." if name else ""): tensor.float()
        for key, tensor in state.items()
        if key.startswith(prefix) and tensor.is_floating_point()
    }


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = read_json(path, dict)
    except (OSError, JSONError) as error:
        raise LGDError(f"{path} can't be read ({error}). Give a run, a published folder or a BERT's.") from error
    return config
