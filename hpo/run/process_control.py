"""ShutdownHandler a search that another process runs, and deleting a search."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

from hpo.policy.search_config import SEARCH_FILE
from hpo.store.layout import LOCK_FILE
from hpo.store.lease import acquire_lease
from hpo.store.lock import acquire_lock, has_open, lease_owner, lock_owner
from hpo.store.object_storage import Storage
from hpo.store.record import Record, not_found
from hpo.views.formatting import command_to_continue
from model.common.errors import ConfigError, MachineError

_STOP_SECONDS = 60.0


def stop_search(runs: Path, name: str, patience: float = _STOP_SECONDS, storage: Storage | None = None) -> str:
    """End a search of this machine so that it can be continued; gives what there is to say. Raises ConfigError where it
    cannot be ended from here, MachineError where it does not end."""
    if not Record.exists(runs, name) and not (storage and storage.exists(f"{name}/{SEARCH_FILE}")):
        raise not_found(runs, name)
    now = lock_owner(runs / name)
    if storage and (now is None or not now.alive):
        now = lease_owner(storage.subdirectory(name))
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
    while has_open(now.pid, runs / name / LOCK_FILE):
        if time.monotonic() > end:
            raise MachineError(f"{name}: {now} has not ended within {patience:.0f} s; again, and it does not wait")
        time.sleep(0.1)
    again = command_to_continue(name, runs, storage.address if storage else None)
    return f"{name} is stopped; the search can be continued: {again}"


def delete_search(runs: Path, name: str, storage: Storage | None = None) -> None:
    """Delete a search with all that it found. Raises ConfigError while it is being run; OSError, StorageError."""
    folder = runs / name
    if folder.is_symlink():
        raise ConfigError(f"{folder}: is a link to {folder.resolve()}; delete that by hand")
    if storage:
        acquire_lease(storage.subdirectory(name))
        storage.subdirectory(name).delete_all()
        if not folder.exists():
            return
    with acquire_lock(folder, name):
        gone = folder.rename(runs / f".{name}~deleted-{os.getpid()}")  # half deleted, it would look damaged
    shutil.rmtree(gone)
