"""The Optuna sampler and pruner of a search: those that come with the program by name, others from a user's file."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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
    """A new one: what it suggests shall depend on the study and the seed alone. Raises ConfigError."""
    if search.sampler == "gp":
        return SurrogateSampler(seed=seed, epochs=search.epochs)
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    if search.sampler == "tpe":
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # group: since 2.8
        return TPESampler(
            seed=seed,
            multivariate=True,  # with group: the setting for spaces whose parameters depend on others
            group=True,
            constant_liar=True,  # trials under way keep others away from their neighbourhood
        )
    made: BaseSampler = _made("sampler", search.sampler, BaseSampler, "sampler(seed)", seed)
    return made


def pruner(search: SearchConfig, is_dead: Callable[[FrozenTrial], bool]) -> BasePruner | None:
    """None: nothing is pruned. Raises ConfigError."""
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
        rule: Literal["leaders", "asha"] = "leaders" if search.pruner == "leaders" else "asha"
        return FormerPruner(rule, grace_period=search.grace_epochs, reduction_factor=search.reduction_factor)
    made: BasePruner = _made("pruner", search.pruner, BasePruner, "pruner()")
    return made


def digests(search: SearchConfig) -> dict[str, str | None]:
    """SHA-256 of the files that they come from, by option."""
    paths = {"sampler": search.sampler, "pruner": search.pruner}
    return {option: digest(path) for option, path in paths.items() if path.endswith(".py")}


def digest(path: str) -> str | None:
    """Of a file; None where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def _made(option: str, path: str, kind: type, how: str, *arguments: Any) -> Any:
    function = getattr(_module(option, path), option, None)
    if not callable(function):
        raise ConfigError(f"{option}={path}: the file must define {how}, which returns an optuna {kind.__name__}")
    try:
        made = function(*arguments)
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"{option}={path}: {how}: {type(error).__name__}: {error}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{option}={path}: {how} returns {type(made).__name__}, not an optuna {kind.__name__}")
    return made


@functools.cache  # for each of many trials
def _module(option: str, path: str) -> Any:
    return search_spaces.run_file(Path(path), option)
