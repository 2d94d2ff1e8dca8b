"""What a trial keeps in the study as user attributes. The strings are on disk in every search: they never change."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

CONFIG = "config"  # user attribute: the trial's TrainConfig, as a dict
REPORTS = "reports"  # user attribute: every EvalReport as a dict, and under HEARD when it came
REPORT_INDEX = "heard"  # how many reports the whole search had had before this one
NODE = "node"  # of a report: the host that trained the epoch, where that is known; decides nothing
SUGGESTED_BY = "by"  # user attribute: who suggested the trial
REPORTS_AT_SUGGESTION = "asked"  # user attribute: how many reports the search had had when the trial was suggested
FAILURES = "failures"  # each death of its process or node: the epochs it had reported by then, and the error
MIGRATIONS = "moves"  # each time its node was taken, no fault of its own: the epochs it had reported by then, and why
ERROR = "error"  # of a trial that failed: why, as text, and how many trials there were by then
DECISION = "decision"  # user attribute of an ended trial: the Decision that ended it, as a dict

KEPT = "kept"  # user attribute, and of a report: Optuna's system attributes that sampler or pruner set then

QUEUED = "queued"  # a value of BY: somebody put the trial into the study
FIXED_PARAMS = "fixed_params"  # Optuna's own system attribute of such a trial: its parameters


def is_unfinished(trial: FrozenTrial) -> bool:
    """Asked for and not ended."""
    return trial.state == TrialState.RUNNING
