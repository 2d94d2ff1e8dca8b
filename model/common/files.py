"""What a disk refuses, told with its place."""

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
    """Errors name the path: those of write and fsync name none, those of open do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """A file of the same kind beside it, which at the end takes its place, or is gone."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with writing(path):
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def describe_os_error(error: OSError) -> str:
    """In a line, for people."""
    where = error.filename2 or error.filename
    if error.errno in DISK_FULL_ERRNOS:
        return f"disk full{f' at {where}' if where else ''}; with more room the same command goes on"
    return f"{where}: {error.strerror}" if where else str(error)


_NO_PATH = {
    errno.ENAMETOOLONG: "is longer than a path may be",
    errno.ENOTDIR: "lies inside a file",
    errno.ELOOP: "is a link in a circle",
    errno.EACCES: "may not be looked at",
}


def path_problem(path: Path) -> str:
    """Why nothing can be there; empty: it can, or is. Raises OSError where the disk does not answer."""
    try:
        path.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno not in _NO_PATH:
            raise
        return _NO_PATH[error.errno]
    return ""


def folder_problem(path: Path) -> str:
    """The same of a folder."""
    return path_problem(path) or ("is a file" if path.exists() and not path.is_dir() else "")


def write_problem(folder: Path) -> str:
    """Why nothing can be made in it; empty: it can. The folder need not be there yet."""
    if why := folder_problem(folder):
        return why
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(nearest, os.W_OK | os.X_OK):  # asks the file system too: root may not write to a read-only one
        return ""
    is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
    return f"cannot be written ({'Read-only file system' if is_read_only else 'Permission denied'})"


def check_writable(folder: Path, option: str) -> None:
    """Before anything is computed for it. option: that names another one. Raises ConfigError."""
    if why := write_problem(folder):
        raise ConfigError(f"{folder}: {why}; name another with {option}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, fsync, rename, fsync the folder. Raises OSError and leaves no part behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # in /tmp nobody can be there first, with a link
    try:
        with writing(path), part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
