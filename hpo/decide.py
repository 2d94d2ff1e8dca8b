"""The decisions of a search, pure: (record, seed) -> next configuration; (record, trial) -> go on or stop.

An Optuna sampler takes the ones and an Optuna pruner the others, each in a study of the trials as they were then. No
Ray, no clock: the same record gives the same decision, after a restart and in a simulator too. A record is the study's
trials; the user attributes that count are named here.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

import search_spaces
from hpo import plugins
from hpo.config import SearchConfig
from hpo.pruners import ComparingPruner
from model.config import ConfigError, Mistakes, TrainConfig, nearest
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

KEPT = "kept"  # user attribute, and of a report: Optuna's system attributes that sampler or pruner set then

QUEUED = "queued"  # a value of BY: somebody put the trial into the study
FIXED = "fixed_params"  # Optuna's own system attribute of such a trial: its parameters

PRUNED = ("asha", "leaders", "pruner")  # reasons of a Decision by which others were better

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
        return {CONFIG: self.config.as_dict(), BY: self.by, ASKED: heard, REPORTS: [], **kept}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a trial goes on after a report, and why."""

    action: Literal["go on", "complete", "prune"]
    reason: Literal["not compared", "passed", "finished", "asha", "leaders", "pruner", "diverged", "collapsed"]
    epoch: int
    value: float
    cutoff: float | None = None  # the value of the last that goes on, where the pruner says so
    set_by: int | None = None  # the trial that has it
    rivals: int | None = None  # trials whose values were compared
    compared: int | None = None  # the epoch whose values were
    places: int | None = None  # how many of them go on
    kept: Mapping[str, Any] | None = None  # by a user's pruner, for its next decisions


def suggest(trials: Sequence[FrozenTrial], space: Space, search: SearchConfig) -> Suggestion | None:
    """The next configuration, from all trials so far; None when a finite space holds no other.

    A sampler is made anew for each trial from (search seed, trial number): hpo.plugins. Raises ConfigError where it is
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


def queued(params: Mapping[str, Any], trials: Sequence[FrozenTrial], space: Space, search: SearchConfig) -> Suggestion:
    """The next configuration where somebody has put it into the study (Optuna's enqueue_trial); the sampler suggests
    what is not in `params`. Raises ConfigError where that is no configuration of the space."""
    study = in_memory_study(trials, plugins.sampler(search, _seed(search, len(trials), 0)))
    study.enqueue_trial(dict(params))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Optuna's, of what is refused below
        trial, config = _asked(study, space, search.base_config(), search.sampler)
    if unknown := sorted(set(params) - set(trial.params)):
        raise ConfigError(f"{unknown[0]}: the space suggests no such parameter. {nearest(unknown[0], trial.params)}")
    try:  # Optuna asks with values out of range, and refuses to keep them
        create_trial(value=0.0, params=trial.params, distributions=trial.distributions)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return _suggestion(study, trial, config, QUEUED)


def _suggestion(study: optuna.Study, trial: optuna.Trial, config: TrainConfig, by: str) -> Suggestion:
    kept = study._storage.get_trial_system_attrs(trial._trial_id)
    kept = {name: value for name, value in kept.items() if name != FIXED}
    return Suggestion(params=trial.params, distributions=trial.distributions, config=config, by=by, kept=kept)


def check_plugins(search: SearchConfig) -> None:
    """Before anything is started: that sampler and pruner can be made, and that a user's sampler has a suggestion once
    trials are complete, of which three are made up here. Raises ConfigError, with the mistakes of both."""
    mistakes = Mistakes()
    with mistakes.collected():
        plugins.sampler(search, 0)
    with mistakes.collected():
        plugins.pruner(search, is_dead)
    mistakes.tell()
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


def in_memory_study(
    trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler | None = None, *, heard: float = math.inf
) -> optuna.Study:
    """A study of these trials, maximised. Optuna's add_trials would copy each, a second for a thousand.

    heard: the place of the report that is judged in it; what a pruner kept then is not there yet.
    """
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(  # by name, since Hyperband draws brackets from it
        study_name="search", storage=storage, direction="maximize", sampler=sampler
    )
    storage._studies[study._study_id].trials.extend(_with_kept(trial, heard) for trial in trials)
    return study


def _with_kept(trial: FrozenTrial, heard: float) -> FrozenTrial:
    kept = dict(trial.user_attrs.get(KEPT, {}))
    for report in trial.user_attrs.get(REPORTS, []):
        if KEPT in report and report[HEARD] < heard:
            kept |= report[KEPT]
    if not kept:
        return trial
    trial = copy.copy(trial)
    trial.system_attrs = {**trial.system_attrs, **kept}
    return trial


def _seed(search: SearchConfig, number: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{search.seed} {number} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def next_comparison(epochs: int, search: SearchConfig) -> int | None:
    """The epoch after which the pruner is asked next of a trial that has so many behind it; None: never."""
    pruner = plugins.pruner(search, is_dead)
    for after in range(max(epochs + 1, search.grace_epochs), search.epochs if pruner else 0):
        if not isinstance(pruner, ComparingPruner) or pruner.compares(after):
            return after
    return None


def shares_going_on(search: SearchConfig) -> list[float]:
    """About how many of all trials go on after 0, 1, 2, ... epochs, while there is nothing to learn it from. Of a
    user's pruner nothing is known: all."""
    pruner, shares = plugins.pruner(search, is_dead), [1.0]
    for epoch in range(1, search.epochs):
        shares.append(shares[-1])
        if isinstance(pruner, ComparingPruner) and pruner.compares(epoch):
            shares[-1] = pruner.share(epoch)
    return shares


def is_dead(trial: FrozenTrial) -> bool:
    """Whether it diverged or collapsed, or has not recovered yet from an epoch that could become a collapse: no rival
    to anybody."""
    if DECISION in trial.user_attrs:
        return trial.user_attrs[DECISION]["reason"] in ("diverged", "collapsed")
    reports = trial.user_attrs[REPORTS]
    if not reports or not EvalReport.from_dict(reports[-1]).is_dead:  # nearly always: the rest is not read
        return False
    return stop_reason([EvalReport.from_dict(report) for report in reports], is_last=True) is not None


def judge(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    """What became of trial `number` with its report of `epoch`: the search's pruner is asked (hpo.pruners).

    Raises ConfigError where that is a user's, and fails.
    """
    trial = trials[number]
    value = trial.intermediate_values[epoch]
    reports = [EvalReport.from_dict(report) for report in trial.user_attrs[REPORTS][:epoch]]
    reason = stop_reason(reports, is_last=epoch >= search.epochs)
    if reason is not None:
        return Decision(action="prune", reason=reason, epoch=epoch, value=value)
    if epoch >= search.epochs:
        return Decision(action="complete", reason="finished", epoch=epoch, value=value)
    decision = _asked_pruner(trials, number, epoch, search)
    if decision.action == "prune" and stop_reason(reports, is_last=True):
        # Not because others were better: it is to win nothing, and to be nobody's rival.
        return Decision(action="prune", reason="collapsed", epoch=epoch, value=value, kept=decision.kept)
    return decision


def _asked_pruner(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    trial = trials[number]
    value = trial.intermediate_values[epoch]
    pruner = plugins.pruner(search, is_dead)
    if pruner is None or epoch < search.grace_epochs:
        return Decision(action="go on", reason="not compared", epoch=epoch, value=value)
    heard = trial.user_attrs[REPORTS][epoch - 1][HEARD]
    then = _as_heard(trials, heard)
    if not isinstance(pruner, ComparingPruner):
        study = in_memory_study(then, heard=heard)
        return _by_others(pruner, study, study.get_trials(deepcopy=False)[number], search)
    found = pruner.compare(then, then[number])
    if found is None:
        return Decision(action="go on", reason="not compared", epoch=epoch, value=value)
    return Decision(
        action="go on" if found.passed else "prune",
        reason="passed" if found.passed else "leaders" if search.pruner == "leaders" else "asha",
        epoch=epoch,
        value=value,
        cutoff=found.cutoff,
        set_by=found.set_by,
        rivals=found.rivals,
        compared=found.step,
        places=found.places,
    )


def _by_others(
    pruner: optuna.pruners.BasePruner, study: optuna.Study, trial: FrozenTrial, search: SearchConfig
) -> Decision:
    """Theirs say whether, and not why. What they set of the trial, as SuccessiveHalvingPruner its rungs, is kept."""
    trial = copy.copy(trial)
    trial.system_attrs = dict(trial.system_attrs)
    of_study = study._storage._studies[study._study_id]  # type: ignore[attr-defined]
    of_study.trials[trial.number] = trial
    study._storage._trial_id_to_study_id_and_number[trial._trial_id] = (study._study_id, trial.number)  # type: ignore[attr-defined]
    before = dict(trial.system_attrs)
    try:
        pruned = pruner.prune(study, trial)
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"pruner={search.pruner}: {type(error).__name__}: {error}") from error
    now = of_study.trials[trial.number].system_attrs
    epoch = max(trial.intermediate_values)
    return Decision(
        action="prune" if pruned else "go on",
        reason="pruner" if pruned else "passed",
        epoch=epoch,
        value=trial.intermediate_values[epoch],
        kept={name: value for name, value in now.items() if before.get(name) != value} or None,
    )


def _as_heard(trials: Sequence[FrozenTrial], heard: int) -> list[FrozenTrial]:
    """The trials as they were when the report with that place came: what came later decides nothing. One that failed
    is told as one under way: the machine's fault says nothing of its values."""
    return [
        trial if _was_like_this(trial, heard) else _cut(trial, heard)
        for trial in trials
        if trial.user_attrs[ASKED] <= heard
    ]


def _was_like_this(trial: FrozenTrial, heard: int) -> bool:
    reports = trial.user_attrs[REPORTS]
    last = reports[-1][HEARD] if reports else -1
    if trial.state == TrialState.RUNNING:
        return bool(last <= heard)
    return trial.state != TrialState.FAIL and last < heard


def _cut(trial: FrozenTrial, heard: int) -> FrozenTrial:
    reports = [report for report in trial.user_attrs[REPORTS] if report[HEARD] <= heard]
    was = copy.copy(trial)
    was.user_attrs = {**trial.user_attrs, REPORTS: reports}
    was.user_attrs.pop(DECISION, None)
    was.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= len(reports)}
    was.state, was.values = TrialState.RUNNING, None
    return was


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
    return trial if was_over else _cut(trial, asked - 1)


def is_open(trial: FrozenTrial) -> bool:
    """Asked for and not ended."""
    return trial.state == TrialState.RUNNING
