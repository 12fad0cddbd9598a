"""Archives that the scripts beside this file read."""

from __future__ import annotations

import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lgd_timm.errors import ShardError


@contextmanager
def extracted(source: Path, folder: str) -> Iterator[Path]:
    """Extract an archive for a block.

    Args:
        source: a zip or tar with the folder, a zip with `folder`.tar.gz in it, or the extracted folder itself.
        folder: name of the data set's folder.

    Yields:
        The folder.

    Raises:
        ShardError: the archive is damaged, or holds no such folder.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _extract(source, scratch)
            for inner in Path(scratch).rglob(f"{folder}.tar.gz"):
                _extract(inner, scratch)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise ShardError(f"{source} is no whole zip or tar ({reason}). Download the archive again.") from error
        found = Path(scratch, folder)
        if not found.is_dir():
            raise ShardError(f"{source} holds no folder {folder}. Give the data set's archive.")
        yield found


def _extract(archive: Path, out: str) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as members:
            members.extractall(out)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(out, filter="data")
