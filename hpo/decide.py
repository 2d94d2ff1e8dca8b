"""The decisions of a search, pure: (record, seed) -> next configuration; (record, trial) -> go on or stop.

No Ray, no clock, no files: the same record gives the same decision, after a restart and in a simulator too. A record
is the study's trials; the user attributes that count are named here.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.config import SearchConfig
from hpo.surrogate import promising
from model.config import TrainConfig
from model.metrics import EvalReport, stop_reason
from search_spaces import Space

CONFIG = "config"  # user attribute: the trial's TrainConfig, as a dict
REPORTS = "reports"  # user attribute: every EvalReport as a dict, and under HEARD when it came
HEARD = "heard"  # how many reports the whole search had had before this one
NODE = "node"  # of a report: the host that trained the epoch, where that is known; decides nothing
BY = "by"  # user attribute: who suggested the trial
ASKED = "asked"  # user attribute: how many reports the search had had when the trial was suggested
FAILURES = "failures"  # each death of its process or node: the epochs it had reported by then, and the error
MOVES = "moves"  # each time its node was taken, no fault of its own: the epochs it had reported by then, and why
ERROR = "error"  # of a trial that failed: why, as text, and how many trials there were by then
DECISION = "decision"  # user attribute of an ended trial: the Decision that ended it, as a dict

_STARTUP_TRIALS = {"surrogate": 6, "tpe": 10, "random": 0}  # random ones first; TPE's is Optuna's default
_RANDOM = 0.3  # of the surrogate's suggestions: parts of the space that it is wrong about are found again
_LEARNED_TRIES = 20  # at a configuration that was not there before; a small space makes a sampler repeat its favourites
_LEADERS = 5  # the best finished trials: who is worse than each of them was is stopped
_TRIES = 1_000  # then at random: all of 100 configurations are found


By = Literal["starting point", "surrogate", "tpe", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """The next trial: Optuna's parameters and what they make of the base configuration."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    config: TrainConfig
    by: By

    def user_attrs(self, heard: int) -> dict[str, Any]:
        """Of a trial that begins with it. heard: reports of the whole search so far."""
        return {CONFIG: self.config.as_dict(), BY: self.by, ASKED: heard, REPORTS: []}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a trial goes on after a report, and why."""

    action: Literal["go on", "complete", "prune"]
    reason: Literal["between rungs", "passed", "finished", "leaders", "asha", "diverged", "collapsed"]
    epoch: int
    value: float
    cutoff: float | None = None  # the rung's bar, where there was one
    set_by: int | None = None  # the trial whose value was the bar
    rivals: int | None = None  # trials whose values were compared
    compared: int | None = None  # the epoch whose values were


def suggest(trials: Sequence[FrozenTrial], space: Space, search: SearchConfig) -> Suggestion | None:
    """The next configuration, from all trials so far; None when a finite space holds no other.

    Made anew for each trial from (search seed, trial number): by the surrogate (hpo.surrogate), by TPE (Bergstra et
    al. 2011), or at random.
    """
    number, base = len(trials), search.base_config()
    seen = [trial.params for trial in trials]
    for attempt in range(_TRIES):
        by: By = search.sampler if attempt < _LEARNED_TRIES and number >= _STARTUP_TRIALS[search.sampler] else "random"
        seed = _seed(search, number, attempt)
        point: Mapping[str, Any] | None = None
        if attempt == 0 and number < len(space.starting_points):
            by, point = "starting point", space.starting_points[number]
        elif by == "surrogate":
            rng = np.random.default_rng(seed)
            if rng.random() >= _RANDOM:
                point = promising(trials, search.epochs, rng)
            by = "random" if point is None else by
        study = in_memory_study(trials, _tpe(seed) if by == "tpe" else optuna.samplers.RandomSampler(seed=seed))
        if point is not None:
            study.enqueue_trial(dict(point))
        trial = study.ask()
        config = space.sample(trial, base)
        if trial.params not in seen:
            return Suggestion(params=trial.params, distributions=trial.distributions, config=config, by=by)
    return None


def in_memory_study(trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """A study of these trials. Optuna's add_trials would copy each, a second for a thousand."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction="maximize", sampler=sampler)
    storage._studies[study._study_id].trials.extend(trials)
    return study


def _seed(search: SearchConfig, number: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{search.seed} {number} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # group: since 2.8
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=_STARTUP_TRIALS["tpe"],
        multivariate=True,  # with group: the setting for spaces whose parameters depend on others
        group=True,
        constant_liar=True,  # trials under way keep others away from their neighbourhood
    )


def rungs(search: SearchConfig) -> tuple[int, ...]:
    """Epochs below the last one whose values are compared: grace; of ASHA grace * reduction and so on, too."""
    found, rung = [], search.grace
    while search.scheduler != "none" and rung < search.epochs:
        found.append(rung)
        rung = rung * search.reduction if search.scheduler == "asha" else search.epochs
    return tuple(found)


def next_rung(epochs: int, search: SearchConfig) -> int | None:
    """The epoch after which a trial that has so many behind it is compared next; None: it runs to its end."""
    if search.scheduler == "leaders" and epochs >= search.grace:
        return epochs + 1 if epochs + 1 < search.epochs else None
    return next((rung for rung in rungs(search) if rung > epochs), None)


def judge(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    """What became of trial `number` with its report of `epoch`.

    asha (Li et al. 2020, arXiv 1810.05934) in the variant that stops: at a rung a trial goes on when it is among the
    best 1/reduction of those that had reached the rung by then, itself included; the best always is.

    leaders: from grace on it is asked after every epoch whether the trial can still become one of the best. Once five
    have finished, the best five are the measure: who is worse than each of them was at this epoch is stopped. Slow
    starters among them hold the door open for others, however many suggestions crowd at the front, where ASHA's rungs
    fill with near-equals. Until then it is ASHA's first rung, and each later report asks again, since the first
    trials pass for want of rivals.
    """
    trial = trials[number]
    value = trial.intermediate_values[epoch]
    reports = [EvalReport.from_dict(report) for report in trial.user_attrs[REPORTS][:epoch]]
    reason = stop_reason(reports)
    if reason is not None:
        return Decision(action="prune", reason=reason, epoch=epoch, value=value)
    if epoch >= search.epochs:
        return Decision(action="complete", reason="finished", epoch=epoch, value=value)
    is_asha = search.scheduler == "asha"
    if search.scheduler == "none" or epoch < search.grace or (is_asha and epoch not in rungs(search)):
        return Decision(action="go on", reason="between rungs", epoch=epoch, value=value)

    heard = trial.user_attrs[REPORTS][epoch - 1][HEARD]
    finished = sorted((-other.values[0], other.number) for other in trials if _finished_before(other, heard))
    if not is_asha and len(finished) >= _LEADERS:
        compared, rivals = epoch, [trials[n] for _, n in finished[:_LEADERS]]
        rank = _LEADERS
    else:
        compared = epoch if is_asha else search.grace
        rivals = [other for other in trials if _reported_by(other, compared, heard)]
        rank = max(1, len(rivals) // search.reduction)
    bar, set_by = sorted((-rival.intermediate_values[compared], rival.number) for rival in rivals)[rank - 1]
    passed = trial.intermediate_values[compared] >= -bar
    return Decision(
        action="go on" if passed else "prune",
        reason="passed" if passed else "asha" if is_asha else "leaders",
        epoch=epoch,
        value=value,
        cutoff=-bar,
        set_by=set_by,
        rivals=len(rivals),
        compared=compared,
    )


def _reported_by(trial: FrozenTrial, epoch: int, heard: int) -> bool:
    return epoch in trial.intermediate_values and trial.user_attrs[REPORTS][epoch - 1][HEARD] <= heard


def _finished_before(trial: FrozenTrial, heard: int) -> bool:
    return trial.state == TrialState.COMPLETE and trial.user_attrs[REPORTS][-1][HEARD] < heard


def finished_by(trials: Sequence[FrozenTrial]) -> float:
    """How many reports the search had had when so many had finished that these became the measure; else infinite."""
    heard = sorted(trial.user_attrs[REPORTS][-1][HEARD] for trial in trials if trial.state == TrialState.COMPLETE)
    return heard[_LEADERS - 1] if len(heard) >= _LEADERS else math.inf


def judgements(trials: Sequence[FrozenTrial], number: int, search: SearchConfig) -> list[Decision]:
    """What became of trial `number` with each of its reports, taken again from the record."""
    return [judge(trials, number, epoch, search) for epoch in sorted(trials[number].intermediate_values)]


def evidence(trials: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
    """The trials as they were when trial `number` was suggested: `suggest` of these gives its configuration again."""
    asked = trials[number].user_attrs[ASKED]
    return [_as_it_was(trial, asked, number) for trial in trials[:number]]


def _as_it_was(trial: FrozenTrial, asked: int, number: int) -> FrozenTrial:
    reports = [report for report in trial.user_attrs[REPORTS] if report[HEARD] < asked]
    was_over = len(reports) == len(trial.user_attrs[REPORTS]) and trial.state.is_finished()
    if trial.state == TrialState.FAIL:
        was_over = trial.user_attrs[ERROR]["trials"] <= number
    was = copy.copy(trial)
    was.user_attrs = {**trial.user_attrs, REPORTS: reports}
    was.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= len(reports)}
    if not was_over:
        was.state, was.values = TrialState.RUNNING, None
    return was


def is_open(trial: FrozenTrial) -> bool:
    """Asked for and not ended."""
    return trial.state == TrialState.RUNNING
