"""Suggests the next configuration of a search: from a new Optuna sampler, seeded by the search's seed and the trial's
number, in a new study of the trials on record. So the same record gives the same suggestion, after a restart too."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

import search_spaces
from hpo.policy import pruners, samplers
from hpo.policy.report_decision import is_dead
from hpo.policy.search_config import SAMPLERS, SearchConfig
from hpo.policy.trial_attributes import CONFIG, FIXED_PARAMS, KEPT, QUEUED, REPORTS, REPORTS_AT_SUGGESTION, SUGGESTED_BY
from hpo.policy.trial_history import in_memory_study
from model.common.errors import ConfigError, ErrorCollector
from model.common.text import did_you_mean
from model.config import TrainConfig
from search_spaces import Space

_SAMPLER_TRIES = 20  # at a new configuration; in a small space a sampler repeats its favourites
_TRIES = 1_000  # in all, the later ones at random: they find each of 100 configurations


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A configuration for a new trial."""

    params: Mapping[str, Any]  # Optuna's
    distributions: Mapping[str, BaseDistribution]
    config: TrainConfig
    by: str  # "starting point", "queued", "random", or the sampler's name
    kept: Mapping[str, Any] = field(default_factory=dict)  # Optuna's system attributes that the sampler set

    def user_attrs(self, num_reports: int) -> dict[str, Any]:
        """The user attributes of a trial that begins with it. num_reports: of the whole search so far."""
        return {
            CONFIG: self.config.as_dict(),
            SUGGESTED_BY: self.by,
            REPORTS_AT_SUGGESTION: num_reports,
            REPORTS: [],
            **({KEPT: dict(self.kept)} if self.kept else {}),
        }


def suggest(trials: Sequence[FrozenTrial], space: Space, search: SearchConfig) -> Suggestion | None:
    """Suggest the next configuration; None if a finite space has no other one. trials: all so far, by number. Raises
    ConfigError if a user's sampler or space fails."""
    number, base = len(trials), search.base_config()
    known_params = [trial.params for trial in trials]
    for attempt in range(_TRIES):
        seed, by = _seed(search, number, attempt), search.sampler
        sampler = samplers.create_sampler(search, seed) if attempt < _SAMPLER_TRIES else RandomSampler(seed=seed)
        study = in_memory_study(trials, sampler, directions=search.directions)
        if attempt == 0 and number < len(space.starting_points):
            by = "starting point"
            study.enqueue_trial(dict(space.starting_points[number]))
        trial, config = _ask(study, space, base, search.sampler)
        # Our samplers draw the first trials, and some later ones, at random.
        is_random = attempt >= _SAMPLER_TRIES or (search.sampler in SAMPLERS and not trial.relative_params)
        if by != "starting point" and is_random:
            by = "random"
        if trial.params not in known_params:
            return _suggestion(study, trial, config, by)
    return None


def suggest_queued(
    params: Mapping[str, Any], trials: Sequence[FrozenTrial], space: Space, search: SearchConfig
) -> Suggestion:
    """Complete the parameters of a trial that a user queued with Optuna's enqueue_trial, with the search's sampler.
    Raises ConfigError for parameters that are not in the space."""
    sampler = samplers.create_sampler(search, _seed(search, len(trials), 0))
    study = in_memory_study(trials, sampler, directions=search.directions)
    study.enqueue_trial(dict(params))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a value that is refused below
        trial, config = _ask(study, space, search.base_config(), search.sampler)
    if unknown := sorted(set(params) - set(trial.params)):
        nearest = did_you_mean(unknown[0], trial.params)
        raise ConfigError(f"{unknown[0]}: the space suggests no such parameter. {nearest}")
    space.check_range(trial)
    return _suggestion(study, trial, config, QUEUED)


def _suggestion(study: optuna.Study, trial: optuna.Trial, config: TrainConfig, by: str) -> Suggestion:
    kept = study._storage.get_trial_system_attrs(trial._trial_id)
    kept = {name: value for name, value in kept.items() if name != FIXED_PARAMS}
    return Suggestion(params=trial.params, distributions=trial.distributions, config=config, by=by, kept=kept)


def check_space(search: SearchConfig | None, current: SearchConfig, options: Mapping[str, Any]) -> None:
    """Check that the space of a request can be searched.

    Args:
        search: the requested configuration; None if it is invalid; the defaults are taken then.
        current: the search's configuration before the request.
        options: fields of SearchConfig that the user gave.

    Raises:
        ConfigError: the space is missing, fails, or suggests invalid settings.
    """
    base = search.base_config() if search else TrainConfig()
    search_spaces.load(options.get("space", current.space)).check(base, options.get("set", current.set))


def check_plugins(search: SearchConfig) -> None:
    """Check, before anything is started, that sampler and pruner can be made, and that a user's sampler makes a
    suggestion after three complete trials. Raises ConfigError with the errors of both."""
    errors = ErrorCollector()
    errors.attempt(samplers.create_sampler, search, 0)
    errors.attempt(pruners.create_pruner, search, is_dead)
    errors.raise_if_any()
    if not search.sampler.endswith(".py"):
        return
    space = search_spaces.load(search.space)
    study = optuna.create_study(directions=search.directions, sampler=RandomSampler(seed=0))
    for _ in range(3):
        trial = study.ask()
        space.sample(trial, search.base_config())
        study.tell(trial, [0.5] * len(search.directions))
    trials, sampler = study.get_trials(deepcopy=False), samplers.create_sampler(search, 0)
    study = in_memory_study(trials, sampler, directions=search.directions)
    _ask(study, space, search.base_config(), search.sampler)


def _ask(study: optuna.Study, space: Space, base: TrainConfig, sampler: str) -> tuple[optuna.Trial, TrainConfig]:
    """Raises ConfigError if a user's sampler fails, or relies on attributes of the study, which do not persist."""
    try:
        trial = study.ask()
        config = space.sample(trial, base)
    except ConfigError as error:  # from the space, or from a sampler that suggests a value for it
        raise ConfigError(f"sampler={sampler}: {error}" if sampler.endswith(".py") else str(error)) from error
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"sampler={sampler}: {type(error).__name__}: {error}") from error
    if study._storage.get_study_system_attrs(study._study_id):
        raise ConfigError(
            f"sampler={sampler}: it keeps something in the study itself, as QMCSampler does. Here each suggestion "
            "comes from a new sampler in a new study of the trials on record, so that only attributes of trials "
            "persist. Choose another sampler"
        )
    return trial, config


def _seed(search: SearchConfig, number: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{search.seed} {number} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
