"""The storage: a folder or an s3:// prefix where a search's record and checkpoints outlive every host. Files by name;
who asks waits while it is away."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.common import s3
from model.common.errors import ConfigError, MachineError
from model.common.files import folder_problem, write_problem

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 300.0  # seconds that a search waits for its storage
READ_TIMEOUT_SECONDS = 20.0  # and who only looks
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two attempts, doubled each time
_TOLD_SECONDS = 30.0  # between two words about it: one that can be read and not written is away and back all the time
_CHUNK = 1 << 24  # bytes of a request
_ATTEMPTS = 2  # pyarrow's own, in each of ours

T = TypeVar("T")


class StorageError(MachineError):
    """The storage was away, or refused, for longer than the patience; or it is somebody else's now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in the storage, as a listing tells of it. Two that are equal have the same content."""

    size: int
    mtime_ns: int


class Outage:
    """Since when a storage is away. Of one process; every `Storage` that was made from another shares its."""

    def __init__(self) -> None:
        self.since: float | None = None
        self._told = -math.inf
        self._lock = threading.Lock()

    def began(self, where: str, error: Exception) -> None:
        """An attempt failed."""
        with self._lock:
            now = time.monotonic()
            if self.since is None:
                self.since = now
                if now - self._told > _TOLD_SECONDS:
                    self._told = now
                    log.warning("Storage %s: %s. Waiting", where, _line(error))

    def over(self, where: str) -> None:
        """One succeeded."""
        with self._lock:
            if self.since is not None and self._told >= self.since:
                log.warning("Storage %s: is back after %.0f s", where, time.monotonic() - self.since)
            self.since = None


class Storage:
    """Files by name, `/` between the parts; `inside` is a part of it. A file is replaced as a whole, or not at all.

    Every method tries again for `patience` seconds, then raises StorageError. guard: called before each attempt to
    write; what it raises ends the attempt.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        below: str = "",
        guard: Callable[[], None] | None = None,
    ) -> None:
        """Raises ConfigError for what is no address; nobody is asked."""
        if re.match(r"[a-z0-9]+:/", address) and not address.startswith("s3://"):
            raise ConfigError(f"storage={address}: neither a folder nor s3://BUCKET/PREFIX")
        self.is_s3 = address.startswith("s3://")
        if self.is_s3:
            try:
                s3.options_of(address)
            except ConfigError as error:
                raise ConfigError(f"storage={error}") from None
        self.address = address if self.is_s3 else os.path.abspath(address)
        self.timeout_seconds, self.guard = timeout_seconds, guard
        self._below = below
        self._opened: tuple[Any, str] | None = None
        self._outage, self._expected = Outage(), False

    def __str__(self) -> str:
        return f"{self.address.partition('?')[0].rstrip('/')}/{self._below}".rstrip("/")

    def subdirectory(self, name: str, guard: Callable[[], None] | None = None) -> Storage:
        """What lies in a folder of it. guard: in place of the one it has."""
        other = Storage(
            self.address,
            timeout_seconds=self.timeout_seconds,
            below=f"{self._below}/{name}".strip("/"),
            guard=guard or self.guard,
        )
        other._opened, other._outage, other._expected = self._opened, self._outage, self._expected
        return other

    @property
    def is_away(self) -> bool:
        """Whether the last attempt failed, of whoever in this process asked."""
        return self._outage.since is not None

    # --- reading ---------------------------------------------------------------------------------------------------

    def check(self, *, writes: bool = False) -> None:
        """Once, before a search: that it is there and lets us in. Raises ConfigError where only its user can mend it,
        StorageError. writes: who asks will."""
        from pyarrow import fs  # noqa: PLC0415

        if not self.is_s3 and "\0" not in self.address:
            _check_folder(Path(self.address), writes)

        def look(system: Any, path: Callable[[str], str]) -> None:
            self._listed(system, path(""), recursive=False)
            bucket = path("").partition("/")[0]
            if self.is_s3 and system.get_file_info(bucket).type == fs.FileType.NotFound:
                raise FileNotFoundError(f"there is no bucket {bucket}")

        try:
            self._attempt(look)
        except ConfigError as error:
            raise ConfigError(f"storage={error}") from None
        except (OSError, ValueError) as error:
            if s3.is_refusal(error):
                raise ConfigError(f"storage={self.address}: is not there, or refused ({_line(error)})") from error
            self._with_retries(look)

    def names(self, of: str = "") -> dict[str, Stored]:
        """All files, or those in a folder of it, or that file. FOLDER/ asks less than FOLDER."""
        return self._with_retries(lambda system, path: self._names(system, path(""), path(of)))

    def folders(self) -> list[str]:
        """Those directly in it."""
        from pyarrow import fs  # noqa: PLC0415

        listed = self._with_retries(lambda system, path: self._listed(system, path(""), recursive=False))
        return sorted(info.base_name for info in listed if info.type == fs.FileType.Directory)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.names(name)

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

        def read(system: Any, path: Callable[[str], str]) -> bytes:
            while True:
                with system.open_input_stream(path(name)) as stream:
                    content: bytes = stream.read()
                # Of a longer file that took its place meanwhile, S3 gives as much as the old one had.
                stored = self._names(system, path(""), path(name)).get(name)
                if stored is None or stored.size == len(content):
                    return content

        return self._with_retries(read)

    def fetch(self, name: str, to: Path) -> None:
        """The file, or all files of the folder, as they are in the storage: what it lacks is deleted here, what is here
        already stays."""
        stored = self.names(name)
        targets = {to if each == name else to / each.removeprefix(f"{name}/"): each for each in stored}
        here = [path for path in to.rglob("*") if path.is_file()] if to.is_dir() else [to] if to.exists() else []
        for path in here:
            if path not in targets:
                path.unlink(missing_ok=True)
        for path, each in targets.items():
            if not _same(path, stored[each]):
                self._fetch(each, path)

    def _fetch(self, name: str, to: Path) -> None:
        def read(system: Any, path: Callable[[str], str]) -> None:
            while (before := self._names(system, path(""), path(name)).get(name)) is not None:
                _download(system, path(name), to)
                # Of one that was exchanged meanwhile, what was read may be of both.
                if self._names(system, path(""), path(name)).get(name) == before:
                    os.utime(to, ns=(before.mtime_ns, before.mtime_ns))
                    return
            to.unlink(missing_ok=True)  # deleted just now

        self._with_retries(read)

    # --- writing ---------------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes | Path) -> None:
        """content: the file's, or a file of this machine."""

        def write(system: Any, path: Callable[[str], str]) -> None:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._write, system, path(name), content).result()

        self._with_retries(write, writes=True)

    def copy(self, source: str, target: str) -> None:
        """Within the storage."""

        def write(system: Any, path: Callable[[str], str]) -> None:
            if self.is_s3:
                system.copy_file(path(source), path(target))
            else:
                self._write(system, path(target), Path(path(source)))

        self._with_retries(write, writes=True)

    def delete(self, name: str) -> None:
        """A file that may be gone already."""

        def write(system: Any, path: Callable[[str], str]) -> None:
            try:
                system.delete_file(path(name))
            except FileNotFoundError:
                return

        self._with_retries(write, writes=True)

    def remove(self) -> None:
        """All of it."""
        self._with_retries(lambda system, path: system.delete_dir(path("")), writes=True)

    def create(self) -> None:
        """Where it is a folder, that."""
        if not self.is_s3:
            self._with_retries(lambda system, path: system.create_dir(path(""), recursive=True))
        self.expect()

    def expect(self) -> None:
        """From now on the search's folder must be there, or the storage counts as away: of a mount that went away, the
        mount point is left, and would be read and written."""
        self._expected = not self.is_s3

    # --- attempts --------------------------------------------------------------------------------------------------

    def _with_retries(self, operation: Callable[[Any, Callable[[str], str]], T], *, writes: bool = False) -> T:
        began, pause = time.monotonic(), _PAUSE
        while True:
            try:
                if writes and self.guard:
                    self.guard()
                done = self._attempt(operation)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not writes:
                    self._outage.over(str(self))
                    raise
                self._outage.began(str(self), error)
                if time.monotonic() + pause - began > self.timeout_seconds:
                    waited = time.monotonic() - began
                    raise StorageError(f"{self}: away for {waited:.0f} s ({_line(error)})") from error
            else:
                self._outage.over(str(self))
                return done
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(self, operation: Callable[[Any, Callable[[str], str]], T]) -> T:
        if self._opened is None:
            self._opened = self._open()
        system, root = self._opened
        if self._expected and not os.path.isdir(search := os.path.join(root, self._below.partition("/")[0])):
            raise OSError(f"{search} is not there")
        base = f"{root}/{self._below}".rstrip("/")
        return operation(system, lambda name: f"{base}/{name}" if name else base)

    def _open(self) -> tuple[Any, str]:
        if self.is_s3:
            return s3.connect(self.address, _ATTEMPTS)
        from pyarrow import fs  # noqa: PLC0415

        return fs.LocalFileSystem(), self.address

    def _names(self, system: Any, base: str, path: str) -> dict[str, Stored]:
        from pyarrow import fs  # noqa: PLC0415

        found = [system.get_file_info(path)] if path != base and not path.endswith("/") else []
        if not found or found[0].type == fs.FileType.Directory:
            found = self._listed(system, path.rstrip("/"))
        files = [info for info in found if info.type == fs.FileType.File and not info.base_name.startswith(".")]
        named = {info.path.removeprefix(f"{base}/"): Stored(info.size, info.mtime_ns) for info in files}
        # S3 has names that lead out of a folder; none is ours, and whoever wrote them chooses no place here.
        return {name: stored for name, stored in named.items() if not {"", ".", ".."} & set(name.split("/"))}

    def _listed(self, system: Any, path: str, *, recursive: bool = True) -> list[Any]:
        from pyarrow import fs  # noqa: PLC0415

        selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
        found: list[Any] = system.get_file_info(selector)
        return found

    def _write(self, system: Any, path: str, content: bytes | Path) -> None:
        import pyarrow as pa  # noqa: PLC0415

        # pyarrow completes the upload of a stream that is closed, or dropped, before all was written: one write, in a
        # thread that no signal interrupts.
        is_file = isinstance(content, Path) and content.stat().st_size > 0  # nothing cannot be mapped
        data = pa.memory_map(str(content)).read_buffer() if is_file else content if isinstance(content, bytes) else b""
        if self.is_s3:
            with system.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with system.open_output_stream(str(part)) as stream:
                stream.write(data)
                stream.flush()
            _to_disk(part)
            system.move(str(part), path)
            _to_disk(target.parent)
        finally:
            part.unlink(missing_ok=True)


def _check_folder(folder: Path, writes: bool) -> None:
    """Waiting does not mend what is no folder. Raises ConfigError."""
    with suppress(OSError):  # of a mount that may come back
        if wrong := write_problem(folder) if writes else folder_problem(folder):
            raise ConfigError(f"storage={folder}: {wrong}; name a folder, or s3://BUCKET/PREFIX")


def _download(system: Any, source: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with system.open_input_stream(source) as stream, part.open("wb") as file:
            while chunk := stream.read(_CHUNK):
                file.write(chunk)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def _same(path: Path, stored: Stored) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (stored.size, stored.mtime_ns)


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
