"""Creates the sampler of a search: the surrogate sampler, TPE, random, or one from a user's file."""

from __future__ import annotations

import warnings
from functools import partial

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from hpo.policy.search_config import SearchConfig
from hpo.policy.surrogate_sampler import SurrogateSampler
from hpo.policy.trial_objectives import points_by_epoch
from hpo.policy.user_files import load_from_file


def create_sampler(search: SearchConfig, seed: int) -> BaseSampler:
    """Make a new sampler, so that a suggestion depends on the study and the seed alone.

    Raises:
        ConfigError: the user's file fails, or returns something else.
    """
    if search.sampler == "gp":
        points = partial(points_by_epoch, search=search) if search.is_multi_objective else None
        return SurrogateSampler(seed=seed, epochs=search.epochs, points=points)
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
    from_file: BaseSampler = load_from_file("sampler", search.sampler, BaseSampler, "sampler(seed)", seed)
    return from_file
