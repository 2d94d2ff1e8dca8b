"""What is put right before anything else is imported: what Python finds under a name, and who the user is."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = str(Path(__file__).parents[1])
_OWN = ("hpo", "model", "search_spaces")
_VARIABLE = "PYTHONPATH"
_NO_HOME = "/proc/nowhere"  # neither is it there, nor can anybody make it


def prepare() -> None:
    """Of this process."""
    _ours_first()
    _be_somebody()


def _be_somebody() -> None:
    """Containers run as users without an entry in passwd, and without HOME. Ray, W&B and torch ask for both where they
    are imported, and raise. What they keep at home they can do without."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _NO_HOME
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


# --- what Python finds: our own `hpo`, `model` and `search_spaces`, as files of a user may be called, too -------------


def _ours_first() -> None:
    """Folders of the user's with something in the way come last on this process's path: the rest of them, such as what
    a space imports, is still found."""
    users = {_absolute(entry) for entry in ("", *_python_path())}
    late = [entry for entry in sys.path if _absolute(entry) in users and in_the_way(entry)]
    if late:
        sys.path[:] = [*(entry for entry in sys.path if entry not in late), ROOT, *late]


def in_the_way(folder: str) -> list[str]:
    """Names in a folder that would be found in place of this program's packages, or of a package that is installed.

    Of what is installed a file such as `torch.py` alone is in the way: a whole package on PYTHONPATH is how some
    machines provide it.
    """
    specs = {name: PathFinder.find_spec(name, [folder or "."]) for name in _OWN}
    found = [name for name, spec in specs.items() if spec and spec.origin and not _is_ours(name, spec.origin)]
    files = {path.stem for path in Path(folder).glob("*.py")} - set(_OWN)
    return found + sorted(name for name in files if any((Path(at) / name / "__init__.py").is_file() for at in _sites()))


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except FileNotFoundError:  # the current folder was deleted, and has nothing that could be in the way
        return entry


def _is_ours(name: str, file: str) -> bool:
    return os.path.realpath(file) == os.path.realpath(os.path.join(ROOT, name, "__init__.py"))


@contextmanager
def for_workers() -> Iterator[None]:
    """What is started inside has nothing on PYTHONPATH that is in the way. Workers run nothing of the user's."""
    before = os.environ.get(_VARIABLE)
    kept = os.pathsep.join(entry for entry in _python_path() if not in_the_way(entry))
    if before is not None:
        os.environ[_VARIABLE] = kept
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VARIABLE] = before


def worker_path() -> list[str]:
    """What comes first on the path of a search's workers: these very sources, where they are not installed."""
    return [] if ROOT in _sites() else [ROOT]


def _python_path() -> list[str]:
    return os.environ.get(_VARIABLE, "").split(os.pathsep) if os.environ.get(_VARIABLE) else []


def _sites() -> list[str]:
    return [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
