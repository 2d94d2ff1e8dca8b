"""The lease on a search in a storage: one driver at a time. A claim is a file, lease/000007-RANDOM.json, in which its
driver raises a counter. A claim of a higher generation ends all lower ones. No clocks are compared, and the storage
only has to list at once what was written."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from hpo.store.object_storage import Storage, StorageError
from model.common.errors import ConfigError
from model.common.validation import wrong_fields

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0  # between two raises of the counter
EXPIRY_SECONDS = 30.0  # of a counter that does not change: six heartbeats
_FOLDER = "lease/"
_NAME = re.compile(r"[0-9]{6,12}-[0-9a-f]{8}")


class LeaseLostError(StorageError):
    """Another driver has taken the search over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The content of a claim's file. name: the file's, without .json."""

    name: str
    pid: int
    host: str
    counter: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def is_claim(name: str) -> bool:
    """Whether this can be the name of a claim."""
    return bool(_NAME.fullmatch(name))


def generation_of(name: str) -> int:
    """The generation of the claim with this name: 1, 2, 3, ..."""
    return int(name.partition("-")[0])


class Lease:
    """A lease that this process holds until `release`. previous: the claim that it ended."""

    def __init__(self, storage: Storage, claim: Claim, previous: Claim | None) -> None:
        self._storage, self._claim, self.previous = storage, claim, previous
        self._guarded = storage.subdirectory("", self.check)
        self._over, self._heartbeat = threading.Event(), threading.Thread()

    @property
    def name(self) -> str:
        """The claim's name."""
        return self._claim.name

    @property
    def generation(self) -> int:
        """The claim's generation."""
        return generation_of(self.name)

    def check(self) -> None:
        """Check before each write that the lease is still ours. Raises LeaseLostError; OSError if its file is gone."""
        names = _names(self._storage)
        newest = max(names, key=generation_of, default=self.name)
        if generation_of(newest) > self.generation:
            owner = _read(self._storage, newest)
            raise LeaseLostError(f"{self._storage}: {owner or 'another driver'} has taken this search over")
        if self.name not in names:
            raise OSError("the claim to this search is gone")

    def start_heartbeat(self, on_lost: Callable[[StorageError], None]) -> None:
        """Start the thread that raises the counter until the release. It calls on_lost if the lease is lost, or the
        storage was away for longer than its timeout."""

        def beat() -> None:
            try:
                while not self._over.wait(HEARTBEAT_SECONDS):
                    self._claim = replace(self._claim, counter=self._claim.counter + 1)
                    _write(self._guarded, self._claim)
            except StorageError as error:
                if not self._over.is_set():
                    on_lost(error)

        self._heartbeat = threading.Thread(target=beat, name="lease", daemon=True)
        self._heartbeat.start()

    def release(self) -> None:
        """Mark the claim released, so that the next driver can start at once. Does nothing if the lease is lost or the
        storage is away."""
        self._over.set()
        if not self._storage.is_away:
            if self._heartbeat.is_alive():
                self._heartbeat.join(HEARTBEAT_SECONDS)  # a late write would undo the release
            with suppress(StorageError):
                _write(self._guarded, replace(self._claim, released=True))


def acquire_lease(storage: Storage, dead_claim: str | None = None) -> Lease:
    """Take the lease on the search in this storage, once its present driver has released it or does not answer. Raises
    StorageError; ConfigError if another driver is alive. dead_claim: that of a driver that is known to have ended."""
    while True:
        previous = newest_claim(storage)
        if previous and not previous.released and previous.name != dead_claim:
            log.warning(
                "%s: %s did not release its lease; waiting up to %.0f s to see whether it is still running",
                storage,
                previous,
                EXPIRY_SECONDS,
            )
            if not _wait_for_expiry(storage, previous):
                continue
        generation = generation_of(previous.name) + 1 if previous else 1
        claim = Claim(name=f"{generation:06}-{secrets.token_hex(4)}", pid=os.getpid(), host=socket.gethostname())
        _write(storage, claim)
        others = [name for name in _names(storage) if name != claim.name]
        if all(generation_of(name) < generation for name in others):
            for name in others:
                _delete(storage, name)
            return Lease(storage, claim, previous)
        _delete(storage, claim.name)  # two at once: both step back, and one is the first to try again
        time.sleep(random.uniform(0, 1))


def newest_claim(storage: Storage) -> Claim | None:
    """The claim of the highest generation."""
    while names := _names(storage):
        claim = _read(storage, max(names, key=generation_of))
        if claim is not None:  # else it was deleted meanwhile
            return claim
    return None


def _wait_for_expiry(storage: Storage, claim: Claim) -> bool:
    """Whether the claim has expired: its counter did not change for EXPIRY_SECONDS while the storage answered. False if
    it was released, or another claim is the newest. Raises ConfigError if the counter changes."""
    since = time.monotonic()
    while time.monotonic() - since < EXPIRY_SECONDS:
        polled = time.monotonic()
        time.sleep(min(HEARTBEAT_SECONDS, EXPIRY_SECONDS) / 5)
        current = newest_claim(storage)
        if current is None or current.name != claim.name or current.released:
            return False
        if current.counter != claim.counter:
            raise ConfigError(f"{storage}: is being run by {current}")
        if time.monotonic() - polled > EXPIRY_SECONDS / 3:  # it was away: its driver could not raise the counter either
            since = time.monotonic()
    return True


def _names(storage: Storage) -> list[str]:
    names = (name.removeprefix(_FOLDER).removesuffix(".json") for name in storage.names(_FOLDER))
    return [name for name in names if is_claim(name)]


def _read(storage: Storage, name: str) -> Claim | None:
    try:
        values = json.loads(storage.get(f"{_FOLDER}{name}.json"))
        wrong = wrong_fields(Claim, values) or ([] if values["name"] == name else ["its name is another"])
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        wrong = [str(error)]
    if wrong:
        raise StorageError(f"{storage}/{_FOLDER}{name}.json: damaged ({', '.join(wrong)}); delete it if no driver runs")
    return Claim(**values)


def _write(storage: Storage, claim: Claim) -> None:
    storage.put(f"{_FOLDER}{claim.name}.json", json.dumps(asdict(claim)).encode())


def _delete(storage: Storage, name: str) -> None:
    storage.delete(f"{_FOLDER}{name}.json")
