"""The leaderboard: which trials can win, in which order, and the outcome of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from hpo.policy import pareto, report_decision
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, KNOWN, REPORTS
from hpo.policy.trial_objectives import final_point
from model.training_report import EvalReport, Objective, objective_value

NUM_FINALISTS = 3


def reports_of(trial: FrozenTrial) -> list[EvalReport]:
    """The reports of a trial, epoch 1 first."""
    return [EvalReport.from_dict(report) for report in trial.user_attrs[REPORTS]]


def best_report(trial: FrozenTrial, objective: Objective) -> EvalReport | None:
    """The report of the epoch whose checkpoint is a trial's best; None before the first report."""
    return best_of(reports_of(trial), objective)


def best_of(reports: Sequence[EvalReport], objective: Objective) -> EvalReport | None:
    """The best of a training's reports. Of equal ones it is the last: its checkpoint replaces an equally good one."""
    return max(
        reversed(reports),
        key=lambda report: objective_value(report, objective),
        default=None,
    )


def row(trial: FrozenTrial, objective: Objective) -> dict[str, Any]:
    """One line of the leaderboard, JSON-ready. The metrics are those of the best epoch. stop_reason: the reason of the
    Decision that ended the trial, or "error"."""
    best = best_report(trial, objective)
    reports = reports_of(trial)
    metrics = best.as_dict() if best else {"ssim": None, "psnr_db": None, "l1": None, "epoch": None}
    seconds = sum(report.seconds for report in reports)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "epochs": len(reports),
        "best_epoch": metrics["epoch"],
        "value": objective_value(best, objective) if best else None,
        "ssim": metrics["ssim"],
        "psnr_db": metrics["psnr_db"],
        "l1": metrics["l1"],
        "haarpsi": metrics.get("haarpsi"),  # older reports lack it
        "known": trial.user_attrs.get(KNOWN, {}),
        "params": trial.params,
        "stop_reason": "error" if trial.state == TrialState.FAIL else trial.user_attrs.get(DECISION, {}).get("reason"),
        "images": reports[-1].images if reports else 0,
        "images_per_second": reports[-1].images / seconds if seconds else None,
    }


def leaderboard(trials: Sequence[FrozenTrial], objective: Objective) -> list[dict[str, Any]]:
    """The rows of all trials, the best first and those without a report last."""
    rows = [row(trial, objective) for trial in trials]
    return sorted(rows, key=lambda r: (r["value"] is None, -(r["value"] or 0.0), r["number"]))


def finalists(trials: Sequence[FrozenTrial], search: SearchConfig, lost: Collection[int] = ()) -> list[int]:
    """Numbers of the trials to measure on all validation images: the best, or the front of several objectives. lost:
    trials without a usable checkpoint."""
    usable = [trial for trial in trials if trial.number not in lost]
    return front(usable, search) if search.is_multi_objective else candidates(usable)[:NUM_FINALISTS]


def front(trials: Iterable[FrozenTrial], search: SearchConfig) -> list[int]:
    """Numbers of the trials that no other one beats in all objectives, the best in the first objective first. With one
    objective it is the best trial, or several equal ones."""
    points = {trial.number: final_point(trial, search) for trial in trials if is_candidate(trial)}
    return pareto.front(points)


def candidates(trials: Iterable[FrozenTrial]) -> list[int]:
    """Numbers of the trials that can win, best first by their own reports."""
    return [number for _, number in sorted(filter(None, map(rank, trials)))]


def kept_trials(trials: Iterable[FrozenTrial], search: SearchConfig) -> set[int]:
    """Numbers of the ended trials whose checkpoints stay: the best in the first objective, and with several objectives
    the whole front. A trial that has dropped out never comes back."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    best = set(candidates(ended)[: search.keep_checkpoints])
    return best | set(front(ended, search)) if search.is_multi_objective else best


def is_candidate(trial: FrozenTrial) -> bool:
    """Whether a trial can win: it has a report, violates no limit, and did not fail, diverge or collapse."""
    is_feasible = all(excess <= 0 for excess in trial.constraints.values())
    return bool(trial.intermediate_values) and is_feasible and outcome_of(trial) not in ("failed", *DEAD)


Outcome = Literal["running", "finished", "pruned", "diverged", "collapsed", "infeasible", "failed"]
DEAD: tuple[Outcome, ...] = ("diverged", "collapsed")


def outcome_of(trial: FrozenTrial) -> Outcome:
    """The outcome of a trial, in the word that all views show. pruned: others were better."""
    if trial.state == TrialState.FAIL:
        return "failed"
    reason = trial.user_attrs.get(DECISION, {}).get("reason", "running")
    if reason == "limit":
        return "infeasible"
    outcome: Outcome = "pruned" if reason in report_decision.PRUNED else reason
    return outcome


def rank(trial: FrozenTrial) -> tuple[float, int] | None:
    """A sort key for the leaderboard, the best trial first; None: the trial cannot win."""
    return (-max(trial.intermediate_values.values()), trial.number) if is_candidate(trial) else None
