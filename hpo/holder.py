"""Who runs a search, read off its lock without taking it; ending that, and deleting a search."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from hpo.config import SEARCH_FILE
from hpo.lease import newest, take
from hpo.record import LOCK_FILE, Record, locked, missing
from hpo.stopping import command_to_continue
from hpo.storage import Storage
from model.config import ConfigError, MachineError

_STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that took the lock last."""

    pid: int
    host: str
    alive: bool | None  # whether it has the lock still; None: it is on another machine, and cannot be seen from here

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def holder(folder: Path) -> Holder | None:
    """Of the search in a folder; None: it never ran. To try the lock would turn away a driver that starts just then."""
    path = folder / LOCK_FILE
    try:
        found = re.fullmatch(r"process ([0-9]{1,10}) on (\S+)", path.read_text(errors="replace").strip())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not found:
        return None
    pid, host = int(found[1]), found[2]
    return Holder(pid=pid, host=host, alive=_has_open(pid, path) if host == socket.gethostname() else None)


def holder_in(storage: Storage) -> Holder | None:
    """Of the search in a storage; None: it never ran."""
    claim = newest(storage)
    return Holder(pid=claim.pid, host=claim.host, alive=False if claim.released else None) if claim else None


def _has_open(pid: int, path: Path) -> bool:
    """A driver keeps its lock open to its end; another process that got its number later does not."""
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
    except PermissionError:  # somebody else's: to be taken for the driver, rather than not
        return True
    return False


def stop(runs: Path, name: str, patience: float = _STOP_SECONDS, storage: Storage | None = None) -> str:
    """End a search of this machine so that it can be continued; gives what there is to say. Raises ConfigError where it
    cannot be ended from here, MachineError where it does not end."""
    if not Record.exists(runs, name) and not (storage and storage.exists(f"{name}/{SEARCH_FILE}")):
        raise missing(runs, name)
    now = holder(runs / name)
    if storage and (now is None or not now.alive):
        now = holder_in(storage.inside(name))
    if now is None or now.alive is False:
        return f"{name} is not running"
    if now.alive is None:
        raise ConfigError(f"{name}: was started by {now}, and this is {socket.gethostname()}; stop it there")
    try:
        os.kill(now.pid, signal.SIGTERM)
    except ProcessLookupError:
        return f"{name} is not running"
    except PermissionError:
        raise ConfigError(f"{name}: {now} is another user's") from None
    end = time.monotonic() + patience
    while _has_open(now.pid, runs / name / LOCK_FILE):
        if time.monotonic() > end:
            raise MachineError(f"{name}: {now} has not ended within {patience:.0f} s; again, and it does not wait")
        time.sleep(0.1)
    again = command_to_continue(name, runs, storage.address if storage else None)
    return f"{name} is stopped; the search can be continued: {again}"


def remove(runs: Path, name: str, storage: Storage | None = None) -> None:
    """Delete a search with all that it found. Raises ConfigError while it is being run; OSError, StorageError."""
    folder = runs / name
    if folder.is_symlink():
        raise ConfigError(f"{folder}: is a link to {folder.resolve()}; delete that by hand")
    if storage:
        take(storage.inside(name))
        storage.inside(name).remove()
        if not folder.exists():
            return
    with locked(folder, name):
        gone = folder.rename(runs / f".{name}~deleted-{os.getpid()}")  # half deleted, it would look damaged
    shutil.rmtree(gone)
