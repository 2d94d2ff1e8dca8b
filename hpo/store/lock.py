"""The lock of a search on this machine, and its owner."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpo.store.file_names import LOCK_FILE
from hpo.store.lease import newest_claim
from hpo.store.object_storage import Storage
from model.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LockOwner:
    """The process that took the lock last. alive: whether it still has it; None if it runs on another machine."""

    pid: int
    host: str
    alive: bool | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def lock_owner(folder: Path) -> LockOwner | None:
    """The owner of the search in a folder; None if it never ran. Takes no lock: that could turn a driver away."""
    path = folder / LOCK_FILE
    try:
        match = re.fullmatch(r"process ([0-9]{1,10}) on (\S+)", path.read_text(errors="replace").strip())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not match:
        return None
    pid, host = int(match[1]), match[2]
    return LockOwner(pid=pid, host=host, alive=has_open(pid, path) if host == socket.gethostname() else None)


def lease_owner(storage: Storage) -> LockOwner | None:
    """The owner of the search in a storage; None if it never ran."""
    claim = newest_claim(storage)
    return LockOwner(pid=claim.pid, host=claim.host, alive=False if claim.released else None) if claim else None


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open, as a driver has its lock; a later process with its number has not."""
    lock = path.stat()
    try:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.path.samestat(file.stat(), lock):
                    return True
            except FileNotFoundError:  # closed meanwhile, or a pipe
                continue
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's: it may be the driver
        return True
    return False


def acquire_lock(folder: Path, name: str) -> IO[str]:
    """Take a search's lock, until the file is closed. Raises ConfigError with the process that has it."""
    lock = (folder / LOCK_FILE).open("a+", errors="replace")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise ConfigError(f"{name}: is being run by {lock.read().strip() or 'another process'}") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock
