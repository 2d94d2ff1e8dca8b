"""Lists the image files below a folder or an s3:// prefix, and the files that are skipped. No image is read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..common import s3
from ..common.errors import ConfigError, MachineError
from .folder_layout import describe_skipped
from .image_formats import IMAGE_SUFFIXES, DataError
from .image_reading import check_size, read_file

_SHOWN = 5  # names in a message
_S3_ATTEMPTS = 5  # a request to a server that hangs takes a minute in all


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """Paths below the folder, `/` between their parts."""

    images: Mapping[str, Callable[[], bytes]]  # a function that reads each file; it raises ImageError
    skipped: tuple[str, ...]


def list_files(where: str) -> FolderFiles:
    """List the files of a folder or of s3://BUCKET/PREFIX.

    Raises:
        DataError: the place is not found, may not be read or has no images.
        MachineError: an S3 server does not answer.
    """
    files = _list_s3(where) if where.startswith("s3://") else _list_local(Path(where))
    if not files.images:
        problem = f"data={where}: has no images ({', '.join(IMAGE_SUFFIXES)})"
        raise DataError("\n".join([problem, *describe_skipped(files.skipped)]))
    return files


def _list_local(folder: Path) -> FolderFiles:
    if not os.path.isdir(folder):
        raise DataError(
            f"data={folder}: is not a folder or a known data set (fashion-mnist). "
            "If the folder has moved, give its new path with --data"
        )
    root, images, skipped, leaving = Path(os.path.realpath(folder)), {}, [], []
    unreadable: list[OSError] = []  # folders; without this list they would count as empty
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        inside = Path(parent).relative_to(folder)
        passed = {name for name in folders if name.startswith(".") or os.path.islink(Path(parent) / name)}
        skipped += [f"{(inside / name).as_posix()}/" for name in sorted(passed)]
        for name in sorted([*names, *(name for name in passed if name[0] != ".")]):
            path, is_file = Path(parent) / name, name not in passed
            if is_file and not _is_image(name):
                skipped.append((inside / name).as_posix())
                continue
            if not Path(os.path.realpath(path)).is_relative_to(root):
                leaving.append(str(path))
            if is_file:
                images[(inside / name).as_posix()] = functools.partial(read_file, path)
        folders[:] = sorted(set(folders) - passed)
    if unreadable:
        lines = [f"data={folder}: {error.filename}: {error.strerror}" for error in unreadable[:_SHOWN]]
        raise DataError("\n".join(lines))
    if leaving:
        raise DataError(f"data={folder}: links that leave the folder: {', '.join(leaving[:_SHOWN])}")
    return FolderFiles(images, tuple(skipped))


def _list_s3(address: str) -> FolderFiles:
    from pyarrow import fs  # noqa: PLC0415 - loading it takes seconds

    with _clear_s3_errors(address):
        system, root = s3.connect(address, _S3_ATTEMPTS)
        listed = system.get_file_info(fs.FileSelector(root, recursive=True))

    def read(path: str, size: int) -> bytes:
        check_size(path, size)
        with _clear_s3_errors(address), system.open_input_file(path) as file:
            content: bytes = file.read()
            return content

    infos = {info.path[len(root) :].lstrip("/"): info for info in listed if info.is_file}
    images = {
        name: functools.partial(read, info.path, info.size) for name, info in sorted(infos.items()) if _is_image(name)
    }
    return FolderFiles(images, tuple(sorted(infos.keys() - images.keys())))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in name.split("/"))


@contextmanager
def _clear_s3_errors(address: str) -> Iterator[None]:
    """Raise DataError for what the user can correct, and MachineError for a server that does not answer."""
    try:
        yield
    except ConfigError as error:
        raise DataError(f"data={error}") from None
    except (OSError, ValueError) as error:
        if s3.is_refusal(error):
            raise DataError(f"data={address}: not found, or access denied ({error})") from error
        raise MachineError(f"data={address}: cannot be read ({error}). Run the same command to try again") from error
