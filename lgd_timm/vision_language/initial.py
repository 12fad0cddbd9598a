"""First weights of a transformer: from another run of ours, or from a BERT such as MiniLM."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import LGDError, TeacherError, WeightsError
from ..teachers.sentence_encoder import package_folder
from .folder import CONFIG, WEIGHTS, model_folder
from .model import VisionLanguageModel
from .text import FILE, Tokenizer

log = logging.getLogger(__name__)

WORDS, PLACES = "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"


def load_initial(model: VisionLanguageModel, source: str, *, tokenizer: Tokenizer) -> list[str]:
    """Load all weights that a source has for a model; the others stay random, such as heads of another task.

    Of a source with more blocks or places the first are taken.

    Args:
        model: is changed.
        source: a run or published folder, or `package:MODULE/FOLDER`, a BERT's.
        tokenizer: the model's, which must be the source's too.

    Returns:
        Keys of the model's tensors that stay random.

    Raises:
        WeightsError: the source can't be read, or is of another width or tokenizer.
    """
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
    fitting = {key: tensor for key, tensor in state.items() if key in own and tensor.shape == own[key].shape}
    model.load_state_dict({**own, **fitting})
    missing = sorted(set(own) - set(fitting))
    log.info("%s gives %d of %d tensors; random: %s", source, len(fitting), len(own), ", ".join(missing) or "none")
    return missing


def _read(source: str) -> tuple[Path, dict[str, Tensor]]:
    """The source's folder, and its tensors by our names."""
    folder = package_folder(source) if source.startswith("package:") else Path(source)
    ours = (folder / "model" / CONFIG).is_file() or '"regions_fingerprint"' in _text(folder / CONFIG)
    if ours:
        folder = model_folder(source)
        prefix, name = "model.", ""
    else:
        prefix, name = "", "bert."
    state = load_file(folder / WEIGHTS)
    return folder, {
        name + key.removeprefix(prefix).removeprefix("bert." if name else ""): tensor.float()
        for key, tensor in state.items()
        if key.startswith(prefix) and tensor.is_floating_point()
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LGDError(f"{path} can't be read ({error}). Give a run, a published folder or a BERT's.") from error
