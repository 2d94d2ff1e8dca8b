"""Decides after each report whether a trial continues, is pruned or is complete, with the search's pruner; and how many
epochs a trial is still expected to run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial

from hpo.policy import pruners
from hpo.policy.pruners import ComparingPruner
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, REPORT_INDEX, REPORTS
from hpo.policy.trial_history import in_memory_study, trials_as_of_report
from hpo.policy.trial_objectives import excesses
from model.common.errors import ConfigError
from model.training_report import EvalReport, failure_reason

PRUNED = ("asha", "leaders", "pruner", "dominated")  # the reasons of a Decision that mean: others were better


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a trial continues after a report, and why. That of an ended trial is on record."""

    action: Literal["continue", "complete", "prune"]
    # PRUNED means that others were better; of these, "pruner" is a user's, and "dominated" is one of several
    # objectives. limit: it violates a limit on what is known before training.
    reason: Literal[
        "not compared", "passed", "finished", "asha", "leaders", "pruner", "dominated", "limit", "diverged", "collapsed"
    ]
    epoch: int  # the report's; 0: before the first one
    value: float | None = None  # the objective after that epoch
    cutoff: float | None = None  # the lowest value that continues, if the pruner says so
    set_by: int | None = None  # number of the trial with that value, or of one that dominates this trial
    rivals: int | None = None  # number of trials whose values were compared
    compared: int | None = None  # the epoch after which they had these values
    places: int | None = None  # how many of them continue
    kept: Mapping[str, Any] | None = None  # Optuna's system attributes that a user's pruner set, for its next decisions


def next_comparison(epochs: int, search: SearchConfig) -> int | None:
    """The epoch after which the pruner next compares a trial that has finished `epochs`; None: never."""
    pruner = pruners.create_pruner(search, is_dead)
    for epoch in range(max(epochs + 1, search.grace_epochs), search.epochs if pruner else 0):
        if not isinstance(pruner, ComparingPruner) or pruner.compares(epoch):
            return epoch
    return None


def survival_shares(search: SearchConfig) -> list[float]:
    """The shares of trials expected to continue after 0, 1, 2, ... epochs, by the pruner's rule alone; all of them with
    a user's pruner, whose rule is not known."""
    pruner, shares = pruners.create_pruner(search, is_dead), [1.0]
    for epoch in range(1, search.epochs):
        shares.append(shares[-1])
        if isinstance(pruner, ComparingPruner) and pruner.compares(epoch):
            shares[-1] = pruner.share(epoch)
    return shares


def expected_epochs(search: SearchConfig) -> float:
    """The mean number of epochs of a trial, by the pruner's rule alone."""
    return sum(survival_shares(search))


def epochs_left(trials: Sequence[FrozenTrial], search: SearchConfig) -> list[float]:
    """The mean number of further epochs of a trial after 0, 1, 2, ... epochs.

    The estimate is Kaplan and Meier's (1958): for each epoch, the share of trials that ended there among all that came
    so far, running ones included. The mean length of the ended trials alone would be too short, since pruned trials end
    first. The shares that the pruner's rule predicts count as one more trial.
    """
    reached = [len(trial.user_attrs[REPORTS]) for trial in trials]
    ended = [epochs for epochs, trial in zip(reached, trials, strict=True) if trial.state.is_finished()]
    left, shares = [0.0] * (search.epochs + 1), [*survival_shares(search), 0.0]
    for epoch in range(search.epochs, 0, -1):
        predicted = 1 - shares[epoch] / shares[epoch - 1]
        share = (predicted + ended.count(epoch)) / (1 + sum(epochs >= epoch for epochs in reached))
        left[epoch - 1] = 1 + (1 - share) * left[epoch]
    return left


def is_dead(trial: FrozenTrial) -> bool:
    """Whether a trial is no rival to others: it diverged, collapsed, or may be collapsing."""
    if DECISION in trial.user_attrs:
        return trial.user_attrs[DECISION]["reason"] in ("diverged", "collapsed")
    reports = trial.user_attrs[REPORTS]
    if not reports or not EvalReport.from_dict(reports[-1]).is_dead:  # the usual case: the others are not parsed
        return False
    return failure_reason([EvalReport.from_dict(report) for report in reports], is_last=True) is not None


def decide_start(trial: FrozenTrial, search: SearchConfig) -> Decision:
    """Decide whether a trial whose figures are known is trained at all."""
    if any(excess > 0 for excess in excesses(trial, search, is_over=False).values()):
        return Decision(action="prune", reason="limit", epoch=0)
    return Decision(action="continue", reason="not compared", epoch=0)


def decide_pruning(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    """Decide whether a trial continues after a report. The same arguments always give the same decision.

    Args:
        trials: all trials of the search, with at least the reports up to this one; later ones are ignored.
        number: the trial's.
        epoch: the report's.

    Raises:
        ConfigError: a user's pruner fails.
    """
    trial = trials[number]
    make = partial(Decision, epoch=epoch, value=trial.intermediate_values[epoch])
    reports = [EvalReport.from_dict(report) for report in trial.user_attrs[REPORTS][:epoch]]
    reason = failure_reason(reports, is_last=epoch >= search.epochs)
    if reason is not None:
        return make(action="prune", reason=reason)
    if epoch >= search.epochs:
        return make(action="complete", reason="finished")
    decision = _ask_pruner(trials, number, epoch, search)
    if decision.action == "prune" and failure_reason(reports, is_last=True):
        # It would collapse, rather than lose to others: it must not win, nor be a rival.
        return make(action="prune", reason="collapsed", kept=decision.kept)
    return decision


def _ask_pruner(trials: Sequence[FrozenTrial], number: int, epoch: int, search: SearchConfig) -> Decision:
    trial = trials[number]
    make = partial(Decision, epoch=epoch, value=trial.intermediate_values[epoch])
    pruner = pruners.create_pruner(search, is_dead)
    if pruner is None or epoch < search.grace_epochs:
        return make(action="continue", reason="not compared")
    report_index = trial.user_attrs[REPORTS][epoch - 1][REPORT_INDEX]
    earlier = trials_as_of_report(trials, report_index)
    if not isinstance(pruner, ComparingPruner):
        return _ask_users_pruner(pruner, in_memory_study(earlier, report_index=report_index), number, search)
    comparison = pruner.compare(earlier, earlier[number])
    if comparison is None:
        return make(action="continue", reason="not compared")
    return make(
        action="continue" if comparison.passed else "prune",
        reason="passed" if comparison.passed else pruner.rule,
        cutoff=comparison.cutoff,
        set_by=comparison.set_by,
        rivals=comparison.rivals,
        compared=comparison.step,
        places=comparison.places,
    )


def _ask_users_pruner(
    pruner: optuna.pruners.BasePruner, study: optuna.Study, number: int, search: SearchConfig
) -> Decision:
    """A user's pruner gives no reason. What it sets on the trial, as SuccessiveHalvingPruner its rungs, is kept."""
    trials = study._storage._studies[study._study_id].trials  # type: ignore[attr-defined]
    trials[number] = trial = copy.copy(trials[number])
    before, trial.system_attrs = trial.system_attrs, dict(trial.system_attrs)
    study._storage._trial_id_to_study_id_and_number[trial._trial_id] = (study._study_id, number)  # type: ignore[attr-defined]
    try:
        is_pruned = pruner.prune(study, trial)
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"pruner={search.pruner}: {type(error).__name__}: {error}") from error
    epoch = max(trial.intermediate_values)
    after = trials[number].system_attrs
    return Decision(
        action="prune" if is_pruned else "continue",
        reason="pruner" if is_pruned else "passed",
        epoch=epoch,
        value=trial.intermediate_values[epoch],
        kept={name: value for name, value in after.items() if before.get(name) != value} or None,
    )


def replay_decisions(trials: Sequence[FrozenTrial], number: int, search: SearchConfig) -> list[Decision]:
    """The decisions on the start and on all reports of a trial, made again from the record."""
    start = decide_start(trials[number], search)
    if start.action == "prune":
        return [start]
    return [decide_pruning(trials, number, epoch, search) for epoch in sorted(trials[number].intermediate_values)]
