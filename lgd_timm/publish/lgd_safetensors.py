"""Read and write `lgd.safetensors` of a published folder: projector, text bank, visual bank, names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import WeightsError
from ..students.model import Student
from ..utils.cast import cast_weights
from ..utils.typed_json import parse_json

FORMAT = "lgd_timm 1"
BANKS = ("text_bank", "visual_bank", "seen")


@dataclass(frozen=True)
class Banks:
    """Class names and their embeddings in the teacher's space."""

    names: tuple[str, ...]
    templates: tuple[str, ...]  # sentences that the text tower read a name in
    text: Tensor  # float32 [C, D]: a name's mean embedding, of length 1
    visual: (
        Tensor | None
    )  # float32 [C, D]: moving average of the teacher's image embeddings; None: of another objective
    seen: Tensor | None  # bool [C]: the names that have a row in `visual`
    text_fingerprint: str  # of the text tower


@dataclass(frozen=True)
class LGDFile:
    """Content of the file: the projector's kind and state, and the banks."""

    projector_kind: str
    projector: dict[str, Tensor]
    banks: Banks

    @property
    def misfit(self) -> str | None:
        """Which bank does not fit names and projector; None where all do."""
        rows, banks = len(self.banks.names), self.banks
        for name, bank, shape in (
            ("text_bank", banks.text, (rows, self.embed_dim)),
            ("visual_bank", banks.visual, (rows, self.embed_dim)),
            ("seen", banks.seen, (rows,)),
        ):
            if bank is not None and tuple(bank.shape) != shape:
                return f"{name} is {tuple(bank.shape)}, where names and projector make it {shape}"
        return None

    @property
    def features(self) -> int:
        """Number of features F that the projector takes."""
        return next(tensor.shape[1] for tensor in self.projector.values() if tensor.ndim == 2)

    @property
    def embed_dim(self) -> int:
        """Dimension D of the embeddings that the projector gives."""
        return [tensor.shape[0] for tensor in self.projector.values() if tensor.ndim == 2][-1]


def write_lgd(path: Path, *, student: Student, banks: Banks, dtype: torch.dtype) -> None:
    """Write the file; equal content gives equal bytes. Raises: WeightsError for weights that do not fit `dtype`."""
    state = {f"projector.{key}": tensor for key, tensor in student.projector.state_dict().items()}
    if banks.visual is not None and banks.seen is not None:
        state |= {"visual_bank": banks.visual, "seen": banks.seen}
    # the names' own bank stays exact: it is small
    tensors = {**cast_weights(state, dtype), **cast_weights({"text_bank": banks.text}, torch.float32)}
    metadata = {
        "format": "pt",
        "lgd_format": FORMAT,
        "projector": student.projector_kind,
        "names": json.dumps(banks.names, ensure_ascii=False),
        "templates": json.dumps(banks.templates, ensure_ascii=False),
        "text_fingerprint": banks.text_fingerprint,
    }
    path.write_bytes(safetensors(tensors, metadata))


def read_lgd(path: Path) -> LGDFile:
    """Read the file.

    Raises:
        WeightsError: it is damaged, or was written by a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise WeightsError(f"{path} can't be read ({error}). Pull or save it again.") from error
    if facts.get("lgd_format") != FORMAT:
        raise WeightsError(
            f"{path} has format {facts.get('lgd_format')!r}, this version reads {FORMAT!r}. Upgrade lgd_timm."
        )
    try:
        banks = Banks(
            names=_texts(facts["names"]),
            templates=_texts(facts["templates"]),
            text=tensors["text_bank"].float(),
            visual=tensors["visual_bank"].float() if "visual_bank" in tensors else None,
            seen=tensors.get("seen"),
            text_fingerprint=facts["text_fingerprint"],
        )
        kind = facts["projector"]
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} lacks what its format has ({error!r}). Pull or save it again.") from error
    projector = {
        key.removeprefix("projector."): tensor
        for key, tensor in sorted(tensors.items())
        if key.startswith("projector.")
    }
    if not any(tensor.ndim == 2 for tensor in projector.values()):
        raise WeightsError(f"{path} holds no projector. Pull or save it again.")
    if unknown := sorted(key for key in tensors if key not in BANKS and not key.startswith("projector.")):
        raise WeightsError(f"{path} holds {ascii(unknown[0])[:100]}, which its format has not. Pull or save it again.")
    if (banks.visual is None) != (banks.seen is None):
        raise WeightsError(f"{path} holds one of visual_bank and seen, and lacks the other. Pull or save it again.")
    return LGDFile(kind, projector, banks)


def _texts(text: str) -> tuple[str, ...]:
    """Read a JSON list of texts. Raises: ValueError."""
    return tuple(parse_json(text, list[str]))


def safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialize tensors with sorted metadata, as the library's order is random; equal content gives equal bytes."""
    data = to_bytes(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8:end]), "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(end - 8)
    assert len(text) == end - 8, "the header was written in another way than this one"
    return data[:8] + text + data[end:]
