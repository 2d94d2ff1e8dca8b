"""Loads a search space from a module of this package or from a user's file."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.common.text import did_you_mean

from ._space import Space, SpaceError, to_plain


def names() -> list[str]:
    """The spaces that come with the program."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def load(name: str) -> Space:
    """Load a space.

    Args:
        name: a module of this package, or the path of a Python file; it defines suggest(trial, base) and perhaps
            STARTING_POINTS.

    Raises:
        SpaceError: there is no such space, or the file fails or lacks something.
    """
    if name.endswith(".py"):
        module = run_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"search_spaces.{name}")
    else:
        raise SpaceError(
            f"space={name}: no such space. {did_you_mean(name, names())} Or pass a file, such as my_space.py"
        )
    suggest = getattr(module, "suggest", None)
    if not callable(suggest):
        raise SpaceError(f"space={name}: defines no suggest(trial, base)")
    points = getattr(module, "STARTING_POINTS", ())
    if not isinstance(points, Sequence) or not all(_is_point(point) for point in points):
        raise SpaceError(f"space={name}: STARTING_POINTS must be a list of mappings, such as [{{'lr_g': 0.001}}]")
    plain = ({name: to_plain(value) for name, value in point.items()} for point in points)
    return Space(name=name, suggest=suggest, starting_points=tuple(plain))


def _is_point(point: Any) -> bool:
    return isinstance(point, Mapping) and all(isinstance(name, str) for name in point)


def run_file(path: Path, option: str = "space") -> types.ModuleType:
    """Run a user's Python file. It can import the modules beside it; no bytecode is written there.

    Args:
        path: of the file.
        option: the option that names it, for error messages.

    Raises:
        SpaceError: the file does not exist, or raises something.
    """
    if not os.path.isfile(path):
        raise SpaceError(f"{option}={path}: file not found")
    module = types.ModuleType(f"user_{option}_{path.stem}")
    module.__file__ = str(path)
    try:
        with _importing_from(os.path.dirname(os.path.realpath(path))):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise SpaceError(f"{option}={path}: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Find modules in a folder, after all others, and forget them at the end: another file may have its own ones."""
    modules_before, dont_write_bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.append(folder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = dont_write_bytecode
        if folder in sys.path:  # the last entry: the file may have added the folder itself, too
            del sys.path[-1 - sys.path[::-1].index(folder)]
        for name in set(sys.modules) - modules_before:
            own = os.path.join(folder, name.partition(".")[0])  # not what lies deeper, such as in a .venv
            if (getattr(sys.modules[name], "__file__", None) or "").startswith((f"{own}.py", f"{own}{os.sep}")):
                del sys.modules[name]
