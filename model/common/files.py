"""Files: atomic replacement, and errors that name the path."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the path to an OSError that has none. Those of write and fsync have none, those of open do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_replace(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield an empty file beside `path`. It replaces `path` if the block succeeds, and is deleted if the block fails.

    Args:
        durable: fsync the file before the replacement and its folder after it, so that a power cut loses neither.
    """
    # The name is random, and the file is created exclusively: in /tmp another user could have put a symlink there.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    part.touch(exist_ok=False)
    try:
        with writing(path):
            yield part
            if durable:
                _fsync(part)
            part.replace(path)
            if durable:
                _fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file durably by new content, or leave it as it was. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path, durable=True) as part:
        part.write_bytes(content)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: OSError) -> str:
    """The error in one line, with its path."""
    where = error.filename2 or error.filename
    if error.errno in DISK_FULL_ERRNOS:
        return f"disk full{f' at {where}' if where else ''}; free some space, then run the same command to continue"
    return f"{where}: {error.strerror}" if where else str(error)


_PATH_PROBLEMS = {
    errno.ENOENT: "",
    errno.ENAMETOOLONG: "path too long",
    errno.ENOTDIR: "lies inside a file",
    errno.ELOOP: "symlink loop",
    errno.EACCES: "permission denied",
}


def path_problem(path: Path) -> str:
    """Why nothing can exist at this path; empty if something can. Raises OSError if the disk does not answer."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _PATH_PROBLEMS:
            raise
        return _PATH_PROBLEMS[error.errno]
    return ""


def folder_problem(path: Path) -> str:
    """Why no folder can exist at this path; empty if one can. Raises OSError if the disk does not answer."""
    return path_problem(path) or ("is a file" if path.exists() and not path.is_dir() else "")


def write_problem(folder: Path) -> str:
    """Why nothing can be created in this folder, which need not exist yet; empty if something can. Raises OSError."""
    if problem := folder_problem(folder):
        return problem
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(nearest, os.W_OK | os.X_OK):  # checks the file system too: root cannot write to a read-only one
        return ""
    is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
    return f"cannot be written ({'Read-only file system' if is_read_only else 'Permission denied'})"


def check_writable(folder: Path, option: str) -> None:
    """Raise ConfigError if nothing can be created in a folder. option: the one that chooses another folder."""
    if problem := write_problem(folder):
        raise ConfigError(f"{folder}: {problem}; name another with {option}")
