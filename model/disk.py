"""What a disk refuses, told with its place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.config import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT)


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
def replacing(path: Path) -> Iterator[Path]:
    """A file of the same kind beside it, which at the end takes its place, or is gone."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with writing(path):
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def in_words(error: OSError) -> str:
    """In a line, for people."""
    where = error.filename2 or error.filename
    if error.errno in FULL:
        return f"disk full{f' at {where}' if where else ''}; with more room the same command goes on"
    return f"{where}: {error.strerror}" if where else str(error)


def unwritable(folder: Path) -> str:
    """Why nothing can be made there; empty: it can. The folder need not be there yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    if os.access(nearest, os.W_OK | os.X_OK):  # asks the file system too: root may not write to a read-only one
        return ""
    return "Read-only file system" if os.statvfs(nearest).f_flag & os.ST_RDONLY else "Permission denied"


def check_writable(folder: Path, option: str) -> None:
    """Before anything is computed for it. option: that names another one. Raises ConfigError."""
    if why := unwritable(folder):
        raise ConfigError(f"{folder}: cannot be written ({why}); name another with {option}")
