"""The trials of a search as they were at an earlier report or suggestion, so that each decision can be repeated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.policy.trial_attributes import DECISION, ERROR, KEPT, NODE, REPORT_INDEX, REPORTS, REPORTS_AT_SUGGESTION
from model.training_report import EvalReport, Objective, objective_value


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
        if KEPT in report and report[REPORT_INDEX] < heard:
            kept |= report[KEPT]
    if not kept:
        return trial
    trial = copy.copy(trial)
    trial.system_attrs = {**trial.system_attrs, **kept}
    return trial


def with_report(
    trial: FrozenTrial, report: EvalReport, report_index: int, objective: Objective, node: str | None = None
) -> FrozenTrial:
    """A copy of a trial with another report.

    Args:
        trial: one that runs.
        report: of its next epoch.
        report_index: the number of reports that the whole search had before.
        objective: the search's, for the value of the epoch.
        node: the host that trained the epoch; None: not known.
    """
    stored = {**report.as_dict(), REPORT_INDEX: report_index, **({NODE: node} if node else {})}
    value = objective_value(report.ssim, report.psnr_db, objective)
    trial = copy.copy(trial)
    trial.user_attrs = {**trial.user_attrs, REPORTS: [*trial.user_attrs[REPORTS], stored]}
    trial.intermediate_values = {**trial.intermediate_values, report.epoch: value}
    return trial


def trials_as_of_report(trials: Sequence[FrozenTrial], heard: int) -> list[FrozenTrial]:
    """The trials as they were when the report with that place came: what came later decides nothing. One that failed
    is told as one under way: the machine's fault says nothing of its values."""
    return [
        trial if _was_like_this(trial, heard) else _cut(trial, heard)
        for trial in trials
        if trial.user_attrs[REPORTS_AT_SUGGESTION] <= heard
    ]


def _was_like_this(trial: FrozenTrial, heard: int) -> bool:
    reports = trial.user_attrs[REPORTS]
    last = reports[-1][REPORT_INDEX] if reports else -1
    if trial.state == TrialState.RUNNING:
        return bool(last <= heard)
    return trial.state != TrialState.FAIL and last < heard


def _cut(trial: FrozenTrial, heard: int) -> FrozenTrial:
    reports = [report for report in trial.user_attrs[REPORTS] if report[REPORT_INDEX] <= heard]
    was = copy.copy(trial)
    was.user_attrs = {**trial.user_attrs, REPORTS: reports}
    was.user_attrs.pop(DECISION, None)
    was.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= len(reports)}
    was.state, was.values = TrialState.RUNNING, None
    return was


def trials_as_of_suggestion(trials: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
    """The trials as they were when trial `number` was suggested: `suggest` of these gives its configuration again."""
    asked = trials[number].user_attrs[REPORTS_AT_SUGGESTION]
    return [_as_it_was(trial, asked, number) for trial in trials[:number]]


def _as_it_was(trial: FrozenTrial, asked: int, number: int) -> FrozenTrial:
    reports = [report for report in trial.user_attrs[REPORTS] if report[REPORT_INDEX] < asked]
    was_over = len(reports) == len(trial.user_attrs[REPORTS]) and trial.state.is_finished()
    if trial.state == TrialState.FAIL:
        was_over = trial.user_attrs[ERROR]["trials"] <= number
    return trial if was_over else _cut(trial, asked - 1)
