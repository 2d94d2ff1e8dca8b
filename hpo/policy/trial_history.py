"""The trials of a search as they were at an earlier report, so that every decision can be repeated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.policy.objectives import Direction
from hpo.policy.trial_attributes import DECISION, KEPT, NODE, REPORT_INDEX, REPORTS, REPORTS_AT_SUGGESTION
from model.training_report import EvalReport, Objective, objective_value


def in_memory_study(
    trials: Sequence[FrozenTrial],
    sampler: optuna.samplers.BaseSampler | None = None,
    *,
    directions: Sequence[Direction] = ("maximize",),
    report_index: float = math.inf,
) -> optuna.Study:
    """A study of these trials, for one question to a sampler or a pruner.

    Args:
        directions: of the objectives. With several, a pruned trial becomes a complete one with the values that it had:
            Optuna's samplers cannot rank it otherwise.
        report_index: index of the report to decide on. What a pruner kept with it or later is left out.
    """
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(  # with a name, since Hyperband draws brackets from it
        study_name="search", storage=storage, directions=list(directions), sampler=sampler
    )
    # Optuna's add_trials would copy each trial, which takes a second for a thousand.
    known = (_with_kept_attrs(trial, report_index) for trial in trials)
    storage._studies[study._study_id].trials.extend(map(_as_complete, known) if len(directions) > 1 else known)
    return study


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    """A pruned trial as a complete one; as a failed one if it was never trained."""
    if trial.state != TrialState.PRUNED:
        return trial
    trial = copy.copy(trial)
    trial.state = TrialState.COMPLETE if trial.values else TrialState.FAIL
    return trial


def _with_kept_attrs(trial: FrozenTrial, report_index: float) -> FrozenTrial:
    kept = dict(trial.user_attrs.get(KEPT, {}))
    for report in trial.user_attrs.get(REPORTS, []):
        if KEPT in report and report[REPORT_INDEX] < report_index:
            kept |= report[KEPT]
    if not kept:
        return trial
    trial = copy.copy(trial)
    trial.system_attrs = {**trial.system_attrs, **kept}
    return trial


def with_report(
    trial: FrozenTrial, report: EvalReport, report_index: int, objective: Objective, node: str | None = None
) -> FrozenTrial:
    """A copy of a running trial with the report of its next epoch. report_index: the number of reports that the whole
    search had before. node: the host that trained the epoch."""
    stored = {**report.as_dict(), REPORT_INDEX: report_index, **({NODE: node} if node else {})}
    value = objective_value(report, objective)
    trial = copy.copy(trial)
    trial.user_attrs = {**trial.user_attrs, REPORTS: [*trial.user_attrs[REPORTS], stored]}
    trial.intermediate_values = {**trial.intermediate_values, report.epoch: value}
    return trial


def trials_as_of_report(trials: Sequence[FrozenTrial], report_index: int) -> list[FrozenTrial]:
    """The trials as they were when a report came. A trial that failed later, or before, counts as running: a failure of
    the machine says nothing about its values."""
    return [
        trial if _was_the_same(trial, report_index) else trial_as_of_report(trial, report_index)
        for trial in trials
        if trial.user_attrs[REPORTS_AT_SUGGESTION] <= report_index
    ]


def _was_the_same(trial: FrozenTrial, report_index: int) -> bool:
    reports = trial.user_attrs[REPORTS]
    last = reports[-1][REPORT_INDEX] if reports else -1
    if trial.state == TrialState.RUNNING:
        return bool(last <= report_index)
    return trial.state != TrialState.FAIL and last < report_index


def trial_as_of_report(trial: FrozenTrial, report_index: int) -> FrozenTrial:
    """A running trial with the reports up to an index."""
    reports = [report for report in trial.user_attrs[REPORTS] if report[REPORT_INDEX] <= report_index]
    earlier = copy.copy(trial)
    earlier.user_attrs = {**trial.user_attrs, REPORTS: reports}
    earlier.user_attrs.pop(DECISION, None)
    earlier.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= len(reports)}
    earlier.state, earlier.values = TrialState.RUNNING, None
    return earlier
