"""Searches in a storage: finding and opening them, and replicating a driver's folder into it."""

from __future__ import annotations

import difflib
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy.search_config import SEARCH_FILE, SearchConfig, check_name, is_name
from hpo.store.file_names import STATUS_FILE
from hpo.store.lease import Lease, acquire_lease
from hpo.store.lock import acquire_lock
from hpo.store.object_storage import READ_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Storage, StorageError
from hpo.store.reconciliation import (
    download,
    list_studies,
    local_claim,
    reconcile,
    snapshot_study,
    study_name,
)
from hpo.store.record import Record
from hpo.store.search_file import list_names, not_found, not_found_in, parse_search_file
from model.common.errors import ConfigError
from model.denoise import MANIFEST

UPLOAD_SECONDS = 2.0  # between two uploads of the study, except those that a new trial waits for
_CLOSE_SECONDS = 60.0  # for the last upload
_WORKER_EXTRA_SECONDS = 60.0  # a trial waits longer than the driver, which is to give up first
_LIST_ABOVE = 20  # files to be deleted, from which one listing is faster than deleting those that do not exist


# --- for all commands -----------------------------------------------------------------------------------------------


def open_storage(address: str | None, runs: Path, *, interactive: bool = False) -> Storage | None:
    """The storage at an address, after a check that it is reachable; None without an address. interactive: a user waits
    for the answer, so that the timeout is short. Write access is then not checked. Raises ConfigError, StorageError."""
    if address is None:
        return None
    storage = Storage(address, timeout_seconds=READ_TIMEOUT_SECONDS if interactive else TIMEOUT_SECONDS)
    if not storage.is_s3 and Path(storage.address).resolve() == runs.resolve():
        raise ConfigError(f"storage={address}: is --runs itself; --storage and --runs must be different folders")
    storage.check(writes=not interactive)
    return storage


def find_search(runs: Path, name: str, storage: Storage | None) -> tuple[dict[str, Any], SearchConfig] | None:
    """The content of a search's search.json and its configuration, as the next driver will find them; None if the
    search does not exist. Raises RecordError, StorageError."""
    stored = f"{check_name(name)}/{SEARCH_FILE}"
    if storage and storage.exists(stored):
        return parse_search_file(storage.get(stored), f"{storage}/{stored}")
    path = runs / name / SEARCH_FILE
    return parse_search_file(path.read_bytes(), path) if path.exists() else None


@contextmanager
def open_read_only(
    runs: Path, name: str, storage: Storage | None, *, read_only: bool = False, waits: bool = False
) -> Iterator[Record]:
    """The record, for everybody but its driver. If there is a storage, the record is read from it alone, into a
    temporary folder. For read_only and waits see Record. Raises ConfigError, RecordError, StorageError."""
    check_name(name)
    if storage is None:
        local_claim(runs / name, None)
        yield Record(runs, name, read_only=read_only, waits=waits)
        return
    if not storage.exists(f"{name}/{SEARCH_FILE}"):
        raise not_found_in(storage.address, name, search_names(storage))
    with tempfile.TemporaryDirectory(prefix="pix2pix-search-") as folder:
        sync = partial(download, remote := storage.subdirectory(name), Path(folder) / name)
        sync()
        yield Record(
            Path(folder),
            name,
            read_only=read_only,
            waits=waits,
            storage=remote,
            sync=sync,
            user_folder=runs / name,
        )


def search_names(storage: Storage) -> list[str]:
    """The searches in a storage."""
    return [name for name in storage.folders() if is_name(name) and storage.exists(f"{name}/{SEARCH_FILE}")]


def similar_name(name: str, runs: Path, storage: Storage | None) -> str | None:
    """Another search that was perhaps meant: two letters of five may be exchanged, but exp1 is not similar to exp2."""
    others = {*list_names(runs), *(search_names(storage) if storage else ())} - {name}
    return next(iter(difflib.get_close_matches(name, sorted(others), n=1, cutoff=0.8)), None)


# --- for drivers ----------------------------------------------------------------------------------------------------


@contextmanager
def acquire(
    runs: Path, name: str, storage: Storage | None, on_lost: Callable[[StorageError], None]
) -> Iterator[StorageReplicator]:
    """Take the lock of an existing search and, with a storage, its lease; release them at the end of the `with`.

    The folder and the storage are reconciled (hpo/store/reconciliation.py). The replicator is not started. on_lost: see
    Lease.start_heartbeat. Raises ConfigError, RecordError, StorageError.
    """
    folder = runs / check_name(name)
    claim = local_claim(folder, storage.address if storage else None)
    if not Record.exists(runs, name) and not (storage and storage.exists(f"{name}/{SEARCH_FILE}")):
        raise not_found_in(storage.address, name, search_names(storage)) if storage else not_found(runs, name)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(acquire_lock(folder, name))
        if storage is None:
            yield StorageReplicator(Record(runs, name, waits=True), None, on_lost)
            return
        remote = storage.subdirectory(name)
        remote.create()
        lease = acquire_lease(remote, claim)
        stack.callback(lease.release)
        lease.start_heartbeat(on_lost)
        guarded = remote.subdirectory("", lease.check)
        reconcile(folder, guarded, claim, lease)
        yield StorageReplicator(Record(runs, name, waits=True, storage=guarded), lease, on_lost)


class StorageReplicator:
    """Uploads the study: each new trial before a worker gets it, and everything else within seconds, in a thread.

    A listener of the search controller, and the first one. Does nothing without a storage. Methods raise StorageError;
    the thread passes it to on_lost.
    """

    def __init__(self, record: Record, lease: Lease | None, on_lost: Callable[[StorageError], None]) -> None:
        self.record, self._lease, self._on_lost = record, lease, on_lost
        self._uploaded = {trial.number for trial in record.trials()}
        self._to_delete: list[Path] = []
        self._folders_to_delete: list[Path] = []
        self._dirty, self._closing, self._uploading = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="replicator", daemon=True)
        self._status = b""

    def start(self) -> None:
        """Upload the record, delete the studies of earlier drivers, and start the thread that keeps it up to date."""
        if self._storage:
            before = list_studies(self._storage)
            self.upload(self.record.folder / SEARCH_FILE)
            self.flush()
            for name in before:
                if name != self._study_name:
                    self._storage.delete(name)
            self._thread.start()

    def stop(self) -> None:
        """Upload the record a last time, unless the storage is away, and stop the thread."""
        self._closing.set()
        if self._storage and not self._storage.is_away:
            self._thread.join(_CLOSE_SECONDS)

    def worker_config(self, folder: str) -> dict[str, Any] | None:
        """What CheckpointSync needs in a worker. folder: the training's, relative to the search's."""
        if self._storage is None or self._lease is None:
            return None
        return {
            "address": self._storage.address,
            "search": self.record.name,
            "folder": folder,
            "generation": self._lease.generation,
            "timeout_seconds": self._storage.timeout_seconds + _WORKER_EXTRA_SECONDS,
        }

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener."""
        if trial.number in self._uploaded:
            self.mark_dirty()
        else:
            self._uploaded.add(trial.number)
            self.flush()

    def close(self) -> None:
        """See Listener. The search continues after its trials: `stop` ends the replication."""

    def mark_dirty(self) -> None:
        """Let the thread upload the study soon."""
        self._dirty.set()

    def flush(self) -> None:
        """Upload the study now."""
        if self._storage and self.record.study_file:
            with self._uploading:  # an older copy must not replace a newer one
                self._storage.put(self._study_name, snapshot_study(self.record.folder))

    def remove(self, path: Path) -> None:
        """Delete a file from the storage, after the next upload of the study: it says why the file is not needed."""
        if self._storage:
            self._to_delete.append(path)
            self.mark_dirty()

    def remove_folder(self, path: Path) -> None:
        """Delete the files of a folder from the storage, as `remove` deletes a file."""
        if self._storage:
            self._folders_to_delete.append(path)
            self.mark_dirty()

    def upload(self, path: Path) -> None:
        """Upload a file of the search, or its export, whose manifest is deleted first and uploaded last."""
        storage = self._storage
        if storage is None:
            return
        name = self._name(path)
        if path.is_dir():
            storage.delete(f"{name}/{MANIFEST}")
            for file in sorted(path.iterdir(), key=lambda file: file.name == MANIFEST):
                storage.put(f"{name}/{file.name}", file)
        else:
            storage.put(name, path)

    def _work(self) -> None:
        assert self._storage
        try:
            closing = False
            while not closing:
                closing = self._closing.wait(UPLOAD_SECONDS)
                with suppress(FileNotFoundError):
                    status = (self.record.folder / STATUS_FILE).read_bytes()  # a sign of life, for `hpo watch`
                    if status != self._status:
                        self._storage.put(STATUS_FILE, status)
                        self._status = status
                if closing or self._dirty.is_set():
                    self._dirty.clear()
                    self._update()
        except StorageError as error:
            if not self._closing.is_set():
                self._on_lost(error)

    def _update(self) -> None:
        assert self._storage
        paths, self._to_delete = self._to_delete, []
        folders, self._folders_to_delete = self._folders_to_delete, []
        self.flush()
        names = [self._name(path) for path in paths]
        if len(names) > _LIST_ABOVE:
            stored = self._storage.names("trials/")
            names = [name for name in names if name in stored]
        names += [name for folder in folders for name in self._storage.names(f"{self._name(folder)}/")]
        for name in names:
            self._storage.delete(name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.record.folder).as_posix()

    @property
    def _storage(self) -> Storage | None:
        return self.record.storage

    @property
    def _study_name(self) -> str:
        assert self._lease
        return study_name(self._lease.name)
