"""Any open_clip model as a teacher: tag, local folder or Hub repository; its own image size and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import TeacherError, require
from ..preprocess import Preprocess
from .base import ImageTeacher, TextTeacher, module_fingerprint

# open_clip takes any other word for fp32; its amp* are autocast, which is the caller's.
PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


@dataclass(frozen=True)
class OpenCLIP:
    """An open_clip teacher. `model`: an open_clip name, `local-dir:PATH` or `hf-hub:ORG/NAME`. `pretrained`: a tag or a
    weights file, and none for folders, which bring their own. `pretrained: random` gives random weights, for wiring only."""

    model: str
    pretrained: str | None = None
    precision: str = "fp32"

    def image(self) -> ImageTeacher:
        return _OpenCLIPImage(self, self._create()).freeze()

    def text(self) -> TextTeacher:
        return _OpenCLIPText(self, self._create())

    def _create(self) -> Any:
        library = require("open_clip", extra="open_clip")
        if self.precision not in PRECISIONS:
            raise TeacherError(f"teacher.precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
        local = self.model.startswith(("local-dir:", "hf-hub:"))
        if not local and self.model not in library.list_models():
            raise TeacherError(f"teacher.model {self.model!r} is unknown to open_clip {library.__version__}. See open_clip.list_models().")
        if not local and self.pretrained is None:
            tags = ", ".join(library.list_pretrained_tags_by_model(self.model)) or "none; give a weights file"
            raise TeacherError(f"teacher.pretrained is missing for {self.model!r}. Tags: {tags}. ('random' gives random weights.)")
        pretrained = None if self.pretrained == "random" else self.pretrained
        try:
            model = library.create_model(
                self.model,
                pretrained=pretrained,
                precision=self.precision,
                require_pretrained=self.pretrained != "random",
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise TeacherError(f"open_clip can't build {self.model!r} with pretrained={self.pretrained!r}: {error}") from error
        return model.eval()


class _OpenCLIPImage(ImageTeacher):
    def __init__(self, spec: OpenCLIP, model: Any) -> None:
        library = require("open_clip", extra="open_clip")
        config = library.get_model_preprocess_cfg(model)
        size = config["size"][0] if isinstance(config["size"], (tuple, list)) else config["size"]
        super().__init__(Preprocess(size=size, mean=config["mean"], std=config["std"], interpolation=config["interpolation"]))
        self.visual = model.visual  # the text tower is not kept: it is no part of a step
        self.dtype = library.get_input_dtype(spec.precision) or torch.float32
        with torch.inference_mode():
            self.embed_dim = int(self.encode(torch.zeros(1, 3, size, size)).shape[1])
        self.name = "clip_" + spec.model.rpartition(":")[2].rpartition("/")[2].lower().replace("-", "").replace(".", "")
        self.fingerprint = module_fingerprint(self.visual, size, config["mean"], config["std"], config["interpolation"])

    def encode(self, inputs: Tensor) -> Tensor:
        features = self.visual(inputs.to(self.dtype))
        return features[0] if isinstance(features, tuple) else features


class _OpenCLIPText(TextTeacher):
    def __init__(self, spec: OpenCLIP, model: Any) -> None:
        self._tokenizer = require("open_clip", extra="open_clip").get_tokenizer(spec.model)
        self._model = model
        # Freed before hashing: text-only identity, and half the memory.
        del model.visual
        self.fingerprint = module_fingerprint(model, "open_clip-text")

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(list(prompts))).float()
