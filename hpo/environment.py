"""Prepares a process before anything else is imported: our packages come first, and the user has a name and a home."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = str(Path(__file__).parents[1])
_OWN_PACKAGES = ("hpo", "model", "search_spaces")
_VARIABLE = "PYTHONPATH"
_NO_HOME = "/proc/nowhere"  # does not exist, and nobody can create it


def prepare_process() -> None:
    """Prepare this process. Containers run as users without an entry in passwd, and without HOME. Ray, W&B and torch
    need both when they are imported, or raise. They can do without the files that they would keep in HOME."""
    _put_own_packages_first()
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _NO_HOME
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


# --- imports: a user's files may be called `model` or `torch`, too --------------------------------------------------


def _put_own_packages_first() -> None:
    """Move the user's folders with shadowing names to the end of this process's path. The rest of their contents, such
    as what a search space imports, is still found."""
    users = {_absolute(entry) for entry in ("", *_python_path())}
    late = [entry for entry in sys.path if _absolute(entry) in users and shadowing_names(entry)]
    if late:
        sys.path[:] = [*(entry for entry in sys.path if entry not in late), ROOT, *late]


def shadowing_names(folder: str) -> list[str]:
    """Names in a folder that Python would import in place of our packages, or of an installed package.

    An installed package is shadowed only by a file, such as `torch.py`: some machines provide whole packages on
    PYTHONPATH.
    """
    specs = {name: PathFinder.find_spec(name, [folder or "."]) for name in _OWN_PACKAGES}
    own = [name for name, spec in specs.items() if spec and spec.origin and not _is_ours(name, spec.origin)]
    files = {path.stem for path in Path(folder).glob("*.py")} - set(_OWN_PACKAGES)
    sites = _site_packages()
    return own + sorted(name for name in files if any((Path(at) / name / "__init__.py").is_file() for at in sites))


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except FileNotFoundError:  # the current folder was deleted, so nothing in it shadows a package
        return entry


def _is_ours(name: str, file: str) -> bool:
    return os.path.realpath(file) == os.path.realpath(os.path.join(ROOT, name, "__init__.py"))


@contextmanager
def clean_python_path() -> Iterator[None]:
    """Remove folders with shadowing names from the PYTHONPATH of processes that are started meanwhile: workers run none
    of the user's code."""
    before = os.environ.get(_VARIABLE)
    kept = os.pathsep.join(entry for entry in _python_path() if not shadowing_names(entry))
    if before is not None:
        os.environ[_VARIABLE] = kept
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VARIABLE] = before


def worker_path() -> list[str]:
    """The first folders on the path of a search's workers: these sources, where they are not installed."""
    return [] if ROOT in _site_packages() else [ROOT]


def _python_path() -> list[str]:
    return os.environ.get(_VARIABLE, "").split(os.pathsep) if os.environ.get(_VARIABLE) else []


def _site_packages() -> list[str]:
    return [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
