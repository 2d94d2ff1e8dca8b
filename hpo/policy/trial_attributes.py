"""The user attributes of trials in the study. The strings are on disk in every search: they never change."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

CONFIG = "config"  # user attribute: the trial's TrainConfig as a dict
SUGGESTED_BY = "by"  # user attribute: "starting point", QUEUED, "random", or the sampler's name
QUEUED = "queued"  # a value of SUGGESTED_BY: a user put the trial into the study
REPORTS_AT_SUGGESTION = "asked"  # user attribute: the number of reports in the search when the trial was suggested

KNOWN = "known"  # user attribute: what was measured before training, by the objective's name: latency (ms), ...

REPORTS = "reports"  # user attribute: every EvalReport as a dict, with the next two keys
REPORT_INDEX = "heard"  # key of a report: the number of reports in the search before this one
NODE = "node"  # key of a report: the host that trained the epoch, if it is known; no decision depends on it

FAILURES = "failures"  # user attribute: for each failure of the process or node, the epochs reported and the error
MIGRATIONS = "moves"  # user attribute: each time the node was taken, the epochs reported by then and the reason
ERROR = "error"  # user attribute of a failed trial: the error as text, and the number of trials in the search by then
DECISION = "decision"  # user attribute of an ended trial: the Decision that ended it, as a dict

KEPT = "kept"  # user attribute, and key of a report: Optuna's system attributes that sampler or pruner set
FIXED_PARAMS = "fixed_params"  # Optuna's own system attribute of a queued trial: its parameters


def is_unfinished(trial: FrozenTrial) -> bool:
    """Whether a trial has begun and not ended."""
    return trial.state == TrialState.RUNNING
