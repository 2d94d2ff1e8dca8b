"""Search methods of other libraries for several objectives, called as their own programs call them.

All get the space's starting points. Each epoch, or at the end, they are told the objectives of a trial's best epoch so
far. A training that diverges ends by itself, as a failure.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from peers import _flat, _seed

from hpo.policy.search_config import SearchConfig
from model.training_report import EvalReport
from search_spaces import Space

Vector = tuple[float, ...]


class FrontMethod:
    """What the methods have in common."""

    def __init__(self, space: Space, search: SearchConfig) -> None:
        self._space, self._search, self._count = space, search, len(search.objectives)
        self._points = [dict(point) for point in space.starting_points]

    def begin(self, key: int, known: Mapping[str, float]) -> None:
        """These methods have no use for figures that are known before training."""

    def _losses(self, vector: Vector) -> list[float]:
        """All objectives to be minimized."""
        return [-value for value in vector]


class OptunaFront(FrontMethod):
    """A sampler of Optuna. Its studies on several objectives have no pruning, so every trial runs to its end."""

    def __init__(self, space: Space, search: SearchConfig, *, sampler: Callable[..., BaseSampler]) -> None:
        super().__init__(space, search)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message=".*dynamic.*")
        self._study = optuna.create_study(directions=["maximize"] * self._count, sampler=sampler(seed=search.seed))
        for point in self._points:
            self._study.enqueue_trial(point)
        self._trials: dict[int, optuna.Trial] = {}

    def next(self) -> tuple[int, Mapping[str, Any]]:
        """Return a new trial."""
        trial = self._study.ask()
        self._space.suggest(trial, self._search.base_config())
        self._trials[trial.number] = trial
        return trial.number, trial.params

    def report(self, key: int, report: EvalReport, vector: Vector, is_last: bool) -> bool:
        """Tell the end."""
        if is_last and report.epoch == self._search.epochs:
            self._study.tell(self._trials[key], list(vector))
        elif is_last:
            self._study.tell(self._trials[key], state=TrialState.FAIL)
        return not is_last


class SyneTuneFront(FrontMethod):
    """MOASHA or EHVI of Syne Tune, called as its Tuner does. They suggest conditional parameters always.

    Choices are passed by their index, since Syne Tune takes no choices of several types (a depth of 3, 4 or None).
    MOASHA has no starting points of its own: they replace its first random suggestions.
    """

    def __init__(self, space: Space, search: SearchConfig, *, scheduler: str) -> None:
        super().__init__(space, search)
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        self._new_trial = import_module("syne_tune.backend.trial_status").Trial
        _seed(search)
        domains, self._choices = import_module("syne_tune.config_space"), {}
        config_space, middle = {}, {}
        for name, values in _flat(space, search).items():
            if isinstance(values, CategoricalDistribution):
                self._choices[name] = list(values.choices)
                config_space[name] = domains.choice([str(index) for index in range(len(values.choices))])
                middle[name] = "0"
            else:
                config_space[name] = (domains.loguniform if values.log else domains.uniform)(values.low, values.high)
                middle[name] = (values.low * values.high) ** 0.5 if values.log else (values.low + values.high) / 2
        points = [{**middle, **self._encoded(point)} for point in self._points]
        metrics = [f"m{index}" for index in range(self._count)]
        self._is_moasha = scheduler == "MOASHA"
        if self._is_moasha:
            make = import_module("syne_tune.optimizer.schedulers.multiobjective.moasha").MOASHA
            more: dict[str, Any] = {"time_attr": "epoch", "max_t": search.epochs}
            self._first = points
        else:
            make, self._first = import_module("syne_tune.optimizer.baselines").EHVI, []
            more = {"points_to_evaluate": points}
        self._scheduler = make(config_space, metrics=metrics, do_minimize=True, random_seed=search.seed, **more)
        self._trials: list[Any] = []

    def _encoded(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: str(self._choices[name].index(value)) if name in self._choices else value
            for name, value in point.items()
        }

    def next(self) -> tuple[int, Mapping[str, Any]]:
        """Return a new trial."""
        key, config = len(self._trials), self._scheduler.suggest().config
        if key < len(self._first):
            config = self._first[key]
        self._trials.append(self._new_trial(trial_id=key, config=config, creation_time=datetime.min))
        self._scheduler.on_trial_add(self._trials[key])
        params = {name: self._choices[name][int(x)] if name in self._choices else x for name, x in config.items()}
        return key, params

    def report(self, key: int, report: EvalReport, vector: Vector, is_last: bool) -> bool:
        """Report an epoch; MOASHA's reduction factor is 3, the default."""
        trial = self._trials[key]
        result = {"epoch": report.epoch, **{f"m{index}": loss for index, loss in enumerate(self._losses(vector))}}
        if not self._is_moasha:  # it learns from ended trials alone; a diverged one is told its last figures
            if is_last:
                self._scheduler.on_trial_complete(trial, result)
            return not is_last
        decision = self._scheduler.on_trial_result(trial, result)
        if decision == "CONTINUE" and not is_last:
            return True
        if decision == "STOP":
            self._scheduler.on_trial_remove(trial)
        else:
            self._scheduler.on_trial_complete(trial, result)
        return False


class NePSFront(FrontMethod):
    """NePS's Hyperband for several objectives, or PriMO without priors, through AskAndTell. `peers.NePS` lists what to
    install. A trial waits at its rung until it is promoted. There are no conditional parameters."""

    def __init__(self, space: Space, search: SearchConfig, *, algorithm: str) -> None:
        super().__init__(space, search)
        neps, space_types = import_module("neps"), import_module("neps.space")
        logging.getLogger("neps").setLevel(logging.ERROR)
        _seed(search)
        parameters: dict[str, Any] = {"epochs": space_types.HPOInteger(1, search.epochs, is_fidelity=True)}
        self._choices: dict[str, list[Any]] = {}
        for name, domain in _flat(space, search).items():
            if isinstance(domain, CategoricalDistribution):
                self._choices[name] = list(domain.choices)
                parameters[name] = space_types.HPOCategorical([str(index) for index in range(len(domain.choices))])
            else:
                parameters[name] = space_types.HPOFloat(domain.low, domain.high, log=domain.log)
        more = {"prior_centers": {}} if algorithm == "primo" else {}
        make = getattr(import_module("neps.optimizers.algorithms"), algorithm)
        self._study = neps.AskAndTell(make(space_types.SearchSpace(parameters), **more))
        self._params: dict[int, dict[str, Any]] = {}
        self._rung: dict[int, Any] = {}  # the next rung of each trial
        self._diverged: dict[int, list[float]] = {}

    def next(self, *, may_begin: bool = True) -> tuple[int, Mapping[str, Any]] | None:
        """Return a promoted or a new trial. A diverged trial that is promoted nevertheless fails again."""
        while True:
            try:
                rung = self._ask()
            except ValueError as error:  # its ASHA fails while all candidates for a promotion are running
                if "at least one array" in str(error):
                    return None
                raise
            key = int(rung.id.split("_")[0])
            if key not in self._params and not may_begin:
                del self._study.trials[rung.id]  # as if it had not been suggested
                return None
            if key not in self._params:
                if len(self._params) < len(self._points):
                    rung.config.update(self._encoded(self._points[len(self._params)]))
                self._params[key] = {
                    name: self._choices[name][int(value)] if name in self._choices else value
                    for name, value in rung.config.items()
                    if name != "epochs"
                }
            if key not in self._diverged:
                self._rung[key] = rung
                return key, self._params[key]
            self._study.tell(rung, self._diverged[key])

    def _ask(self) -> Any:
        """Ask with unique ids: PriMO numbers a trial by the trials of full length, so the running ones' ids recur."""
        before = dict(self._study.trials)
        rung = self._study.ask()
        if "_" not in rung.id and int(rung.id) in self._params:
            former, rung.metadata.id = rung.id, str(max(self._params) + 1)
            self._study.trials.pop(former)
            if former in before:
                self._study.trials[former] = before[former]
            self._study.trials[rung.id] = rung
        return rung

    def _encoded(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return {n: str(self._choices[n].index(v)) if n in self._choices else v for n, v in point.items()}

    def report(self, key: int, report: EvalReport, vector: Vector, is_last: bool) -> bool:
        """Report the epochs of rungs only."""
        target = self._rung[key].config["epochs"]
        if not is_last and report.epoch < target:
            return True
        if is_last and report.epoch < self._search.epochs:
            self._diverged[key] = self._losses(vector)
        self._study.tell(self._rung[key], self._losses(vector))
        return False

    def resume(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return a trial that its bracket promotes."""
        return self.next(may_begin=False)


def _tpe(seed: int) -> TPESampler:
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


METHODS: dict[str, Callable[..., Any]] = {
    "random": partial(OptunaFront, sampler=RandomSampler),
    "Optuna NSGA-II": partial(OptunaFront, sampler=NSGAIISampler),  # its first 50 trials are random
    "Optuna NSGA-II of 12": partial(OptunaFront, sampler=partial(NSGAIISampler, population_size=12)),
    "Optuna TPE": partial(OptunaFront, sampler=_tpe),
    "Optuna GP": partial(OptunaFront, sampler=partial(GPSampler, deterministic_objective=False)),
    "Syne Tune MOASHA": partial(SyneTuneFront, scheduler="MOASHA"),
    "Syne Tune EHVI": partial(SyneTuneFront, scheduler="EHVI"),
    "NePS MO Hyperband": partial(NePSFront, algorithm="mo_hyperband"),
    "NePS PriMO": partial(NePSFront, algorithm="primo"),
}
