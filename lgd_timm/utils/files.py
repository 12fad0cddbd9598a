"""Files that appear whole or not at all, and names for their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import WeightsError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name when the block ends well and is removed when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 is for secrets
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes the name when the block ends well, else it is removed.

    A folder that exists grows instead (a second split beside the first): files move in one by one, and names that
    begin with `_` (the indexes) last, so that a folder whose index is there is complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's 0700 is for secrets
        if not folder.exists():
            os.replace(temporary, folder)
            return
        for path in sorted(temporary.iterdir(), key=lambda p: (p.name.startswith("_"), p.name)):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, one key a line, so that it can be read and compared."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def changed_keys(there: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Names of the facts that are not what was read back from JSON (where tuples are lists)."""
    return [key for key, value in facts.items() if there.get(key) != json.loads(json.dumps(value))]


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that name JSON-able parts: equal parts, equal name, on any machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """safetensors says in an error of its own that a disk is full. Raises: WeightsError instead."""
    try:
        yield
    except SafetensorError as error:
        raise WeightsError(
            f"{path} can't be written ({error}). Make room and repeat the command; distill goes on with --resume."
        ) from error
