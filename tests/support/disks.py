"""Disks for a single test: small, full, read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """Mount a new disk at `folder`. Skips the test if mounting is not permitted."""
    folder.mkdir()
    options = f"size={int(megabytes * 256) * 4}k"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], check=False, capture_output=True
    ).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(folder: Path, *, but_for: int = 0) -> Iterator[None]:
    """Fill the disk. but_for: bytes that stay free, rounded up to pages."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        status = os.statvfs(folder)
        room = status.f_bavail * status.f_frsize - but_for
        if room > 0:
            os.posix_fallocate(file.fileno(), 0, room)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount the disk read-only: permissions do not keep root from writing."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
