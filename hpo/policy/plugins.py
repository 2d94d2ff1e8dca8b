"""Makes the Optuna sampler and pruner of a search: one that comes with the program, or one from a user's file."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

import search_spaces
from hpo.policy.pruners import AshaPruner, FormerPruner
from hpo.policy.search_config import FORMER_PRUNERS, SearchConfig
from hpo.policy.surrogate import SurrogateSampler
from model.common.errors import ConfigError
from model.training_report import SMALL


def sampler(search: SearchConfig, seed: int) -> BaseSampler:
    """Make a new sampler, so that a suggestion depends on the study and the seed alone. Raises ConfigError if the
    user's file fails, or returns something else."""
    if search.sampler == "gp":
        return SurrogateSampler(seed=seed, epochs=search.epochs)
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    if search.sampler == "tpe":
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # `group` is experimental
        return TPESampler(
            seed=seed,
            multivariate=True,  # together with `group`: for spaces whose parameters depend on others
            group=True,
            constant_liar=True,  # keeps suggestions away from running trials
        )
    from_file: BaseSampler = _from_file("sampler", search.sampler, BaseSampler, "sampler(seed)", seed)
    return from_file


def pruner(search: SearchConfig, is_dead: Callable[[FrozenTrial], bool]) -> BasePruner | None:
    """Make the pruner; None: the search has none. is_dead: whether a trial no longer counts as a rival. Raises
    ConfigError as `sampler` does."""
    if search.pruner == "none":
        return None
    if search.pruner == "asha":
        return AshaPruner(
            grace_period=search.grace_epochs,
            reduction_factor=search.reduction_factor,
            epochs=search.epochs,
            min_delta=SMALL[search.objective],
            is_dead=is_dead,
        )
    if search.pruner in FORMER_PRUNERS:
        return FormerPruner(
            "leaders" if search.pruner == "leaders" else "asha",
            grace_period=search.grace_epochs,
            reduction_factor=search.reduction_factor,
        )
    from_file: BasePruner = _from_file("pruner", search.pruner, BasePruner, "pruner()")
    return from_file


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


def _from_file(option: str, path: str, kind: type, signature: str, *arguments: Any) -> Any:
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
