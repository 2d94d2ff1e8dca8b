"""Trials for the decisions of a search, without training."""

from __future__ import annotations

import math

from curves import SPACE, report
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.policy import suggestions
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import suggest
from hpo.policy.trial_attributes import ERROR, REPORT_INDEX, REPORTS, REPORTS_AT_SUGGESTION
from hpo.policy.trial_history import trial_as_of_report
from model.training_report import objective_value
from search_spaces import Space

SEARCH = SearchConfig(epochs=12, reduction_factor=3, objectives=("ssim",), set={"width": 4})


def finished(number: int, suggestion: suggestions.Suggestion, value: float) -> FrozenTrial:
    trial = create_trial(
        params=dict(suggestion.params),
        distributions=dict(suggestion.distributions),
        value=value,
        intermediate_values={1: value},
    )
    trial.number = number
    return trial


def played(count: int, space: Space = SPACE, search: SearchConfig = SEARCH) -> list[FrozenTrial]:
    """Trials that were suggested one after another; the nearer lr_g is to 1e-3, the better."""
    trials: list[FrozenTrial] = []
    while len(trials) < count and (suggestion := suggest(trials, space, search)) is not None:
        value = -abs(math.log10(suggestion.config.lr_g / 1e-3)) - suggestion.config.width / 100
        trials.append(finished(len(trials), suggestion, value))
    return trials


def reported(order: list[tuple[int, float]]) -> list[FrozenTrial]:
    """Trials with the reports (trial, SSIM) in the order in which they were heard."""
    trials = []
    for number in range(1 + max(number for number, _ in order)):
        heard = [(place, ssim) for place, (n, ssim) in enumerate(order) if n == number]
        reports = [(report(epoch, ssim), place) for epoch, (place, ssim) in enumerate(heard, start=1)]
        trial = create_trial(
            state=TrialState.RUNNING,
            intermediate_values={r.epoch: objective_value(r, "ssim") for r, _ in reports},
            user_attrs={
                REPORTS_AT_SUGGESTION: 0,
                REPORTS: [{**r.as_dict(), REPORT_INDEX: place} for r, place in reports],
            },
        )
        trial.number = number
        trials.append(trial)
    return trials


def trials_as_of_suggestion(trials: list[FrozenTrial], number: int) -> list[FrozenTrial]:
    """The trials as they were when trial `number` was suggested: `suggest` of these gives its configuration again."""
    reports = trials[number].user_attrs[REPORTS_AT_SUGGESTION]
    return [_as_of_suggestion(trial, reports, number) for trial in trials[:number]]


def _as_of_suggestion(trial: FrozenTrial, reports: int, number: int) -> FrozenTrial:
    earlier = [report for report in trial.user_attrs[REPORTS] if report[REPORT_INDEX] < reports]
    had_ended = len(earlier) == len(trial.user_attrs[REPORTS]) and trial.state.is_finished()
    if trial.state == TrialState.FAIL:
        had_ended = trial.user_attrs[ERROR]["trials"] <= number
    return trial if had_ended else trial_as_of_report(trial, reports - 1)
