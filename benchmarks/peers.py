"""Search methods of other libraries, called as their own programs call them. All get the space's starting points.

A training that diverges ends by itself, with the objective's floor as its last value.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from hpo.policy.search_config import SearchConfig
from model.training_report import EvalReport
from search_spaces import Space

ENDLESS = 1_000  # trials; a search with as many ends only by its result


class OptunaStudy:
    """Any sampler and any pruner of Optuna, through ask and tell."""

    def __init__(self, space: Space, search: SearchConfig, sampler: BaseSampler, pruner: BasePruner) -> None:
        self._space, self._base = space, search.base_config()
        name = f"replay {search.seed}"  # Hyperband draws brackets from it
        self._study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner, study_name=name)
        for point in space.starting_points:
            self._study.enqueue_trial(dict(point))
        self._trials: dict[int, optuna.Trial] = {}

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return a new trial."""
        trial = self._study.ask()
        self._space.suggest(trial, self._base)
        self._trials[trial.number] = trial
        return trial.number, trial.params

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Report an epoch; a full-length trial is COMPLETE, a diverged one PRUNED, as if it raised TrialPruned."""
        trial = self._trials[key]
        trial.report(value, report.epoch)
        if report.epoch == self._base.epochs:
            self._study.tell(trial, value)
        elif is_last or trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            return True
        return False


class OneEpoch(OptunaStudy):
    """All trials one epoch, then the best 3 to the end (Egele et al. 2023, arXiv 2307.15422).

    The paper chooses once, among all trials of a search. A search without an end does it in rounds of 30 trials: one
    epoch each, and 33 epochs more for the best.
    """

    def __init__(self, space: Space, search: SearchConfig, *, best: int = 3) -> None:
        super().__init__(space, search, RandomSampler(seed=search.seed), NopPruner())
        self._size, self._best, self._started = search.trials if search.trials < ENDLESS else 30, best, 0
        self._values: dict[int, float] = {}  # of this round
        self._resumed: list[int] = []

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return a new or a resumed trial; None while a round's last trials are in their first epoch."""
        if self._resumed or self._started == self._size:
            return self.resume()
        self._started += 1
        return super().next()

    def resume(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return the next of a round's best trials."""
        if not self._resumed:
            return None
        key = self._resumed.pop(0)
        return key, self._trials[key].params

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """End a round with its last first epoch. A trial that diverged in the first epoch cannot continue."""
        if report.epoch > 1:
            return not is_last
        self._values[key] = float("-inf") if is_last else value
        if len(self._values) == self._size:
            ranked = sorted(self._values, key=lambda trial: -self._values[trial])[: self._best]
            self._resumed = [trial for trial in ranked if self._values[trial] > float("-inf")]
            self._values, self._started = {}, 0
        return False


class RayTune:
    """ASHA over OptunaSearch (TPE), called as Ray's TuneController calls them."""

    def __init__(self, space: Space, search: SearchConfig, *, reduction: int) -> None:
        base = search.base_config()

        def suggest(trial: Any) -> None:
            space.suggest(trial, base)

        points = [dict(point) for point in space.starting_points]
        self._searcher = OptunaSearch(suggest, points_to_evaluate=points, metric="value", mode="max", seed=search.seed)
        self._scheduler = AsyncHyperBandScheduler(
            metric="value", mode="max", max_t=search.epochs, grace_period=1, reduction_factor=reduction
        )
        self._trials: list[Any] = []

    def next(self) -> tuple[int, Mapping[str, Any]]:
        """Return a new trial."""
        key = len(self._trials)
        self._trials.append(SimpleNamespace(trial_id=str(key)))
        self._scheduler.on_trial_add(None, self._trials[key])
        return key, self._searcher.suggest(str(key))

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """A trial that reports `done` itself, such as a diverged one, ends without the scheduler."""
        trial, result = self._trials[key], {"training_iteration": report.epoch, "value": value}
        if not is_last and self._scheduler.on_trial_result(None, trial, result) == "CONTINUE":
            self._searcher.on_trial_result(trial.trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)
        self._searcher.on_trial_complete(trial.trial_id, result)
        return False


class SyneTune:
    """A scheduler of Syne Tune, called as its Tuner does. It suggests conditional parameters always."""

    def __init__(self, space: Space, search: SearchConfig, *, scheduler: str) -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)  # it warns of how its ASHA calls its own searcher
        self._new_trial = import_module("syne_tune.backend.trial_status").Trial
        _seed(search)
        config_space, middle = _syne_tune_space(space, search)
        self._scheduler = getattr(import_module("syne_tune.optimizer.baselines"), scheduler)(
            config_space,
            metric="value",
            time_attr="epoch",
            max_t=search.epochs,
            do_minimize=False,
            random_seed=search.seed,
            points_to_evaluate=[{**middle, **point} for point in space.starting_points],
        )
        self._trials: list[Any] = []

    def next(self) -> tuple[int, Mapping[str, Any]]:
        """Return a new trial."""
        key, config = len(self._trials), self._scheduler.suggest().config
        self._trials.append(self._new_trial(trial_id=key, config=config, creation_time=datetime.min))
        self._scheduler.on_trial_add(self._trials[key])
        return key, config

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Report an epoch; the reduction factor is 3, the default."""
        trial, result = self._trials[key], {"epoch": report.epoch, "value": value}
        decision = self._scheduler.on_trial_result(trial, result)
        if decision == "CONTINUE" and not is_last:
            return True
        if decision == "STOP":
            self._scheduler.on_trial_remove(trial)
        else:
            self._scheduler.on_trial_complete(trial, result)
        return False


class NePS:
    """NePS's PriorBand over Hyperband, its default (Mallik et al. 2023, arXiv 2306.12370), through AskAndTell.

    A trial waits at its rung until it is promoted. NePS takes a single prior, so the prior has the values that all
    starting points share, and the starting points replace the first samples. There are no conditional parameters.

    Not in the `benchmark` extra, since it pins gpytorch and keeps pandas and networkx below the versions that
    constraints.txt has. It works with those: pip install --no-deps neural-pipeline-search==0.17.0 botorch==0.12.0
    gpytorch==1.13 ifbo jaxtyping linear_operator matplotlib more_itertools multipledispatch opt_einsum portalocker
    pymoo pyre_extensions pyro_api pyro_ppl seaborn submitit typeguard typing_inspect wadler_lindig contourpy cycler
    fonttools kiwisolver pyparsing mypy_extensions
    """

    def __init__(self, space: Space, search: SearchConfig) -> None:
        neps, space_types = import_module("neps"), import_module("neps.space")
        logging.getLogger("neps").setLevel(logging.ERROR)
        _seed(search)
        self._points = [dict(point) for point in space.starting_points]
        parameters: dict[str, Any] = {"epochs": space_types.HPOInteger(1, search.epochs, is_fidelity=True)}
        for name, domain in _flat(space, search).items():
            values = {point[name] for point in self._points if name in point}
            prior = values.pop() if len(values) == 1 else None
            if isinstance(domain, CategoricalDistribution):
                parameters[name] = space_types.HPOCategorical(list(domain.choices), prior=prior)
            else:
                parameters[name] = space_types.HPOFloat(domain.low, domain.high, log=domain.log, prior=prior)
        self._study = neps.AskAndTell(neps.algorithms.priorband(space_types.SearchSpace(parameters)))
        self._params: dict[int, dict[str, Any]] = {}
        self._rung: dict[int, Any] = {}  # the next rung of each trial
        self._diverged: dict[int, float] = {}
        self._epochs = search.epochs

    def next(self, *, may_begin: bool = True) -> tuple[int, Mapping[str, Any]] | None:
        """Return a promoted or a new trial. A diverged trial that is promoted nevertheless fails again."""
        while True:
            rung = self._study.ask()
            key = int(rung.id.split("_")[0])
            if key not in self._params and not may_begin:
                del self._study.trials[rung.id]  # as if it had not been suggested
                return None
            if key not in self._params:
                if len(self._params) < len(self._points):
                    rung.config.update(self._points[len(self._params)])
                self._params[key] = {name: value for name, value in rung.config.items() if name != "epochs"}
            if key not in self._diverged:
                self._rung[key] = rung
                return key, self._params[key]
            self._study.tell(rung, -self._diverged[key])

    def resume(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return a trial that its bracket promotes."""
        return self.next(may_begin=False)

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Report the epochs of rungs only; NePS minimizes."""
        target = self._rung[key].config["epochs"]
        if not is_last and report.epoch < target:
            return True
        if is_last and report.epoch < self._epochs:
            self._diverged[key] = value
        self._study.tell(self._rung[key], -value)
        return False


def _seed(search: SearchConfig) -> None:
    """Seed the global generators, which some libraries use in spite of their own seed."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(search.seed)


def _flat(space: Space, search: SearchConfig) -> dict[str, BaseDistribution]:
    """The space without its conditions."""
    distributions: dict[str, BaseDistribution] = {}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(100):  # every branch
        trial = study.ask()
        space.suggest(trial, search.base_config())
        distributions |= trial.distributions
    return distributions


def _syne_tune_space(space: Space, search: SearchConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the space without its conditions, and the middle of each numeric range."""
    domains, flat, middle = import_module("syne_tune.config_space"), {}, {}
    for name, values in _flat(space, search).items():
        if isinstance(values, CategoricalDistribution):
            flat[name] = domains.choice(list(values.choices))
        else:
            flat[name] = (domains.loguniform if values.log else domains.uniform)(values.low, values.high)
            middle[name] = (values.low * values.high) ** 0.5 if values.log else (values.low + values.high) / 2
    return flat, middle


def _halving(search: SearchConfig, reduction: int = 3) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=reduction)


def _hyperband(search: SearchConfig) -> BasePruner:
    return HyperbandPruner(min_resource=1, max_resource=search.epochs)


def _optuna(
    space: Space,
    search: SearchConfig,
    *,
    pruner: Callable[[SearchConfig], BasePruner],
    sampler: Callable[..., BaseSampler] = TPESampler,
) -> OptunaStudy:
    return OptunaStudy(space, search, sampler(seed=search.seed), pruner(search))


METHODS: dict[str, Callable[[Space, SearchConfig], Any]] = {
    "one epoch then best": OneEpoch,
    "Ray TPE + ASHA 4": partial(RayTune, reduction=4),  # Ray's default
    "Ray TPE + ASHA 3": partial(RayTune, reduction=3),
    "Optuna TPE + halving 4": partial(_optuna, pruner=partial(_halving, reduction=4)),  # Optuna's default
    "Optuna TPE + halving 3": partial(_optuna, pruner=_halving),
    "Optuna TPE + Hyperband 3": partial(_optuna, pruner=_hyperband),
    # It learns from finished trials only, and draws at random until ten have finished.
    "Optuna GP + halving 3": partial(_optuna, pruner=_halving, sampler=GPSampler),
    "Optuna GP + Hyperband 3": partial(_optuna, pruner=_hyperband, sampler=GPSampler),
    "Syne Tune ASHA": partial(SyneTune, scheduler="ASHA"),
    # It needs more trials than parameters in the best 15 %: up to about 40 trials it equals ASHA.
    "Syne Tune BOHB": partial(SyneTune, scheduler="BOHB"),
    "Syne Tune ASHACQR": partial(SyneTune, scheduler="ASHACQR"),
    "Syne Tune ASHABORE": partial(SyneTune, scheduler="ASHABORE"),
    "NePS PriorBand": NePS,
}
