"""What becomes of a trial after a report: it continues, is pruned, or is complete. Asks the search's pruner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial

from hpo.policy import plugins
from hpo.policy.pruners import ComparingPruner
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, REPORT_INDEX, REPORTS
from hpo.policy.trial_history import in_memory_study, trials_as_of_report
from model.common.errors import ConfigError
from model.training_report import EvalReport, failure_reason

PRUNED = ("asha", "leaders", "pruner")  # reasons of a Decision by which others were better


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a trial goes on after a report, and why."""

    action: Literal["continue", "complete", "prune"]
    reason: Literal["not compared", "passed", "finished", "asha", "leaders", "pruner", "diverged", "collapsed"]
    epoch: int
    value: float
    cutoff: float | None = None  # the value of the last that goes on, where the pruner says so
    set_by: int | None = None  # the trial that has it
    rivals: int | None = None  # trials whose values were compared
    compared: int | None = None  # the epoch whose values were
    places: int | None = None  # how many of them go on
    kept: Mapping[str, Any] | None = None  # by a user's pruner, for its next decisions


def next_comparison(epochs: int, search: SearchConfig) -> int | None:
    """The epoch after which the pruner is asked next of a trial that has so many behind it; None: never."""
    pruner = plugins.pruner(search, is_dead)
    for after in range(max(epochs + 1, search.grace_epochs), search.epochs if pruner else 0):
        if not isinstance(pruner, ComparingPruner) or pruner.compares(after):
            return after
    return None


def survival_shares(search: SearchConfig) -> list[float]:
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
    return failure_reason([EvalReport.from_dict(report) for report in reports], is_last=True) is not None


def decide_pruning(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    """What became of trial `number` with its report of `epoch`: the search's pruner is asked (hpo.policy.pruners).

    Raises ConfigError where that is a user's, and fails.
    """
    trial = trials[number]
    value = trial.intermediate_values[epoch]
    reports = [EvalReport.from_dict(report) for report in trial.user_attrs[REPORTS][:epoch]]
    reason = failure_reason(reports, is_last=epoch >= search.epochs)
    if reason is not None:
        return Decision(action="prune", reason=reason, epoch=epoch, value=value)
    if epoch >= search.epochs:
        return Decision(action="complete", reason="finished", epoch=epoch, value=value)
    decision = _asked_pruner(trials, number, epoch, search)
    if decision.action == "prune" and failure_reason(reports, is_last=True):
        # Not because others were better: it is to win nothing, and to be nobody's rival.
        return Decision(action="prune", reason="collapsed", epoch=epoch, value=value, kept=decision.kept)
    return decision


def _asked_pruner(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    trial = trials[number]
    value = trial.intermediate_values[epoch]
    pruner = plugins.pruner(search, is_dead)
    if pruner is None or epoch < search.grace_epochs:
        return Decision(action="continue", reason="not compared", epoch=epoch, value=value)
    heard = trial.user_attrs[REPORTS][epoch - 1][REPORT_INDEX]
    then = trials_as_of_report(trials, heard)
    if not isinstance(pruner, ComparingPruner):
        study = in_memory_study(then, heard=heard)
        return _by_others(pruner, study, study.get_trials(deepcopy=False)[number], search)
    found = pruner.compare(then, then[number])
    if found is None:
        return Decision(action="continue", reason="not compared", epoch=epoch, value=value)
    return Decision(
        action="continue" if found.passed else "prune",
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
        action="prune" if pruned else "continue",
        reason="pruner" if pruned else "passed",
        epoch=epoch,
        value=trial.intermediate_values[epoch],
        kept={name: value for name, value in now.items() if before.get(name) != value} or None,
    )


def replay_decisions(trials: Sequence[FrozenTrial], number: int, search: SearchConfig) -> list[Decision]:
    """What became of trial `number` with each of its reports, taken again from the record."""
    return [decide_pruning(trials, number, epoch, search) for epoch in sorted(trials[number].intermediate_values)]
