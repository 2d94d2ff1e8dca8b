"""A search's folder beside its storage: brought here from there, and what the driver changes taken back.

What counts lies in the storage: search.json, a copy of the study of each generation of drivers (hpo/store/lease.py), of which
the newest is read, and the trials' files, which they put there themselves (hpo/tune/trainable.py). The folder of a driver, or of
who looks, can be lost.
"""

from __future__ import annotations

import difflib
import json
import logging
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy.search_config import SEARCH_FILE, SearchConfig, check_name, is_name
from hpo.store import lease
from hpo.store.layout import EXPORT, FINAL, STATUS_FILE, STUDY_FILE
from hpo.store.lease import Lease, generation_of, is_claim
from hpo.store.lock import acquire_lock
from hpo.store.object_storage import READ_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Storage, StorageError
from hpo.store.record import (
    DamagedError,
    Record,
    RecordError,
    list_names,
    not_found,
    not_found_in,
    parse_search_file,
    read_about,
)
from model.common.errors import ConfigError
from model.common.files import write_atomically
from model.denoise import MANIFEST

log = logging.getLogger(__name__)

COPY_SECONDS = 2.0  # between two copies of the study, but for those that a new trial waits for
_OF = "storage.json"  # in a driver's folder: which storage it belongs to, and the last claim from here
_STUDY = "study/"  # and the claim's name: what a driver that was cut off writes late is read by nobody
_CLOSE_SECONDS = 60.0  # for the last copy
_LONGER = 60.0  # seconds: a trial's patience beyond the driver's
_MANY = 20  # files to be deleted: a listing tells which are there at all


def open_storage(address: str | None, runs: Path, *, interactive: bool = False) -> Storage | None:
    """The storage at an address, once it is known to be there. interactive: a short timeout, and no check that it can be written. Raises
    ConfigError, StorageError."""
    if address is None:
        return None
    storage = Storage(address, timeout_seconds=READ_TIMEOUT_SECONDS if interactive else TIMEOUT_SECONDS)
    if not storage.is_s3 and Path(storage.address).resolve() == runs.resolve():
        raise ConfigError(f"storage={address}: is --runs itself; copies that outlive this folder belong elsewhere")
    storage.check(writes=not interactive)
    return storage


def find_search(runs: Path, name: str, storage: Storage | None) -> tuple[dict[str, Any], SearchConfig] | None:
    """The search.json of a search and what it asks for, as the next driver finds it; None: there is no such search.
    Raises RecordError, StorageError."""
    stored = f"{check_name(name)}/{SEARCH_FILE}"
    if storage and storage.exists(stored):
        return parse_search_file(storage.get(stored), f"{storage}/{stored}")
    path = runs / name / SEARCH_FILE
    return parse_search_file(path.read_bytes(), path) if path.exists() else None


# --- from the storage -----------------------------------------------------------------------------------------------


@contextmanager
def open_read_only(
    runs: Path, name: str, storage: Storage | None, *, read_only: bool = False, waits: bool = False
) -> Iterator[Record]:
    """The record, for who doesn't run the search: with a storage from there alone, into a folder that goes at the end.
    Raises ConfigError, RecordError, StorageError."""
    check_name(name)
    if storage is None:
        _check_own(runs / name)
        yield Record(runs, name, read_only=read_only, waits=waits)
        return
    if not storage.exists(f"{name}/{SEARCH_FILE}"):
        raise not_found_in(storage.address, name, search_names(storage))
    with tempfile.TemporaryDirectory(prefix="pix2pix-search-") as folder:
        download(inside := storage.subdirectory(name), Path(folder) / name)
        record = Record(Path(folder), name, read_only=read_only, waits=waits, storage=inside)
        record.home, record.bring = runs / name, lambda: download(inside, record.folder)
        yield record


def search_names(storage: Storage) -> list[str]:
    """The searches in a storage."""
    return [name for name in storage.folders() if is_name(name) and storage.exists(f"{name}/{SEARCH_FILE}")]


def similar_name(name: str, runs: Path, storage: Storage | None) -> str | None:
    """Another search whose name was perhaps meant: two letters of five exchanged, but not exp1 and exp2."""
    others = {*list_names(runs), *(search_names(storage) if storage else ())} - {name}
    return next(iter(difflib.get_close_matches(name, sorted(others), n=1, cutoff=0.8)), None)


def download(storage: Storage, folder: Path) -> None:
    """The newest copy of the record, into a folder that no driver uses. Raises RecordError, StorageError."""
    storage.fetch(SEARCH_FILE, folder / SEARCH_FILE)
    if _is_served(folder):
        return
    (folder / f"{STUDY_FILE}-journal").unlink(missing_ok=True)  # SQLite would play it back into another file
    while studies := _studies(storage):
        storage.fetch(studies[-1], folder / STUDY_FILE)
        if (folder / STUDY_FILE).exists():  # else a newer one has taken its place just now
            return
    raise RecordError(f"{storage}: the study is gone, and with it the trials")


def _studies(storage: Storage) -> list[str]:
    """Oldest first."""
    claims = [name.removeprefix(_STUDY).removesuffix(".db") for name in storage.names(_STUDY)]
    return [_name_of_study(of) for of in sorted(filter(is_claim, claims), key=generation_of)]


# --- a driver's ------------------------------------------------------------------------------------------------------


@contextmanager
def acquire(
    runs: Path, name: str, storage: Storage | None, when_over: Callable[[StorageError], None]
) -> Iterator[StorageReplicator]:
    """For who runs the search: nobody else does, here or elsewhere, until the `with` ends.

    A folder whose last driver was also the storage's last is ahead of the storage and stays; any other is replaced; a
    search that the storage has not gets into it. Raises ConfigError, RecordError, StorageError; when_over: called in
    another thread once the search is another's, or the storage was away for too long.
    """
    folder = runs / check_name(name)
    own = _check_own(folder, storage)
    if not Record.exists(runs, name) and not (storage and storage.exists(f"{name}/{SEARCH_FILE}")):
        raise not_found_in(storage.address, name, search_names(storage)) if storage else not_found(runs, name)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(acquire_lock(folder, name))
        if storage is None:
            yield StorageReplicator(Record(runs, name, waits=True), None, when_over)
            return
        inside = storage.subdirectory(name)
        inside.create()
        taken = lease.acquire_lease(inside, own)
        stack.callback(taken.release)
        taken.start_heartbeat(when_over)
        guarded = inside.subdirectory("", taken.check)
        if not inside.exists(SEARCH_FILE):
            if own:
                raise ConfigError(f"{inside}: has no such search any more, and {folder} is a copy of what it had")
            _take_in(guarded, folder, taken)
        elif _id(folder) not in (None, read_about(inside.get(SEARCH_FILE), f"{inside}/{SEARCH_FILE}")["id"]):
            raise ConfigError(f"{folder}: is another search than {inside}; choose another name, or another --runs")
        elif own is None or taken.previous is None or taken.previous.name != own:
            download(inside, folder)
        else:
            _replace_damaged(inside, folder)
        write_atomically(folder / _OF, json.dumps({"address": storage.address, "claim": taken.name}).encode())
        yield StorageReplicator(Record(runs, name, waits=True, storage=guarded), taken, when_over)


def _replace_damaged(storage: Storage, folder: Path) -> None:
    """The study of a driver's own folder by the storage's copy, where it cannot be read. That is seconds older; what is
    younger is in the trials' checkpoints."""
    study = folder / STUDY_FILE
    try:
        Record(folder.parent, folder.name)
    except DamagedError as error:
        if not _studies(storage):  # it is in a database, or gone there too
            raise
        log.warning("%s. It is kept as %s.damaged, and %s has the last good copy", error, study, storage)
        if study.exists():
            study.replace(f"{study}.damaged")
        download(storage, folder)


def _check_own(folder: Path, storage: Storage | None = None) -> str | None:
    """The last claim of a driver that had this folder. Raises ConfigError where it belongs to another storage."""
    path = folder / _OF
    try:
        of = json.loads(path.read_bytes())
        claim, address = str(of["claim"]), str(of["address"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(f"{path}: damaged ({error!r}); delete {folder}, of which the storage has all") from error
    if storage is None or address != storage.address:
        raise ConfigError(f"{folder}: this search lives in a storage: --storage {address}")
    return claim


def _id(folder: Path) -> str | None:
    with suppress(FileNotFoundError, DamagedError):  # who reads the record says so, or mends it
        return str(_about(folder)["id"])
    return None


def _is_served(folder: Path) -> bool:
    """Whether the study is in a database of its own."""
    return bool(_about(folder)["search"].get("study_url"))


def _about(folder: Path) -> dict[str, Any]:
    return read_about((folder / SEARCH_FILE).read_bytes(), folder / SEARCH_FILE)


def _take_in(storage: Storage, folder: Path, taken: Lease) -> None:
    """A search that began without a storage, or has just begun. search.json last: with it the search is there."""
    for top in ("trials", FINAL, EXPORT):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                storage.put(path.relative_to(folder).as_posix(), path)
    if not _is_served(folder):
        storage.put(_name_of_study(taken.name), _study(folder))
    storage.put(SEARCH_FILE, folder / SEARCH_FILE)


def _name_of_study(of: str) -> str:
    return f"{_STUDY}{of}.db"


def _study(folder: Path) -> bytes:
    """As it is after its last whole transaction."""
    with closing(sqlite3.connect(folder / STUDY_FILE)) as study, closing(sqlite3.connect(":memory:")) as copy:
        study.backup(copy)
        return copy.serialize()


class StorageReplicator:
    """A listener, the first one: the storage has each trial before it is handed out, and its reports soon after.

    Its methods raise StorageError; its thread calls when_over with it. Without a storage nothing is done.
    """

    def __init__(self, record: Record, taken: Lease | None, when_over: Callable[[StorageError], None]) -> None:
        self.record, self._lease, self._when_over = record, taken, when_over
        self._known = {trial.number for trial in record.trials()}
        self._doomed: list[Path] = []
        self._changed, self._closing, self._copying = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
        self._status = b""

    def start(self) -> None:
        """Upload the record, delete the copies of earlier drivers, and start the thread that keeps it up to date."""
        if self._storage:
            before = _studies(self._storage)
            self.upload(self.record.folder / SEARCH_FILE)
            self.flush()
            for name in before:
                if name != self._name:
                    self._storage.delete(name)
            self._thread.start()

    def stop(self) -> None:
        """Upload the record a last time, unless the storage is away, and stop the thread."""
        self._closing.set()
        if self._storage and not self._storage.is_away:
            self._thread.join(_CLOSE_SECONDS)

    def worker_config(self, folder: str) -> dict[str, Any] | None:
        """For the process of a training with this folder: hpo.store.checkpoint_sync.CheckpointSync."""
        if self._storage is None or self._lease is None:
            return None
        timeout = self._storage.timeout_seconds + _LONGER  # the driver is the first to give up
        place = {"address": self._storage.address, "search": self.record.name, "folder": folder}
        return {**place, "generation": self._lease.generation, "timeout_seconds": timeout}

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener."""
        if trial.number in self._known:
            self._changed.set()
        else:
            self._known.add(trial.number)
            self.flush()

    def mark_dirty(self) -> None:
        """Something on the record that is of no trial."""
        self._changed.set()

    def close(self) -> None:
        """The trials are over; the search is not."""

    def flush(self) -> None:
        """The study as it is."""
        if self._storage and self.record.study_file:
            with self._copying:  # an older copy does not take the place of a newer one
                self._storage.put(self._name, _study(self.record.folder))

    def remove(self, path: Path) -> None:
        """From the storage, soon: once it knows that the trial has ended."""
        if self._storage:
            self._doomed.append(path)
            self._changed.set()

    def upload(self, path: Path) -> None:
        """A file of the search, or its export: the manifest is gone first and there last."""
        storage = self._storage
        if storage is None:
            return
        name = path.relative_to(self.record.folder).as_posix()
        if path.is_dir():
            storage.delete(f"{name}/{MANIFEST}")
            for file in sorted(path.iterdir(), key=lambda file: file.name == MANIFEST):
                storage.put(f"{name}/{file.name}", file)
        else:
            storage.put(name, path)

    def _update(self) -> None:
        """The study, and then gone is what by it is not needed any more."""
        assert self._storage
        doomed, self._doomed = self._doomed, []
        self.flush()
        names = [path.relative_to(self.record.folder).as_posix() for path in doomed]
        if len(names) > _MANY:
            there = self._storage.names("trials/")
            names = [name for name in names if name in there]
        for name in names:
            self._storage.delete(name)

    def _work(self) -> None:
        assert self._storage
        try:
            closing = False
            while not closing:
                closing = self._closing.wait(COPY_SECONDS)
                with suppress(FileNotFoundError):
                    status = (self.record.folder / STATUS_FILE).read_bytes()  # a sign of life, for who watches
                    if status != self._status:
                        self._storage.put(STATUS_FILE, status)
                        self._status = status
                if closing or self._changed.is_set():
                    self._changed.clear()
                    self._update()
        except StorageError as error:
            if not self._closing.is_set():
                self._when_over(error)

    @property
    def _storage(self) -> Storage | None:
        return self.record.storage

    @property
    def _name(self) -> str:
        """Of the study's copies of this generation."""
        assert self._lease
        return _name_of_study(self._lease.name)
