"""What a teacher is: an image tower that states its input, and a text tower in the same space."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess


class ImageTeacher(nn.Module):
    """A frozen image tower: pixels in, embeddings [B, D] before L2 normalisation out.

    Always in eval mode, whatever its parent is told, and always in inference mode.
    """

    name: str
    embed_dim: int
    fingerprint: str  # 16 hexadecimal digits over weights, preprocessing and parameters

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def encode(self, inputs: Tensor) -> Tensor:
        """[B, 3, S, S] at the tower's own size and statistics -> [B, D]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> ImageTeacher:
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], or float in 0..1 -> [B, D] float32."""
        return self.encode(self.preprocess(images)).float()

    def compile_encoder(self) -> None:
        """Compile the tower with its weights as constants: on a CPU 1.3 to 2 times faster for depthwise networks, a tenth for a ResNet."""
        self.encode = torch.compile(self.encode, options={"freezing": True})  # type: ignore[method-assign]

    def freeze(self) -> ImageTeacher:
        self.requires_grad_(False)
        return self.train(False)


class TextTeacher:
    """A text tower: prompts in, embeddings out, in the image tower's space."""

    fingerprint: str

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> float32 [N, D], before L2 normalisation."""
        raise NotImplementedError


def module_fingerprint(module: nn.Module, *facts: Any) -> str:
    """16 hexadecimal digits over a module's weights and some facts about it."""
    digest = hashlib.sha256(repr(facts).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
