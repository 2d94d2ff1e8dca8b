"""What the report concludes from the trials: importance, Pareto front, time saved, and whether longer would help."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.policy import leaderboard, trial_history
from model.training_report import SMALL, Objective

_TOP = 5  # best trials that importance is about; Optuna asks for at least five
_MIN_TRIALS = 2 * _TOP  # trials with a result, below which importance would be noise
_RESAMPLINGS = 40


def pareto(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The trials that no other trial beats in both SSIM and PSNR, by falling PSNR.

    The rows are those of the leaderboard, with `candidate` for each trial that can win.
    """
    points = [
        (-float(row["psnr_db"]), -row["ssim"], row["number"])
        for row in rows
        if row["candidate"] and isinstance(row["ssim"], float) and math.isfinite(row["ssim"])
    ]
    front: list[int] = []
    highest = -math.inf
    for _, minus_ssim, number in sorted(point for point in points if not math.isnan(point[0])):
        if -minus_ssim > highest:
            front.append(number)
            highest = -minus_ssim
    return front


def importance(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """How much each parameter sets the best trials apart, by Optuna's PED-ANOVA (Watanabe et al. 2023, 2304.10255).

    PED-ANOVA only asks which trials are among the best, so pruned trials count too: a pruned trial is not.

    Returns:
        `shares`, a list of parameters with `share` (they add up to 1) and with `low` and `high`, the 5th and 95th
        percentile over resamplings of the trials; empty for fewer than `fewest` trials.
    """
    ended = [
        _as_complete(trial)
        for trial in trials
        if trial.state.is_finished() and trial.state != TrialState.FAIL and trial.values  # else never trained
    ]
    result: dict[str, Any] = {
        "trials": len(ended), "fewest": _MIN_TRIALS, "best": _TOP, "resamplings": _RESAMPLINGS, "shares": [],
    }  # fmt: skip
    if len(ended) < _MIN_TRIALS:
        return result
    rng = np.random.default_rng(0)
    resampled = [_shares([ended[i] for i in rng.integers(len(ended), size=len(ended))]) for _ in range(_RESAMPLINGS)]
    for name, share in _shares(ended).items():
        low, high = np.percentile([other.get(name, 0.0) for other in resampled], [5, 95])
        result["shares"].append({"name": name, "share": share, "low": float(low), "high": float(high)})
    result["best"] = max(_TOP, math.ceil(0.1 * len(ended)))
    return result


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    """A completed copy with the value of the best epoch, or of the last epoch if it diverged or collapsed."""
    done = copy.copy(trial)
    values = trial.intermediate_values
    last = trial.values[0] if len(trial.values) == 1 else values[max(values)]  # not another of several objectives
    done.state, done.values = TrialState.COMPLETE, [max(values.values()) if leaderboard.is_candidate(trial) else last]
    return done


def _shares(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters that few trials have; Optuna leaves those out
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, _TOP / len(trials)))
        return optuna.importance.get_param_importances(trial_history.in_memory_study(trials), evaluator=evaluator)


def time_spent(rows: Sequence[Mapping[str, Any]], epochs: int) -> list[dict[str, Any]]:
    """By outcome: the epochs and seconds that were run, and those that were saved, at each trial's own pace."""
    spent = []
    for kind in ("finished", "pruned", *leaderboard.DEAD, "infeasible", "failed", "running"):
        of_kind = [row for row in rows if row["kind"] == kind]
        saved = [
            (left, left * row["seconds"] / row["epochs"])
            for row in of_kind
            if kind in ("pruned", *leaderboard.DEAD) and (left := epochs - row["epochs"])
        ]
        if of_kind:
            spent.append(
                {
                    "kind": kind,
                    "trials": len(of_kind),
                    "epochs": sum(row["epochs"] for row in of_kind),
                    "seconds": sum(row["seconds"] for row in of_kind),
                    "saved_epochs": sum(left for left, _ in saved),
                    "saved_seconds": sum(seconds for _, seconds in saved),
                }
            )
    return spent


def would_longer_help(values: Sequence[float], epochs: int, objective: Objective, *, is_constant: bool) -> str:
    """Say whether a longer training would help, with no more confidence than one curve allows.

    Args:
        values: the objective after each epoch so far, out of `epochs`.
        is_constant: the learning rate is constant. One that falls to zero levels every curve at its end.
    """
    quarter, small = len(values) // 4, SMALL[objective]
    if len(values) < epochs:
        return "It is not over: it is too early to say whether a longer training would help."
    if quarter < 2:
        return f"{len(values)} epochs are too few to say whether a longer training would help."
    best, before = max(values), max(values[:-quarter])
    if max(values[-quarter:]) < best - 10 * small:
        return f"It got worse: {best:.4f} at best, {values[-1]:.4f} at its end. More epochs would not help."
    gain, earlier = best - before, before - max(values[: -2 * quarter])
    wavering = max(0.0, *(a - b for a, b in itertools.pairwise(values[-2 * quarter :])))
    is_level = gain <= max(wavering, small)
    reason = f"its last {quarter} epochs gained {gain:.4f}, the {quarter} before them {earlier:.4f}"
    if 0 < gain <= wavering:
        reason += f", and from one epoch to the next it fell by up to {wavering:.4f}"
    verdict = f"{'It had levelled off' if is_level else 'It was still rising'}: {reason}."
    if is_constant:
        return f"{verdict} More epochs would {'hardly' if is_level else 'probably'} help."
    return (
        f"{verdict} But its learning rate fell to zero by plan, which levels any curve at its end: only a new training "
        "with more epochs would tell."
    )
