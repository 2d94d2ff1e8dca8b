"""The lease on a search in a storage: one driver at a time, on whatever host. No clocks are compared, and nothing is
asked of the storage but that what was written is listed at once.

A claim is a file, lease/000007-RANDOM.json. Its holder raises a counter in it; the claim of a higher generation ends
that of a lower one.
"""

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
EXPIRY_SECONDS = 30.0  # of a counter that stands still: six beats
_FOLDER = "lease/"


class LeaseLostError(StorageError):
    """Another driver has taken the search over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What is in the file, and its name without .json."""

    name: str
    pid: int
    host: str
    counter: int = 0
    released: bool = False

    @property
    def generation(self) -> int:
        """1, 2, 3, ..."""
        return generation_of(self.name)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_NAME = re.compile(r"[0-9]{6,12}-[0-9a-f]{8}")


def is_claim(name: str) -> bool:
    """Whether a file of that name is one of ours."""
    return bool(_NAME.fullmatch(name))


def generation_of(name: str) -> int:
    """Of a claim's name."""
    return int(name.partition("-")[0])


class Lease:
    """Held by this process, until `release`."""

    def __init__(self, storage: Storage, claim: Claim, before: Claim | None) -> None:
        self._storage, self._claim = storage, claim
        self.previous = before  # the claim that it ended
        self._over, self._beats = threading.Event(), threading.Thread()

    @property
    def name(self) -> str:
        """Of the claim."""
        return self._claim.name

    @property
    def generation(self) -> int:
        """Of the claim."""
        return self._claim.generation

    def check(self) -> None:
        """Before whatever is written. Raises LeaseLostError; OSError where the claim itself is gone."""
        names = _names(self._storage)
        newest = max(names, key=generation_of, default=self.name)
        if generation_of(newest) > self.generation:
            by = _read(self._storage, newest)
            raise LeaseLostError(f"{self._storage}: {by or 'another driver'} has taken this search over")
        if self.name not in names:
            raise OSError("the claim to this search is gone")

    def start_heartbeat(self, when_over: Callable[[StorageError], None]) -> None:
        """Raise the counter from now on, in a thread. when_over: called there once the lease is lost, or the storage
        was away for too long."""

        def beat() -> None:
            try:
                while not self._over.wait(HEARTBEAT_SECONDS):
                    self._claim = replace(self._claim, counter=self._claim.counter + 1)
                    _write(self._held, self._claim)
            except StorageError as error:
                if not self._over.is_set():
                    when_over(error)

        self._beats = threading.Thread(target=beat, name="lease", daemon=True)
        self._beats.start()

    @property
    def _held(self) -> Storage:
        return self._storage.subdirectory("", self.check)

    def release(self) -> None:
        """The next driver need not wait. Where the lease is lost, or the storage away, he waits."""
        self._over.set()
        if not self._storage.is_away:
            if self._beats.is_alive():
                self._beats.join(HEARTBEAT_SECONDS)  # what it writes late would take the release back
            with suppress(StorageError):
                _write(self._held, replace(self._claim, released=True))


def acquire_lease(storage: Storage, own: str | None = None) -> Lease:
    """The lease on the search in this storage. own: the claim of a driver that is known to be dead. Raises ConfigError,
    naming the holder, while another driver lives; StorageError."""
    while True:
        before = newest_claim(storage)
        if before and not before.released and before.name != own:
            log.warning("%s: %s has not signed off; is it alive? %.0f s at most", storage, before, EXPIRY_SECONDS)
            if not _wait_for_expiry(storage, before):
                continue
        claim = Claim(
            name=f"{(before.generation if before else 0) + 1:06}-{secrets.token_hex(4)}",
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        _write(storage, claim)
        names = _names(storage)
        if all(generation_of(name) < claim.generation for name in names if name != claim.name):
            for name in names:
                if name != claim.name:
                    storage.delete(f"{_FOLDER}{name}.json")
            return Lease(storage, claim, before)
        storage.delete(f"{_FOLDER}{claim.name}.json")  # two at once: both step back, and one is the first to come again
        time.sleep(random.uniform(0, 1))


def newest_claim(storage: Storage) -> Claim | None:
    """The claim that counts."""
    while names := _names(storage):
        claim = _read(storage, max(names, key=generation_of))
        if claim is not None:  # else it was taken back meanwhile
            return claim
    return None


def _wait_for_expiry(storage: Storage, claim: Claim) -> bool:
    """Whether its counter stands still for so long, all the while that the storage answers; not where another claim
    counts meanwhile: it was one of two at once, and was taken back. Raises ConfigError while its holder lives."""
    last, since = claim, time.monotonic()
    while time.monotonic() - since < EXPIRY_SECONDS:
        asked = time.monotonic()
        time.sleep(min(HEARTBEAT_SECONDS, EXPIRY_SECONDS) / 5)
        now = newest_claim(storage)
        if now is None or now.name != claim.name or now.released:
            return False
        if now.counter != last.counter:
            raise ConfigError(f"{storage}: is being run by {now}")
        if time.monotonic() - asked > EXPIRY_SECONDS / 3:  # away: its holder could not raise it either
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
