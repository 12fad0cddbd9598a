"""Write files and folders that appear complete or not at all, and hash their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from .. import settings
from ..errors import LGDError, WeightsError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    Args:
        path: the file; one that exists is replaced. Its folder is created.

    Yields:
        A temporary path beside it, for the block to write. It is renamed to `path` when the block ends, and removed if
        the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    # as any new file, by the umask: tempfile's 0600 is for secrets
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a folder atomically, or add files to one that exists, such as a second split.

    Args:
        folder: the folder. Its parent is created.

    Yields:
        A temporary folder beside it, for the block to fill. When the block ends, it is renamed to `folder`. If `folder`
        exists, its files are moved there instead, those whose names begin with `_` (the indexes) last, so that a folder
        with an index is complete. If the block raises, it is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(folder.parent, prefix=f".{folder.name}.")
    try:
        yield temporary
        if folder.exists():
            _move_files(temporary, folder)
        else:
            _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    """Rename a folder; where the disk can't, as mounted object stores, move its files one by one."""
    try:
        os.replace(temporary, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or folder.exists():
            raise
        folder.mkdir()
        try:
            _move_files(temporary, folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _move_files(source: Path, target: Path) -> None:
    """Move files into a folder that exists, and into its folders; those whose names begin with `_` come last."""
    for path in sorted(source.iterdir(), key=lambda p: (p.name.startswith("_"), p.name)):
        if path.is_dir() and not path.is_symlink():
            (target / path.name).mkdir(exist_ok=True)
            _move_files(path, target / path.name)
        else:
            os.replace(path, target / path.name)


def new_folder(parent: Path, *, prefix: str) -> Path:
    """Make a folder of a new name, with the rights that the umask leaves: tempfile's 0700 is for secrets."""
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    folder.mkdir()
    return folder


def check_renames(folder: Path) -> None:
    """Check that a disk can rename folders, which checkpoints and published folders need, before work is done for them.

    Raises:
        LGDError: it can't, as mounted object stores.
    """
    probe = new_folder(folder, prefix=".probe-")
    renamed = probe.with_name(f"{probe.name}.renamed")
    try:
        (probe / "file").write_bytes(b"")
        os.replace(probe, renamed)
    except OSError as error:
        raise LGDError(
            f"{folder} lies on a disk that can't rename folders ({error.strerror or error}), so no checkpoint could be "
            "saved. Use a local or shared disk and copy what is published, or a mount that renames (gcsfuse "
            "--rename-dir-limit, SkyPilot's MOUNT_CACHED)."
        ) from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        shutil.rmtree(renamed, ignore_errors=True)


_held: dict[Path, BinaryIO] = {}  # lock files of folders that this process holds, until it ends


def hold_folder(folder: Path) -> None:
    """Keep other processes from holding a folder, until this process ends however it ends. Forked ones do not hold it.

    Args:
        folder: the folder, which need not exist. The lock is a file in `settings.cache_folder()`, and so it holds among
            the processes of one machine. A process may hold a folder twice.

    Raises:
        WeightsError: another process holds it; the message names it.
    """
    path = settings.cache_folder() / "locks" / f"{fingerprint(str(folder.resolve()))}.lock"
    if fcntl is None or path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError:  # a home that can't be written costs this check, and nothing else
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = ascii(file.read(200).decode("utf-8", "replace").strip())[1:-1] or "another process"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise WeightsError(
                f"{folder} is in use: {holder} trains there. Wait for it, end it, or choose another folder."
            ) from None
        return  # a file system without locks
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
    _held[path] = file


@contextmanager
def sole_writer(file: Path, *, written: Sequence[str]) -> Iterator[None]:
    """Lock a file of a folder against other processes that write there, and remove what a killed one was writing.

    The lock is the system's and ends with the process. Where there are none (Windows, some network disks), nothing is
    removed.

    Args:
        file: that stands for the folder; it exists.
        written: names of the files that are written into the folder by `atomic_file`.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    with file.open("r+b") as held:
        try:
            if fcntl is None:
                raise OSError("no locks")
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(f"{file} is locked by another process") from error
        except OSError:
            pass
        else:
            ours = tuple(f".{name}." for name in written)  # as `atomic_file` names them
            for path in [path for path in file.parent.iterdir() if path.name.startswith(ours)]:
                path.unlink(missing_ok=True)
        yield


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically and with one key a line, which diffs well."""
    with atomic_file(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        # keys of foreign tars may be no UTF-8; a backslash and the code is JSON's own way to write them
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return sha256_of_open(file)


def sha256_of_open(file: BinaryIO) -> str:
    """Return the sha256 of what is left to read of an open file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def changed_keys(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the keys of `current` whose values differ from those that were stored as JSON (where tuples are lists)."""
    return [key for key, value in current.items() if stored.get(key) != json.loads(json.dumps(value))]


def fingerprint(*parts: Any) -> str:
    """Hash parts that JSON can express to 16 hexadecimal digits, equal on every machine for equal parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the SafetensorError that safetensors raises when it can't write `path` into a WeightsError.

    Raises:
        WeightsError: says to make room and repeat the command.
    """
    try:
        yield
    except SafetensorError as error:
        raise WeightsError(
            f"{path} can't be written ({error}). Make room and repeat the command; distill goes on with --resume."
        ) from error
