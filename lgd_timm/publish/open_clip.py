"""Write the two files with which open_clip loads a student's image tower beside its teacher's text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..data.vocabulary import Vocabulary
from ..errors import WeightsError, require
from ..hub.weights import OPEN_CLIP_FILES
from ..students.model import Student
from ..teachers import OpenCLIP, TeacherSpec, TextTeacher
from ..teachers.base import module_fingerprint
from ..teachers.text_bank import encode_vocabulary
from ..utils.cast import cast_weights
from ..utils.files import write_json
from .lgd_safetensors import Banks, safetensors

CONFIG, WEIGHTS = OPEN_CLIP_FILES

# Arguments of CustomTextCLIP beside its towers; it needs them to load the teacher's logit scale and bias.
_HEAD_SETTINGS = ("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")


def check_open_clip(student: Student, teacher: TeacherSpec) -> None:
    """Check that this pair can be written for open_clip.

    Raises:
        WeightsError: it can't; the message says why.
    """
    if not isinstance(teacher, OpenCLIP):
        raise WeightsError(
            f"The teacher is of kind {teacher.kind!r}, which has no open_clip text tower. Save without open_clip; "
            "the folder's own names and `lgd-timm distill --vocabulary` need none."
        )
    if not isinstance(student.projector, nn.Linear):
        raise WeightsError(
            f"student.projector is {student.projector_kind!r}, which open_clip can't express: its own MLP has another "
            "shape and activation. Save without open_clip, or distil with student.projector: linear."
        )
    if student.preprocess.interpolation not in ("bicubic", "bilinear"):
        raise WeightsError(
            f"The student's pictures are resized with {student.preprocess.interpolation!r}, open_clip knows bicubic "
            "and bilinear. Save without open_clip."
        )


def write_open_clip(
    folder: Path,
    *,
    student: Student,
    banks: Banks,
    teacher: TeacherSpec,
    architecture: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the two files, load them with open_clip and compare its embeddings with the student's and the text bank's.

    Args:
        folder: where the files go.
        student: its backbone and linear projector become the image tower.
        banks: the text bank that the student learned from.
        teacher: the teacher whose text tower goes along.
        architecture: timm's stock name of the backbone.
        dtype: type of the weights in the file.

    Raises:
        WeightsError: open_clip can't express the pair, the weights do not fit `dtype`, or `teacher` is not the one
            whose text bank the student learned from.
        MissingExtra: open_clip is not installed.
    """
    check_open_clip(student, teacher)
    assert isinstance(teacher, OpenCLIP)
    model = teacher.create()
    write_json(folder / CONFIG, _config(student, teacher, model, architecture=architecture))
    tensors = cast_weights({**_image_tower(student), **_text_tower(model, banks)}, dtype)
    (folder / WEIGHTS).write_bytes(safetensors(tensors, {"format": "pt"}))
    _compare(folder, student, banks, teacher)


def load_open_clip(folder: Path) -> Any:
    """Load a folder with open_clip. Raises: WeightsError when it can't; MissingExtra without open_clip."""
    library = require("open_clip", extra="open-clip")
    try:
        model, _ = library.create_model_from_pretrained(f"local-dir:{folder}")
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:500]
        raise WeightsError(
            f"{folder}: open_clip can't load {CONFIG} and {WEIGHTS} ({reason}). Save again without open_clip."
        ) from error
    return model.eval()


def _config(student: Student, teacher: OpenCLIP, model: Any, *, architecture: str) -> dict[str, Any]:
    library = require("open_clip", extra="open-clip")
    theirs = library.get_model_config(teacher.source())
    # output_tokens is CoCa's, and encode_text does not take it
    text = {key: value for key, value in theirs["text_cfg"].items() if key != "output_tokens"}
    preprocess = student.preprocess
    return {
        "model_cfg": {
            "embed_dim": theirs["embed_dim"],
            "custom_text": True,
            # asked of the model that taught, whatever its configuration or its weights' tag say
            "quick_gelu": any(isinstance(module, library.transformer.QuickGELU) for module in _text_modules(model)),
            "vision_cfg": {
                "timm_model_name": architecture,
                "timm_model_pretrained": False,
                "timm_pool": "",  # the network's own
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": preprocess.size,
            },
            "text_cfg": text,
            **{key: theirs[key] for key in _HEAD_SETTINGS if key in theirs},
        },
        "preprocess_cfg": {  # resized and cropped to the size, as timm does with crop_pct 1.0
            "mean": preprocess.mean.flatten().tolist(),
            "std": preprocess.std.flatten().tolist(),
            "interpolation": preprocess.interpolation,
            "resize_mode": "shortest",
        },
    }


def _text_modules(model: Any) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if not name.startswith("visual")]


def _image_tower(student: Student) -> dict[str, Tensor]:
    trunk = {f"visual.trunk.{key}": tensor for key, tensor in student.backbone.state_dict().items()}
    return {**trunk, **{f"visual.head.proj.{key}": tensor for key, tensor in student.projector.state_dict().items()}}


def _text_tower(model: Any, banks: Banks) -> dict[str, Tensor]:
    """The teacher's text tower and logit scale, under the keys of open_clip's CustomTextCLIP."""
    from open_clip.model import convert_to_custom_text_state_dict

    del model.visual  # as the fingerprint is over the rest
    found = module_fingerprint(model, "open_clip-text")
    if found != banks.text_fingerprint:
        raise WeightsError(
            f"The text tower is not the one that read the student's names (fingerprint {found}, "
            f"theirs {banks.text_fingerprint}). Give the teacher that taught, or save without open_clip."
        )
    state = convert_to_custom_text_state_dict(model.state_dict())
    return {key: tensor for key, tensor in state.items() if key.startswith(("text.", "logit_"))}


class _Loaded(TextTeacher):
    """The text tower of a model that open_clip loaded."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer, self.fingerprint = model, tokenizer, ""

    @torch.inference_mode()
    def encode(self, prompts: Any) -> Tensor:
        return self._model.encode_text(self._tokenizer(list(prompts))).float()


@torch.no_grad()
def _compare(folder: Path, student: Student, banks: Banks, teacher: OpenCLIP) -> None:
    """Check that open_clip's embeddings are the student's and, for the first names, the text bank's rows."""
    model, tokenizer = load_open_clip(folder), require("open_clip", extra="open-clip").get_tokenizer(teacher.source())
    size = student.preprocess.size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    training, device = student.training, next(student.parameters()).device
    wanted = normalize(student.eval()(pixels.to(device)).float(), dim=1).cpu()
    inputs = student.preprocess(pixels.to(device)).cpu()
    student.train(training)
    names = Vocabulary(banks.names, banks.templates).names[:4]
    rows = encode_vocabulary(_Loaded(model, tokenizer), Vocabulary(names, banks.templates))
    for what, found, expected in (
        ("image", model.encode_image(inputs, normalize=True), wanted),
        ("text", rows, banks.text[: len(names)].cpu()),
    ):
        if (found - expected).abs().max() > 1e-2:
            raise WeightsError(
                f"{folder}: open_clip gives other {what} embeddings than "
                f"{'the student' if what == 'image' else 'the text bank has'} "
                f"(difference {(found - expected).abs().max():.3g}). Save without open_clip."
            )
