"""The decisions of a search, pure: (record, seed) -> next configuration; (record, trial) -> go on or stop.

An Optuna sampler takes the ones and an Optuna pruner the others, each in a study of the trials as they were then. No
Ray, no clock: the same record gives the same decision, after a restart and in a simulator too. A record is the study's
trials; the user attributes that count are named here.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, create_trial

import search_spaces
from hpo.policy import plugins
from hpo.policy.pruning import is_dead
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import CONFIG, FIXED_PARAMS, KEPT, QUEUED, REPORTS, REPORTS_AT_SUGGESTION, SUGGESTED_BY
from hpo.policy.trial_history import in_memory_study
from model.common.errors import ConfigError, ErrorCollector
from model.common.text import did_you_mean
from model.config import TrainConfig
from search_spaces import Space

_LEARNED_TRIES = 20  # at a configuration that was not there before; a small space makes a sampler repeat its favourites
_TRIES = 1_000  # then at random: all of 100 configurations are found


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """The next trial: Optuna's parameters and what they make of the base configuration."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    config: TrainConfig
    by: str  # "starting point", "queued", "random", or the sampler's name
    kept: Mapping[str, Any] = field(default_factory=dict)  # by the sampler, for its next suggestions

    def user_attrs(self, heard: int) -> dict[str, Any]:
        """Of a trial that begins with it. heard: reports of the whole search so far."""
        kept = {KEPT: dict(self.kept)} if self.kept else {}
        return {CONFIG: self.config.as_dict(), SUGGESTED_BY: self.by, REPORTS_AT_SUGGESTION: heard, REPORTS: [], **kept}


def suggest(trials: Sequence[FrozenTrial], space: Space, search: SearchConfig) -> Suggestion | None:
    """The next configuration, from all trials so far; None when a finite space holds no other.

    A sampler is made anew for each trial from (search seed, trial number): hpo.policy.plugins. Raises ConfigError where it is
    a user's, and fails.
    """
    number, base = len(trials), search.base_config()
    seen = [trial.params for trial in trials]
    for attempt in range(_TRIES):
        seed, by = _seed(search, number, attempt), search.sampler
        sampler = plugins.sampler(search, seed) if attempt < _LEARNED_TRIES else RandomSampler(seed=seed)
        study = in_memory_study(trials, sampler)
        if attempt == 0 and number < len(space.starting_points):
            by = "starting point"
            study.enqueue_trial(dict(space.starting_points[number]))
        trial, config = _asked(study, space, base, search.sampler)
        if by != "starting point" and (attempt >= _LEARNED_TRIES or _is_random(trial, search.sampler)):
            by = "random"
        if trial.params not in seen:
            return _suggestion(study, trial, config, by)
    return None


def suggest_queued(
    params: Mapping[str, Any], trials: Sequence[FrozenTrial], space: Space, search: SearchConfig
) -> Suggestion:
    """The next configuration where somebody has put it into the study (Optuna's enqueue_trial); the sampler suggests
    what is not in `params`. Raises ConfigError where that is no configuration of the space."""
    study = in_memory_study(trials, plugins.sampler(search, _seed(search, len(trials), 0)))
    study.enqueue_trial(dict(params))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Optuna's, of what is refused below
        trial, config = _asked(study, space, search.base_config(), search.sampler)
    if unknown := sorted(set(params) - set(trial.params)):
        raise ConfigError(
            f"{unknown[0]}: the space suggests no such parameter. {did_you_mean(unknown[0], trial.params)}"
        )
    try:  # Optuna asks with values out of range, and refuses to keep them
        create_trial(value=0.0, params=trial.params, distributions=trial.distributions)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return _suggestion(study, trial, config, QUEUED)


def _suggestion(study: optuna.Study, trial: optuna.Trial, config: TrainConfig, by: str) -> Suggestion:
    kept = study._storage.get_trial_system_attrs(trial._trial_id)
    kept = {name: value for name, value in kept.items() if name != FIXED_PARAMS}
    return Suggestion(params=trial.params, distributions=trial.distributions, config=config, by=by, kept=kept)


def check_plugins(search: SearchConfig) -> None:
    """Before anything is started: that sampler and pruner can be made, and that a user's sampler has a suggestion once
    trials are complete, of which three are made up here. Raises ConfigError, with the mistakes of both."""
    mistakes = ErrorCollector()
    with mistakes.catch():
        plugins.sampler(search, 0)
    with mistakes.catch():
        plugins.pruner(search, is_dead)
    mistakes.raise_if_any()
    if not search.sampler.endswith(".py"):
        return
    space = search_spaces.load(search.space)
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    for _ in range(3):
        trial = study.ask()
        space.sample(trial, search.base_config())
        study.tell(trial, 0.5)
    asked = in_memory_study(study.get_trials(deepcopy=False), plugins.sampler(search, 0))
    _asked(asked, space, search.base_config(), search.sampler)


def _asked(study: optuna.Study, space: Space, base: TrainConfig, name: str) -> tuple[optuna.Trial, TrainConfig]:
    """Raises ConfigError where a user's sampler fails, or keeps what only a study that lives on would have."""
    try:
        trial = study.ask()
        config = space.sample(trial, base)
    except ConfigError as error:  # the space's, or of a sampler that it asked for a value
        raise ConfigError(f"sampler={name}: {error}" if name.endswith(".py") else str(error)) from error
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"sampler={name}: {type(error).__name__}: {error}") from error
    if study._storage.get_study_system_attrs(study._study_id):
        raise ConfigError(
            f"sampler={name}: it keeps something in the study itself, as QMCSampler does. Here each suggestion comes "
            "from a new sampler in a new study of the trials on record, so that only what it keeps with a trial is "
            "there the next time. Choose another sampler"
        )
    return trial, config


def _is_random(trial: optuna.Trial, sampler: str) -> bool:
    """Whether a sampler of ours drew it at random, as it does with the first ones."""
    return sampler in ("gp", "tpe", "random") and not trial.relative_params


def _seed(search: SearchConfig, number: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{search.seed} {number} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
