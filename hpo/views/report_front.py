"""The report's data on several objectives and on limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy import leaderboard
from hpo.policy.objectives import MINIMIZED, TRAINED, describe, is_known_before_training
from hpo.policy.pick import sentences
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION
from hpo.policy.trial_objectives import objective_values, value_at, violations
from hpo.store import search_results
from hpo.store.record import Record
from hpo.views.objectives_text import figures, latency_words, limit_reason

_LABELS = {
    "balanced": "SSIM + PSNR/40",
    "ssim": "SSIM",
    "psnr": "PSNR dB",
    "l1": "L1",
    "haarpsi": "HaarPSI",
    "latency": "latency in ms",
    "params": "parameters",
    "size_mb": "MB",
}


def front_contents(record: Record) -> dict[str, Any] | None:
    """The front and the axes of its pictures; None for a search with one objective.

    Each picture has the first objective that needs training against one of the others.
    """
    search = record.search
    if not search.is_multi_objective:
        return None
    members = search_results.current_members(record)
    names = sorted(search.objectives, key=lambda name: name != search.objective)
    return {
        "axes": [_axis(name) for name in names],
        "front": leaderboard.front(record.trials(), search),
        "members": [member.as_dict() for member in members],
        "sentences": sentences(members, search),
        "machine": latency_words(members[0]) if members else "",
    }


def _axis(name: str) -> dict[str, Any]:
    is_known = is_known_before_training(name)
    return {"name": name, "label": _LABELS[name], "smaller_is_better": name in MINIMIZED, "log": is_known}


def extra_figures(search: SearchConfig) -> list[dict[str, Any]]:
    """The columns that objectives and limits add to a leaderboard of SSIM, PSNR and L1."""
    names = dict.fromkeys([*search.objectives, *(limit.name for limit in search.limits())])
    is_wanted = search.is_multi_objective or bool(search.limit)
    return [_axis(name) for name in names if is_wanted and (name == "haarpsi" or name not in TRAINED)]


def limits(search: SearchConfig) -> list[dict[str, Any]]:
    """Each limit: the objective, the bound, and both in words."""
    return [{"name": limit.name, "bound": limit.bound, "text": str(limit)} for limit in search.limits()]


def front_details(trial: FrozenTrial, search: SearchConfig) -> dict[str, Any]:
    """What the report says of a trial in a search with several objectives, by its best epoch."""
    if not search.is_multi_objective:
        return {}
    decision = trial.user_attrs.get(DECISION, {})
    values = objective_values(trial, search)
    return {
        "objectives": values,
        "figures": figures(values) if values else None,
        "beaten_by": decision["set_by"] if decision.get("reason") == "dominated" else None,
    }


def why_dominated(trial: FrozenTrial, trials: Sequence[FrozenTrial], search: SearchConfig) -> str:
    """Why a trial was pruned that another one dominates, in a sentence."""
    decision = trial.user_attrs[DECISION]
    own, others = ({n: value_at(of, n, decision["compared"]) for n in search.objectives} for of in _pair(trial, trials))
    known = [{name: value for name, value in each.items() if value is not None} for each in (others, own)]
    against = " against ".join(map(figures, known))
    return (
        f"Pruned after epoch {decision['epoch']}: trial {decision['set_by']} was nowhere worse by that epoch "
        f"({against}), and {decision['places']} of {decision['rivals']} trials continue"
    )


def _pair(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> tuple[FrozenTrial, FrozenTrial]:
    return trial, trials[trial.user_attrs[DECISION]["set_by"]]


def why_infeasible(trial: FrozenTrial, search: SearchConfig) -> str:
    """Why a trial was not trained, in a sentence."""
    return f"Not trained: {limit_reason(violations(trial, search))}"


def violated_text(trial: FrozenTrial, search: SearchConfig) -> str:
    """`26.81 dB violates psnr>=27`, of a trial that was trained; empty if it violates nothing."""
    found = violations(trial, search).items()
    texts = {limit: describe(limit.partition("<=")[0].partition(">=")[0], value) for limit, value in found}
    return " and ".join(f"{text} violates {limit}" for limit, text in texts.items())
