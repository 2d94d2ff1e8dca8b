"""Search methods that others wrote, called as their own programs call them. All get the space's starting points.

A training that diverges ends by itself, with the objective's floor as its last value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from hpo.config import SearchConfig
from model.metrics import EvalReport
from search_spaces import Space


class OptunaStudy:
    """A sampler and a pruner of Optuna's, asked and told."""

    def __init__(self, space: Space, search: SearchConfig, sampler: BaseSampler, pruner: BasePruner) -> None:
        self._space, self._base = space, search.base_config()
        name = f"replay {search.seed}"  # Hyperband draws brackets from it
        self._study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner, study_name=name)
        for point in space.starting_points:
            self._study.enqueue_trial(dict(point))
        self._trials: dict[int, optuna.Trial] = {}

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Always a new trial."""
        trial = self._study.ask()
        self._space.suggest(trial, self._base)
        self._trials[trial.number] = trial
        return trial.number, trial.params

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Full length is COMPLETE; diverged is PRUNED, as an objective would raise TrialPruned."""
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

    The paper chooses once, among all trials of a search. A search without an end does it in rounds: 30 epochs of
    which one each decides, and 33 more.
    """

    def __init__(self, space: Space, search: SearchConfig, *, trials: int = 30, best: int = 3) -> None:
        super().__init__(space, search, RandomSampler(seed=search.seed), NopPruner())
        self._size, self._best, self._asked = trials, best, 0
        self._values: dict[int, float] = {}  # of this round
        self._resumed: list[int] = []

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """None while the last ones of a round are in their first epoch."""
        if self._resumed:
            key = self._resumed.pop(0)
            return key, self._trials[key].params
        if self._asked == self._size:
            return None
        self._asked += 1
        return super().next()

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """A round's last first epoch ends it. What diverged in the first epoch can not go on."""
        if report.epoch > 1:
            return not is_last
        self._values[key] = float("-inf") if is_last else value
        if len(self._values) == self._size:
            ranked = sorted(self._values, key=lambda trial: -self._values[trial])[: self._best]
            self._resumed = [trial for trial in ranked if self._values[trial] > float("-inf")]
            self._values, self._asked = {}, 0
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
        """Always a new trial."""
        key = len(self._trials)
        self._trials.append(SimpleNamespace(trial_id=str(key)))
        self._scheduler.on_trial_add(None, self._trials[key])
        return key, self._searcher.suggest(str(key))

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Without asking the scheduler a trial ends that says `done` itself, here a diverged one."""
        trial, result = self._trials[key], {"training_iteration": report.epoch, "value": value}
        if not is_last and self._scheduler.on_trial_result(None, trial, result) == "CONTINUE":
            self._searcher.on_trial_result(trial.trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)
        self._searcher.on_trial_complete(trial.trial_id, result)
        return False


class SyneTune:
    """One of its schedulers, called as its Tuner does. It knows no conditional parameters: all are always suggested."""

    def __init__(self, space: Space, search: SearchConfig, *, scheduler: str) -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)  # it warns of how its ASHA calls its own searcher
        self._new_trial = import_module("syne_tune.backend.trial_status").Trial
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
        """Always a new trial."""
        key, config = len(self._trials), self._scheduler.suggest().config
        self._trials.append(self._new_trial(trial_id=key, config=config, creation_time=datetime.min))
        self._scheduler.on_trial_add(self._trials[key])
        return key, config

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """The reduction factor is 3, its default."""
        trial, result = self._trials[key], {"epoch": report.epoch, "value": value}
        decision = self._scheduler.on_trial_result(trial, result)
        if decision == "CONTINUE" and not is_last:
            return True
        if decision == "STOP":
            self._scheduler.on_trial_remove(trial)
        else:
            self._scheduler.on_trial_complete(trial, result)
        return False


def _syne_tune_space(space: Space, search: SearchConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The space without its conditions, and the middle of each numeric range."""
    domains, found, middle = import_module("syne_tune.config_space"), {}, {}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(100):  # every branch
        trial = study.ask()
        space.suggest(trial, search.base_config())
        for name, of in trial.distributions.items():
            if isinstance(of, CategoricalDistribution):
                found[name] = domains.choice(list(of.choices))
            else:
                found[name] = (domains.loguniform if of.log else domains.uniform)(of.low, of.high)
                middle[name] = (of.low * of.high) ** 0.5 if of.log else (of.low + of.high) / 2
    return found, middle


def _optuna(space: Space, search: SearchConfig, *, pruner: Callable[[], BasePruner]) -> OptunaStudy:
    return OptunaStudy(space, search, TPESampler(seed=search.seed), pruner())


def _hyperband(space: Space, search: SearchConfig) -> OptunaStudy:
    return _optuna(space, search, pruner=lambda: HyperbandPruner(min_resource=1, max_resource=search.epochs))


_halving = partial(SuccessiveHalvingPruner, min_resource=1)
METHODS: dict[str, Callable[[Space, SearchConfig], Any]] = {
    "one epoch then best": OneEpoch,
    "Ray TPE + ASHA 4": partial(RayTune, reduction=4),  # Ray's default
    "Ray TPE + ASHA 3": partial(RayTune, reduction=3),
    "Optuna TPE + halving 4": partial(_optuna, pruner=_halving),  # Optuna's default
    "Optuna TPE + halving 3": partial(_optuna, pruner=partial(_halving, reduction_factor=3)),
    "Optuna TPE + Hyperband 3": _hyperband,
    "Syne Tune ASHA": partial(SyneTune, scheduler="ASHA"),
    "Syne Tune BOHB": partial(SyneTune, scheduler="BOHB"),
}
