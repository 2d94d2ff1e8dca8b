"""A sampler or pruner from a user's file, and the digest of that file."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import search_spaces
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError


def digests(search: SearchConfig) -> dict[str, str | None]:
    """SHA-256 of the user's files, by option."""
    paths = {"sampler": search.sampler, "pruner": search.pruner}
    return {option: digest(path) for option, path in paths.items() if path.endswith(".py")}


def digest(path: str) -> str | None:
    """SHA-256 of a file; None: it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def load_from_file(option: str, path: str, kind: type, signature: str, *arguments: Any) -> Any:
    function = getattr(_module(option, path), option, None)
    if not callable(function):
        raise ConfigError(f"{option}={path}: the file must define {signature}, which returns an optuna {kind.__name__}")
    try:
        made = function(*arguments)
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"{option}={path}: {signature}: {type(error).__name__}: {error}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{option}={path}: {signature} returns {type(made).__name__}, not an optuna {kind.__name__}")
    return made


@functools.cache  # needed for every trial
def _module(option: str, path: str) -> Any:
    return search_spaces.run_file(Path(path), option)
