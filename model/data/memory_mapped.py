"""Sets larger than memory: decoded once into files, which trainings map. The kernel keeps in memory what fits."""

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

IN_MEMORY = "PIX2PIX_IN_MEMORY_MB"  # in the environment: decoded pixels that stay in memory
_TENTH = 10  # of the machine's memory, where it does not say: pixels in memory are copied three times on their way


@dataclass(frozen=True, slots=True)
class PixelFile:
    """Flat pixels of one type in a file. To a training it travels as this, on another node too."""

    path: Path
    size: int  # bytes
    dtype: str

    def open(self) -> np.ndarray:
        """Mapped, read-only. Raises MachineError."""
        try:
            found = self.path.stat().st_size
            if found == self.size:
                return np.asarray(np.memmap(self.path, self.dtype, "r"))
            why = f"{found:,} bytes instead of {self.size:,}"
        except OSError as error:
            why = str(error.strerror)
        raise MachineError(f"{self.path}: the images' pixels are not there ({why}); all nodes must see this folder")


class PixelFiles:
    """For pixels that are too many for memory: a file of each kind, deleted when the `with` ends.

    folder: the system's for temporary files, if not given; there they are named .NAME~*, and no search's name has a ~.
    Raises ConfigError.
    """

    def __init__(self, folder: Path | None = None, name: str = "images") -> None:
        self._folder, self._name = (folder or Path(tempfile.gettempdir())).absolute(), name
        self._token = secrets.token_hex(4)
        self._sizes: dict[str, int] = {}  # bytes
        self._dtypes: dict[str, str] = {}
        asked = os.environ.get(IN_MEMORY)
        if asked is not None and not asked.isdecimal():
            raise ConfigError(f"{IN_MEMORY}={asked}: must be a whole number of megabytes, such as 4000")
        self.in_memory = system_memory("MemTotal") / _TENTH if asked is None else 1e6 * int(asked)

    def __enter__(self) -> PixelFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for kind in self._sizes:
            self._path(kind).unlink(missing_ok=True)

    def delete_leftovers(self) -> None:
        """What a killed run of the same name left. Only where no other can be running."""
        for path in self._folder.glob(f".{self._name}~*.pixels"):
            if f"~{self._token}~" not in path.name:
                path.unlink(missing_ok=True)

    def put(self, kind: str, arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """For each array where it begins in the file, counted in pixels, and the same array, mapped. All of a file have
        the same type, else it is of no use. Raises OSError."""
        if not self._sizes:
            log.warning("More than %.0f MB of pixels: streamed from %s", self.in_memory / 1e6, self._path(kind))
            self._folder.mkdir(parents=True, exist_ok=True)
        begin = self._sizes.setdefault(kind, 0)  # before it is written: it is deleted, too, if the disk is full
        with writing(self._path(kind)), open(self._path(kind), "ab", opener=_private) as file:
            for array in arrays:
                file.write(array.data)
        content = np.asarray(np.memmap(self._path(kind), np.uint8, "r", begin))
        placed, at = [], 0
        for array in arrays:
            pixels = content[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            placed.append(((begin + at) // array.itemsize, pixels))
            at += array.nbytes
            self._dtypes[kind] = str(array.dtype)
        self._sizes[kind] += at
        return placed

    def file(self, kind: str) -> PixelFile:
        """All that was put there."""
        return PixelFile(self._path(kind), self._sizes[kind], self._dtypes[kind])

    def _path(self, kind: str) -> Path:
        return self._folder / f".{self._name}~{self._token}~{kind}.pixels"


def _private(path: str, flags: int) -> int:
    """Pictures are their owner's, and the system's folder for temporary files is everybody's."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def system_memory(what: str) -> float:
    """Bytes: MemTotal, MemAvailable; infinite where the system does not say."""
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith(f"{what}:")), math.inf)
