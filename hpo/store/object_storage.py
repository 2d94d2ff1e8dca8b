"""The storage of a search: a folder or an s3:// prefix in which its record and checkpoints outlive every host."""

from __future__ import annotations

import copy
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from model.common import s3
from model.common.errors import ConfigError, MachineError
from model.common.files import atomic_replace, folder_problem, write_problem
from model.common.retry import Outage, retry

TIMEOUT_SECONDS = 300.0  # for the driver of a search
READ_TIMEOUT_SECONDS = 20.0  # for commands that a user waits for
_QUIET_SECONDS = 30.0  # between two warnings: a storage that can be read but not written comes and goes all the time
_CHUNK_BYTES = 1 << 24
_ATTEMPTS = 2  # pyarrow's own, within each of ours

T = TypeVar("T")


class StorageError(MachineError):
    """The storage was away or refused access for longer than the timeout, or another driver has taken it over."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as a listing of the storage shows it. Two equal ones have the same content."""

    size: int
    mtime_ns: int


class Storage:
    """Files by name, with `/` between the parts. A file is replaced as a whole, or not at all. Every method retries
    until the timeout has passed, then raises StorageError."""

    def __init__(self, address: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Connects to nothing. Raises ConfigError if the address is invalid.

        Args:
            address: a folder or s3://BUCKET/PREFIX?OPTIONS (model.common.s3).
            timeout_seconds: for all attempts of one call together.
        """
        if re.match(r"[a-z0-9]+:/", address) and not address.startswith("s3://"):
            raise ConfigError(f"storage={address}: neither a folder nor s3://BUCKET/PREFIX")
        self.is_s3 = address.startswith("s3://")
        if self.is_s3:
            try:
                s3.options_of(address)
            except ConfigError as error:
                raise ConfigError(f"storage={error}") from None
        self.address = address if self.is_s3 else os.path.abspath(address)
        self.timeout_seconds = timeout_seconds
        self._prefix = ""  # the subdirectory to which names are relative
        self._guard: Callable[[], None] | None = None
        self._connection: tuple[Any, str] | None = None  # pyarrow's file system, and the path of the address in it
        self._outage, self._must_exist = Outage(_QUIET_SECONDS), False

    def __str__(self) -> str:
        return f"{self.address.partition('?')[0].rstrip('/')}/{self._prefix}".rstrip("/")

    def subdirectory(self, name: str, guard: Callable[[], None] | None = None) -> Storage:
        """The part of it below a folder. guard: called before each attempt to write. An error that it raises, other
        than OSError, ends the attempts."""
        other = copy.copy(self)
        other._prefix, other._guard = f"{self._prefix}/{name}".strip("/"), guard or self._guard
        return other

    @property
    def is_away(self) -> bool:
        """Whether the last attempt of any thread of this process failed."""
        return self._outage.is_on

    # --- reading ---------------------------------------------------------------------------------------------------

    def check(self, *, writes: bool = False) -> None:
        """Check before a search that the storage exists and grants access. writes: write access, too. Raises
        ConfigError if only the user can mend it."""
        if not self.is_s3 and "\0" not in self.address:
            folder = Path(self.address)
            with suppress(OSError):  # of a mount that may come back
                if problem := write_problem(folder) if writes else folder_problem(folder):
                    raise ConfigError(f"storage={folder}: {problem}; name a folder, or s3://BUCKET/PREFIX")

        def look(system: Any, path: str) -> None:
            _listing(system, path, recursive=False)
            bucket = path.partition("/")[0]
            if self.is_s3 and system.get_file_info(bucket).type.name == "NotFound":
                raise FileNotFoundError(f"no bucket {bucket}")

        try:
            look(*self._open())
        except ConfigError as error:
            raise ConfigError(f"storage={error}") from None
        except (OSError, ValueError) as error:
            if s3.is_refusal(error):
                raise ConfigError(
                    f"storage={self.address}: not found, or access denied ({_first_line(error)})"
                ) from error
            self._with_retries(look)

    def names(self, name: str = "") -> dict[str, Stored]:
        """All files, those in a folder, or a single file. FOLDER/ takes fewer requests than FOLDER."""
        return self._with_retries(lambda *_: self._names(name))

    def folders(self) -> list[str]:
        """The folders directly in it."""
        listing = self._with_retries(partial(_listing, recursive=False))
        return sorted(info.base_name for info in listing if info.type.name == "Directory")

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self.names(name)

    def get(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

        def read(system: Any, path: str) -> bytes:
            while True:
                with system.open_input_stream(path) as stream:
                    content: bytes = stream.read()
                # If a longer file replaces it meanwhile, S3 returns only as many bytes as the old one had.
                stored = self._names(name).get(name)
                if stored is None or stored.size == len(content):
                    return content

        return self._with_retries(read, name)

    def fetch(self, name: str, to: Path) -> None:
        """Make a local file or folder equal to that of the storage. Files that are equal already stay."""
        stored = self.names(name)
        targets = {to if each == name else to / each.removeprefix(f"{name}/"): each for each in stored}
        local = [path for path in to.rglob("*") if path.is_file()] if to.is_dir() else [to] if to.exists() else []
        for path in local:
            if path not in targets:
                path.unlink(missing_ok=True)
        for path, each in targets.items():
            if not _is_same(path, stored[each]):
                self._fetch(each, path)

    def _fetch(self, name: str, to: Path) -> None:
        def read(system: Any, source: str) -> None:
            while (before := self._names(name).get(name)) is not None:
                to.parent.mkdir(parents=True, exist_ok=True)
                with atomic_replace(to) as part, system.open_input_stream(source) as stream, part.open("wb") as file:
                    shutil.copyfileobj(stream, file, _CHUNK_BYTES)
                # If it was replaced meanwhile, the download may be a mixture of both.
                if self._names(name).get(name) == before:
                    os.utime(to, ns=(before.mtime_ns, before.mtime_ns))
                    return
            to.unlink(missing_ok=True)  # it was deleted just now

        self._with_retries(read, name)

    # --- writing ---------------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes | Path) -> None:
        """Write a file. content: its bytes, or a local file."""

        def write(system: Any, path: str) -> None:
            # pyarrow completes the upload of a stream that is closed or dropped before everything was written. Hence a
            # single write, in a thread that no signal interrupts.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._write, system, path, content).result()

        self._with_retries(write, name, writes=True)

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the storage."""

        def write(system: Any, path: str) -> None:
            source_path = self._open(source)[1]
            if self.is_s3:
                system.copy_file(source_path, path)
            else:
                self._write(system, path, Path(source_path))

        self._with_retries(write, target, writes=True)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""

        def write(system: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                system.delete_file(path)

        self._with_retries(write, name, writes=True)

    def delete_all(self) -> None:
        """Delete all files and the folder."""

        self._with_retries(lambda system, path: system.delete_dir(path), writes=True)

    def create(self) -> None:
        """Create the folder, if the storage has folders."""

        if not self.is_s3:
            self._with_retries(lambda system, path: system.create_dir(path, recursive=True))
        self.require_folder()

    def require_folder(self) -> None:
        """From now on the storage counts as away while the search's folder is missing: if a file server's mount goes
        away, its empty mount point stays, and would be read and written."""
        self._must_exist = not self.is_s3

    # --- attempts --------------------------------------------------------------------------------------------------

    def _with_retries(self, operation: Callable[[Any, str], T], name: str = "", *, writes: bool = False) -> T:
        """Call the operation with pyarrow's file system and the path of a file in it, until it succeeds."""

        def attempt() -> T:
            if writes and self._guard:
                self._guard()
            return operation(*self._open(name))

        def is_away(error: Exception) -> bool:
            return isinstance(error, OSError) and (writes or not isinstance(error, FileNotFoundError))

        began = time.monotonic()
        try:
            result = retry(
                attempt,
                is_transient=is_away,
                timeout_seconds=self.timeout_seconds,
                on_failure=lambda error: self._outage.started(str(self), _first_line(error), self.timeout_seconds),
            )
        except OSError as error:
            if not is_away(error):
                self._outage.ended(str(self))
                raise
            waited = time.monotonic() - began
            raise StorageError(f"{self}: away for {waited:.0f} s ({_first_line(error)})") from error
        self._outage.ended(str(self))
        return result

    def _open(self, name: str = "") -> tuple[Any, str]:
        """pyarrow's file system, and the path of a file in it. Raises OSError, ConfigError, ValueError."""
        if self._connection is None:
            from pyarrow import fs  # noqa: PLC0415

            is_s3, address = self.is_s3, self.address
            self._connection = s3.connect(address, _ATTEMPTS) if is_s3 else (fs.LocalFileSystem(), address)
        system, root = self._connection
        if self._must_exist and not os.path.isdir(search := os.path.join(root, self._prefix.partition("/")[0])):
            raise OSError(f"{search}: not found")
        base = f"{root}/{self._prefix}".rstrip("/")
        return system, f"{base}/{name}" if name else base

    def _names(self, name: str) -> dict[str, Stored]:
        system, path = self._open(name)
        listing = [system.get_file_info(path)] if name and not name.endswith("/") else []
        if not listing or listing[0].type.name == "Directory":
            listing = _listing(system, path.rstrip("/"))
        base = f"{self._open()[1]}/"
        files = {
            info.path.removeprefix(base): Stored(info.size, info.mtime_ns)
            for info in listing
            if info.is_file and not info.base_name.startswith(".")
        }
        # S3 allows names that lead out of a folder. We write none, and nobody else may choose where files are written.
        return {name: stored for name, stored in files.items() if not {"", ".", ".."} & set(name.split("/"))}

    def _write(self, system: Any, path: str, content: bytes | Path) -> None:
        if not self.is_s3:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_replace(Path(path), durable=True) as part:
                if isinstance(content, bytes):
                    part.write_bytes(content)
                else:
                    shutil.copyfile(content, part)
            return
        import pyarrow as pa  # noqa: PLC0415

        if isinstance(content, Path):  # an empty file cannot be mapped
            content = pa.memory_map(str(content)).read_buffer() if content.stat().st_size else b""
        with system.open_output_stream(path) as stream:
            stream.write(content)


def _listing(system: Any, path: str, *, recursive: bool = True) -> list[Any]:
    from pyarrow import fs  # noqa: PLC0415

    listing: list[Any] = system.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
    return listing


def _is_same(path: Path, stored: Stored) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime_ns) == (stored.size, stored.mtime_ns)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
