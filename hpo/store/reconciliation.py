"""Brings a search's folder, which can be lost, and its storage together before a driver continues the search. The
storage has search.json, the trials' files (hpo/store/checkpoint_upload.py) and a copy of the study for each generation
of drivers (hpo/store/lease.py), of which the newest counts."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing, suppress
from enum import Enum, auto
from pathlib import Path
from typing import Any

from hpo.policy.search_config import SEARCH_FILE
from hpo.store.file_names import EXPORT, FINAL, FRONT, STUDY_FILE
from hpo.store.lease import Lease, generation_of, is_claim
from hpo.store.object_storage import Storage
from hpo.store.record import Record
from hpo.store.search_file import DamagedError, RecordError, read_about
from model.common.errors import ConfigError
from model.common.files import write_atomically

log = logging.getLogger(__name__)

_OWNER_FILE = "storage.json"  # in a driver's folder: its storage, and the last claim of a driver that used the folder
# A study's file has the claim's name: nobody reads what a driver that was cut off writes late.
_STUDY_PREFIX = "study/"


class Resolution(Enum):
    """How a folder and its storage are brought together."""

    IMPORT = auto()  # the storage lacks the search: upload the folder
    PULL = auto()  # another driver was the storage's last one: replace the folder's record
    KEEP_LOCAL = auto()  # the storage's last driver used this folder, which is therefore ahead of the storage
    REPAIR = auto()  # the same, but the folder's study is damaged: replace it by the storage's copy
    REFUSE_DAMAGED = auto()  # the folder's study is damaged, and the storage has no copy
    REFUSE_DELETED = auto()  # the search was deleted from the storage, and the folder is a copy of it
    REFUSE_OTHER = auto()  # the folder holds another search of the same name


def plan_reconciliation(
    *,
    local_id: str | None,
    local_claim: str | None,
    is_damaged: bool,
    stored_id: str | None,
    last_claim: str | None,
    has_copy: bool,
) -> Resolution:
    """Decide which side counts. Pure.

    Args:
        local_id: the id of the search in the folder; None: no readable search.json.
        local_claim: that of the last driver that used the folder with this storage.
        is_damaged: whether the folder's study cannot be read.
        stored_id: the id of the search in the storage; None: the storage lacks the search.
        last_claim: that of the storage's last driver.
        has_copy: whether the storage has the study.
    """
    if stored_id is None:
        return Resolution.REFUSE_DELETED if local_claim else Resolution.IMPORT
    if local_id not in (None, stored_id):
        return Resolution.REFUSE_OTHER
    if local_claim is None or local_claim != last_claim:
        return Resolution.PULL
    if not is_damaged:
        return Resolution.KEEP_LOCAL
    return Resolution.REPAIR if has_copy else Resolution.REFUSE_DAMAGED


def reconcile(folder: Path, storage: Storage, claim: str | None, lease: Lease) -> None:
    """Bring a driver's folder and its storage together, and note in the folder that it is used with the storage.

    storage: the search's part of it, guarded by the lease. claim: `local_claim` of the folder. Raises ConfigError,
    RecordError, StorageError.
    """
    is_stored = storage.exists(SEARCH_FILE)
    last_claim = lease.previous.name if lease.previous else None
    damage = ""
    if is_stored and claim is not None and claim == last_claim:
        try:
            Record(folder.parent, folder.name)
        except DamagedError as error:
            damage = str(error)
    resolution = plan_reconciliation(
        local_id=_search_id(folder),
        local_claim=claim,
        is_damaged=bool(damage),
        stored_id=read_about(storage.get(SEARCH_FILE), f"{storage}/{SEARCH_FILE}")["id"] if is_stored else None,
        last_claim=last_claim,
        has_copy=not damage or bool(list_studies(storage)),
    )
    match resolution:
        case Resolution.IMPORT:
            _import(storage, folder, lease.name)
        case Resolution.PULL:
            download(storage, folder)
        case Resolution.REPAIR:
            study = folder / STUDY_FILE  # newer than the copy by seconds; the trials' checkpoints have what was lost
            log.warning("%s. It is kept as %s.damaged, and %s has the last good copy", damage, study, storage)
            if study.exists():
                study.replace(f"{study}.damaged")
            download(storage, folder)
        case Resolution.REFUSE_DAMAGED:
            raise DamagedError(damage)
        case Resolution.REFUSE_DELETED:
            raise ConfigError(f"{storage}: the search was deleted from the storage; {folder} is only a copy of it")
        case Resolution.REFUSE_OTHER:
            raise ConfigError(f"{folder}: is another search than {storage}; choose another name, or another --runs")
    owner = {"address": storage.address, "claim": lease.name}
    write_atomically(folder / _OWNER_FILE, json.dumps(owner).encode())


def local_claim(folder: Path, address: str | None) -> str | None:
    """The claim of the last driver that used this folder with a storage; None without one. Raises RecordError;
    ConfigError if the folder belongs to another storage than `address`."""
    path = folder / _OWNER_FILE
    try:
        content = json.loads(path.read_bytes())
        claim, own_address = str(content["claim"]), str(content["address"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(f"{path}: damaged ({error!r}); delete {folder}, the storage has everything") from error
    if address != own_address:
        raise ConfigError(f"{folder}: this search lives in a storage: --storage {own_address}")
    return claim


def download(storage: Storage, folder: Path) -> None:
    """Replace the record in a folder that no driver uses by the storage's. Raises RecordError, StorageError."""
    storage.fetch(SEARCH_FILE, folder / SEARCH_FILE)
    if _has_database(folder):
        return
    (folder / f"{STUDY_FILE}-journal").unlink(missing_ok=True)  # SQLite would roll it back into another file
    while studies := list_studies(storage):
        storage.fetch(studies[-1], folder / STUDY_FILE)
        if (folder / STUDY_FILE).exists():  # else a newer one has replaced it just now
            return
    raise RecordError(f"{storage}: the study is gone, and with it the trials")


def _import(storage: Storage, folder: Path, claim: str) -> None:
    """Upload a search that the storage lacks. search.json is last: it makes the search exist."""
    for top in ("trials", FINAL, FRONT, EXPORT):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                storage.put(path.relative_to(folder).as_posix(), path)
    if not _has_database(folder):
        storage.put(study_name(claim), snapshot_study(folder))
    storage.put(SEARCH_FILE, folder / SEARCH_FILE)


def _search_id(folder: Path) -> str | None:
    with suppress(FileNotFoundError, DamagedError):  # opening the record reports it, or a download mends it
        return str(_about(folder)["id"])
    return None


def _has_database(folder: Path) -> bool:
    return bool(_about(folder)["search"].get("study_url"))


def _about(folder: Path) -> dict[str, Any]:
    return read_about((folder / SEARCH_FILE).read_bytes(), folder / SEARCH_FILE)


def study_name(claim: str) -> str:
    """The name in the storage of the study that the driver with this claim writes."""
    return f"{_STUDY_PREFIX}{claim}.db"


def list_studies(storage: Storage) -> list[str]:
    """The names of all studies in the storage, oldest first."""
    claims = [name.removeprefix(_STUDY_PREFIX).removesuffix(".db") for name in storage.names(_STUDY_PREFIX)]
    return [study_name(claim) for claim in sorted(filter(is_claim, claims), key=generation_of)]


def snapshot_study(folder: Path) -> bytes:
    """The study after its last complete transaction."""
    with closing(sqlite3.connect(folder / STUDY_FILE)) as study, closing(sqlite3.connect(":memory:")) as copy:
        study.backup(copy)
        return copy.serialize()
