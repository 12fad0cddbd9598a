"""Any open_clip model as a teacher: a tag, a local folder or a Hub repository, with its own preprocessing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from ..data.preprocess import Preprocess
from ..errors import TeacherError, require
from ..hub.safe_weights import BUILD_ERRORS, refuse_pickle, weights_folder
from ..utils.typed_json import JSONError, read_json
from .base import ImageTeacher, TextTeacher, module_fingerprint

# open_clip takes any other word for fp32. Its amp* mean autocast, which is up to the caller.
PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TOKENIZER_FILES = ("*.json", "*.txt", "*.model")

# What a folder's configuration may pass to its tokenizer: other settings reach transformers, where trust_remote_code
# would run code.
TOKENIZER_SETTINGS = {"clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"}


@dataclass(frozen=True)
class OpenCLIP:
    """An open_clip teacher.

    Args:
        model: an open_clip name, `local-dir:PATH` or `hf-hub:ORG/NAME[@REVISION]`.
        pretrained: a tag or a safetensors file; none for a folder or repository, which has its own weights. "random"
            gives random weights, for tests.
        precision: one of `PRECISIONS`.

    Raises:
        WeightsError: a name is that of a pickle.
    """

    kind: ClassVar[str] = "open_clip"
    model: str
    pretrained: str | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="teacher.model")
        refuse_pickle(self.pretrained, field="teacher.pretrained")

    def image(self) -> ImageTeacher:
        """Build the image tower. Raises: TeacherError, WeightsError."""
        return _OpenCLIPImage(self, self.create()).freeze()

    def text(self) -> TextTeacher:
        """Build the text tower. Raises: TeacherError, WeightsError."""
        return _OpenCLIPText(self, self.create())

    def create(self) -> Any:
        """Build the whole open_clip model, both towers, in eval mode. Raises: TeacherError, WeightsError."""
        library = require("open_clip", extra="open-clip")
        if self.precision not in PRECISIONS:
            raise TeacherError(
                f"teacher.precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}."
            )
        source, trained = self.source(), self.pretrained != "random"
        stock = ":" not in source
        if stock and trained:
            self._check_pretrained(library)
        try:
            model = library.create_model(
                source,
                pretrained=self.pretrained if stock and trained else None,
                precision=self.precision,
                load_weights=trained,
                pretrained_text=False,  # else a text tower of transformers would fetch weights, pickles included
                require_pretrained=trained,
            )
        except BUILD_ERRORS as error:
            raise TeacherError(
                f"open_clip can't build {self.model!r} with pretrained={self.pretrained!r}: {error}"
            ) from error
        return model.eval()

    def source(self) -> str:
        """Return the name for open_clip: one of its own, or `local-dir:` of a folder without pickles and code.

        Raises:
            TeacherError: open_clip does not know the name.
            WeightsError: the folder or repository lacks a file.
        """
        library = require("open_clip", extra="open-clip")
        if not self.model.startswith(("local-dir:", "hf-hub:")):
            if self.model not in library.list_models():
                raise TeacherError(
                    f"teacher.model {self.model!r} is unknown to open_clip {library.__version__}. "
                    "See open_clip.list_models()."
                )
            return self.model
        folder = weights_folder(self.model, field="teacher.model", require=(CONFIG, WEIGHTS), allow=TOKENIZER_FILES)
        assert folder is not None
        _check_config(folder / CONFIG)
        return f"local-dir:{folder}"

    def _check_pretrained(self, library: Any) -> None:
        tags = ", ".join(library.list_pretrained_tags_by_model(self.model)) or "none; give a .safetensors file"
        if self.pretrained is None:
            raise TeacherError(
                f"teacher.pretrained is missing for {self.model!r}. Tags: {tags}. ('random' gives random weights.)"
            )
        file = Path(self.pretrained)
        is_file = file.suffix == ".safetensors" and file.is_file()
        if not is_file and not library.get_pretrained_cfg(self.model, self.pretrained):
            raise TeacherError(
                f"teacher.pretrained {self.pretrained!r} is no tag of {self.model!r} and no .safetensors file. "
                f"Tags: {tags}."
            )


class _TextConfig(TypedDict, total=False):
    tokenizer_kwargs: dict[str, Any]


class _ModelConfig(TypedDict):
    text_cfg: _TextConfig


class _Config(TypedDict):
    model_cfg: _ModelConfig


def _check_config(path: Path) -> None:
    """Refuse settings by which a folder could run code. Raises: TeacherError."""
    try:
        settings = read_json(path, _Config)["model_cfg"]["text_cfg"].get("tokenizer_kwargs", {})
    except (OSError, JSONError) as error:
        raise TeacherError(f"{path} is no open_clip configuration ({error}). Download it again.") from error
    unknown = sorted(set(settings) - TOKENIZER_SETTINGS)
    if unknown:
        raise TeacherError(
            f"{path}: tokenizer_kwargs {', '.join(unknown)} are not known to be harmless. "
            "Remove them, or use another teacher."
        )


class _OpenCLIPImage(ImageTeacher):
    def __init__(self, spec: OpenCLIP, model: Any) -> None:
        library = require("open_clip", extra="open-clip")
        config = library.get_model_preprocess_cfg(model)
        size = config["size"][0] if isinstance(config["size"], (tuple, list)) else config["size"]
        super().__init__(
            Preprocess(size=size, mean=config["mean"], std=config["std"], interpolation=config["interpolation"])
        )
        self.visual = model.visual  # the text tower is not kept: a step does not need it
        self.dtype = library.get_input_dtype(spec.precision) or torch.float32
        with torch.inference_mode():
            self.embed_dim = int(self.encode(torch.zeros(1, 3, size, size)).shape[1])
        self.name = "clip_" + re.sub("[^a-z0-9_]", "", spec.model.rpartition(":")[2].rpartition("/")[2].lower())
        self.fingerprint = module_fingerprint(self.visual, size, config["mean"], config["std"], config["interpolation"])

    def encode(self, inputs: Tensor) -> Tensor:
        features = self.visual(inputs.to(self.dtype))
        return features[0] if isinstance(features, tuple) else features


class _OpenCLIPText(TextTeacher):
    def __init__(self, spec: OpenCLIP, model: Any) -> None:
        try:
            self._tokenizer = require("open_clip", extra="open-clip").get_tokenizer(spec.source())
        except BUILD_ERRORS as error:
            raise TeacherError(f"open_clip can't build the tokenizer of {spec.model!r}: {error}") from error
        self._model = model
        # The fingerprint is the text tower's alone, and this frees half the memory.
        del model.visual
        self.fingerprint = module_fingerprint(model, "open_clip-text")

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(list(prompts))).float()
