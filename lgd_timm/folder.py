"""What a published folder must be: which files, of which content, fit for plain timm.

verify(folder, files)    every file has the size and the hash that was published
check_folder(folder)     the folder can be published: complete, stock, loadable, with a card
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import timm
import yaml
from safetensors import SafetensorError, safe_open

from .errors import WeightsError
from .files import sha256_of

REQUIRED_FILES = ("config.json", "model.safetensors", "README.md")
PUBLISHED_FILES = (*REQUIRED_FILES, "lgd.safetensors", "recipe.yaml", "metrics.json")

StrPath = str | os.PathLike[str]


class FileFacts(TypedDict, total=False):
    """A file's content: `size` in bytes and one hash, hexadecimal."""

    size: int
    sha256: str
    git_sha1: str  # all that the Hub tells of small files: git's name for the blob


def verify(folder: StrPath, files: Mapping[str, FileFacts]) -> None:
    """Compare size and hash of each file in `folder` with `files`; WeightsError names all that differ."""
    if wrong := wrong_files(folder, files):
        raise WeightsError(
            f"{folder} is not what was published: {'; '.join(wrong.values())}. "
            "Delete the folder and pull it again (`lgd-timm pull`), or restore it from the checkout."
        )


def wrong_files(folder: StrPath, files: Mapping[str, FileFacts]) -> dict[str, str]:
    """The files that differ from their facts, and how, in words."""
    wrong = {}
    for name, facts in files.items():
        path = Path(folder) / name
        kind, hashed = ("git sha1", _git_sha1) if "git_sha1" in facts else ("sha256", sha256_of)
        found = f"{path.stat().st_size} bytes with {kind} {hashed(path)}" if path.is_file() else "no such file"
        expected = f"{facts['size']} bytes with {kind} {facts.get('git_sha1') or facts['sha256']}"
        if found != expected:
            wrong[name] = f"{name} should have {expected}, but there is {found}"
    return wrong


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()  # only small files are in git itself; the others have a sha256
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def check_folder(folder: StrPath) -> dict[str, FileFacts]:
    """Check that a folder can be published: complete, stock, loadable, with a card. Returns its files' facts.

    WeightsError for missing or unknown files, an `architecture` that is not timm's own, a safetensors file that
    does not open or does not fit the architecture strictly, or a README.md without front matter.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if missing := [name for name in REQUIRED_FILES if name not in names]:
        raise WeightsError(f"{folder} is no published folder: {', '.join(missing)} missing. Make it with lgd_timm.")
    if unknown := sorted(names.difference(PUBLISHED_FILES)):
        raise WeightsError(f"{folder} holds {', '.join(unknown)}; published are only {', '.join(PUBLISHED_FILES)}. Move them away.")
    shapes = {name: _shapes(folder / name) for name in sorted(names) if name.endswith(".safetensors")}
    _check_model(folder, shapes["model.safetensors"])
    _check_card(folder / "README.md")
    paths = [folder / name for name in PUBLISHED_FILES if name in names]
    return {path.name: FileFacts(size=path.stat().st_size, sha256=sha256_of(path)) for path in paths}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a safetensors file; the tensors themselves are not read."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} does not open as safetensors ({error}). Write it again.") from error


def _check_model(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The weights must load strictly into the stock architecture that config.json names, as plain timm builds it."""
    path = folder / "config.json"
    try:
        architecture = str(json.loads(path.read_text(encoding="utf-8"))["architecture"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is no timm config ({type(error).__name__}: {error}). Write it again.") from error
    if architecture.startswith("lgd_") or not timm.is_model(architecture):
        raise WeightsError(
            f"{path} names the architecture {architecture!r}, which plain timm does not have. "
            "Name the stock one, such as 'resnet18', so that the weights load where lgd_timm is not installed."
        )
    stock = timm.create_model(f"local-dir:{folder}", pretrained=False).state_dict()
    wanted = {key: tuple(tensor.shape) for key, tensor in stock.items()}
    keys = sorted(key for key in wanted.keys() | shapes.keys() if wanted.get(key) != shapes.get(key))
    if keys:
        examples = [f"{k} is {shapes.get(k, 'missing')} and should be {wanted.get(k, 'absent')}" for k in keys[:3]]
        raise WeightsError(
            f"{folder}: model.safetensors does not fit {architecture} strictly, {len(keys)} tensors differ: "
            f"{'; '.join(examples)}. Save state_dict and config.json of one model."
        )


def _check_card(path: Path) -> None:
    """The model card must begin with front matter that YAML reads as a mapping: the Hub's page is made from it."""
    before, *parts = path.read_text(encoding="utf-8").split("---\n", maxsplit=2)
    try:
        front = yaml.safe_load(parts[0]) if len(parts) == 2 and not before else None
    except yaml.YAMLError as error:
        raise WeightsError(f"{path}: its front matter is not YAML ({error}). Correct it.") from error
    if not isinstance(front, dict):
        raise WeightsError(f"{path} has no front matter. Begin it with a line ---, `key: value` lines, a line ---.")
