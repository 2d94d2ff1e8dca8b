"""Image sets larger than memory: decoded once into files, which trainings map. The kernel caches what fits."""

from __future__ import annotations

import logging
import math
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.errors import ConfigError, MachineError
from ..common.files import writing

log = logging.getLogger(__name__)

IN_MEMORY = "PIX2PIX_IN_MEMORY_MB"  # an environment variable: the limit of decoded pixels in memory
_TENTH = 10  # the default limit, a tenth of the machine's memory: pixels are copied three times on their way


@dataclass(frozen=True, slots=True)
class PixelFile:
    """Flat pixels of one type in a file. Trainings on any node receive this value instead of the pixels."""

    path: Path
    size: int  # bytes
    dtype: str

    def open(self) -> np.ndarray:
        """Map the pixels, read-only. Raises MachineError."""
        try:
            size = self.path.stat().st_size
            if size == self.size:
                return np.asarray(np.memmap(self.path, self.dtype, "r"))
            why = f"{size:,} bytes instead of {self.size:,}"
        except OSError as error:
            why = str(error.strerror)
        raise MachineError(f"{self.path}: the images' pixels are missing ({why}); all nodes need access to this folder")


class PixelFiles:
    """Files for pixels that do not fit in memory, one for each kind, deleted at the end of the `with`.

    The files are named .NAME~*; names of searches contain no ~. The default folder is the system's for temporary files.

    Raises:
        ConfigError: the environment variable is not a number.
    """

    def __init__(self, folder: Path | None = None, name: str = "images") -> None:
        self._folder, self._name = (folder or Path(tempfile.gettempdir())).absolute(), name
        self._token = secrets.token_hex(4)
        self._sizes: dict[str, int] = {}  # bytes
        self._dtypes: dict[str, str] = {}
        limit = os.environ.get(IN_MEMORY)
        if limit is not None and not limit.isdecimal():
            raise ConfigError(f"{IN_MEMORY}={limit}: must be a whole number of megabytes, such as 4000")
        self.in_memory = system_memory("MemTotal") / _TENTH if limit is None else 1e6 * int(limit)  # bytes

    def __enter__(self) -> PixelFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for kind in self._sizes:
            self._path(kind).unlink(missing_ok=True)

    def delete_leftovers(self) -> None:
        """Delete the files of a killed run of the same name. No other run of this name may be active."""
        for path in self._folder.glob(f".{self._name}~*.pixels"):
            if f"~{self._token}~" not in path.name:
                path.unlink(missing_ok=True)

    def put(self, kind: str, arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """Append arrays of one type to the file of a kind.

        Returns:
            For each array its begin in the file, counted in pixels, and the array mapped from the file.

        Raises:
            OSError: the file cannot be written.
        """
        if not self._sizes:
            log.warning("More than %.0f MB of pixels: streamed from %s", self.in_memory / 1e6, self._path(kind))
            self._folder.mkdir(parents=True, exist_ok=True)
        begin = self._sizes.setdefault(kind, 0)  # set before writing: a file on a full disk is deleted too
        with writing(self._path(kind)), open(self._path(kind), "ab", opener=_private) as file:
            for array in arrays:
                file.write(array.data)
        content = np.asarray(np.memmap(self._path(kind), np.uint8, "r", begin))
        mapped, at = [], 0
        for array in arrays:
            pixels = content[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            mapped.append(((begin + at) // array.itemsize, pixels))
            at += array.nbytes
            self._dtypes[kind] = str(array.dtype)
        self._sizes[kind] += at
        return mapped

    def file(self, kind: str) -> PixelFile:
        """The file with all arrays of a kind."""
        return PixelFile(self._path(kind), self._sizes[kind], self._dtypes[kind])

    def _path(self, kind: str) -> Path:
        return self._folder / f".{self._name}~{self._token}~{kind}.pixels"


def _private(path: str, flags: int) -> int:
    """Open for the owner only: everybody can read the system's folder for temporary files."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def system_memory(what: str) -> float:
    """MemTotal or MemAvailable in bytes; infinite where the system does not report it."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith(f"{what}:")), math.inf)
