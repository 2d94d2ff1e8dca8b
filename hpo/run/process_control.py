"""Stopping a search that another process runs, and deleting a search."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

from hpo.policy.search_config import SEARCH_FILE
from hpo.store.file_names import LOCK_FILE
from hpo.store.lease import acquire_lease
from hpo.store.lock import acquire_lock, has_open, lease_owner, lock_owner
from hpo.store.object_storage import Storage
from hpo.store.record import Record
from hpo.store.search_file import not_found
from hpo.views.formatting import command_to_continue
from model.common.errors import ConfigError, MachineError


def stop_search(runs: Path, name: str, timeout_seconds: float = 60.0, storage: Storage | None = None) -> str:
    """Stop a search that runs on this machine, so that it can be continued; return a sentence to print.

    Raises:
        ConfigError: There is no such search, or it runs on another machine or as another user.
        MachineError: It did not stop in time.
    """
    if not Record.exists(runs, name) and not (storage and storage.exists(f"{name}/{SEARCH_FILE}")):
        raise not_found(runs, name)
    owner = lock_owner(runs / name)
    if storage and (owner is None or not owner.alive):
        owner = lease_owner(storage.subdirectory(name))
    if owner is None or owner.alive is False:
        return f"{name} is not running"
    if owner.alive is None:
        raise ConfigError(f"{name}: was started by {owner}, and this is {socket.gethostname()}; stop it there")
    try:
        os.kill(owner.pid, signal.SIGTERM)
    except ProcessLookupError:
        return f"{name} is not running"
    except PermissionError:
        raise ConfigError(f"{name}: permission denied; {owner} belongs to another user") from None
    end = time.monotonic() + timeout_seconds
    while has_open(owner.pid, runs / name / LOCK_FILE):
        if time.monotonic() > end:
            raise MachineError(
                f"{name}: {owner} did not stop within {timeout_seconds:.0f} s; run `hpo stop {name}` again to force it"
            )
        time.sleep(0.1)
    command = command_to_continue(name, runs, storage.address if storage else None)
    return f"{name} is stopped; the search can be continued: {command}"


def delete_search(runs: Path, name: str, storage: Storage | None = None) -> None:
    """Delete a search with all its results, in the storage too.

    Raises:
        ConfigError: The search is running, or its folder is a symbolic link.
        OSError, StorageError: It cannot be deleted.
    """
    folder = runs / name
    if folder.is_symlink():
        raise ConfigError(f"{folder}: is a symbolic link to {folder.resolve()}; delete that by hand")
    if storage:
        acquire_lease(storage.subdirectory(name))
        storage.subdirectory(name).delete_all()
        if not folder.exists():
            return
    with acquire_lock(folder, name):
        trash = folder.rename(runs / f".{name}~deleted-{os.getpid()}")  # half deleted, it would look damaged
    shutil.rmtree(trash)
