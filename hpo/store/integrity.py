"""Whether what a search's folder holds is as it was written: pure. What is damaged is told, and never guessed at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.policy.pruning import Decision
from hpo.policy.trial_attributes import (
    CONFIG,
    DECISION,
    ERROR,
    FAILURES,
    MIGRATIONS,
    REPORT_INDEX,
    REPORTS,
    REPORTS_AT_SUGGESTION,
    SUGGESTED_BY,
)
from model.common.validation import matches_type, wrong_fields
from model.training_report import EvalReport, Objective, objective_value

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EVENTS = {FAILURES: "error", MIGRATIONS: "why"}


def search_file_problem(about: Any) -> str:
    """What of a search.json, its `search` not looked at; empty: nothing."""
    if not isinstance(about, dict):
        return "no mapping"
    wrong = [key for key in ("name", "created") if not isinstance(about.get(key), str)]
    wrong += [] if isinstance(of := about.get("id"), str) and _ID.fullmatch(of) else ["id"]
    wrong += [] if isinstance(about.get("search"), dict) else ["search"]
    wrong += [] if _is_space(about.get("space")) else ["space"]
    files = about.get("files", {})
    wrong += [] if isinstance(files, dict) and all(isinstance(told, str) for told in files.values()) else ["files"]
    return ", ".join(wrong)


def _is_space(space: Any) -> bool:
    """See search_spaces.Space.check."""
    if not isinstance(space, dict) or not _has(space, distributions=dict, starting_points=list, samples=list):
        return False
    told = [*space["distributions"].values()]
    samples = [sample for sample in space["samples"] if isinstance(sample, dict) and "yields" in sample]
    return (
        all(isinstance(found, list) and all(isinstance(one, str) for one in found) for found in told)
        and len(samples) == len(space["samples"])
        and all(isinstance(sample.get("params"), dict) for sample in samples)
    )


def trial_problem(trial: FrozenTrial, objective: Objective) -> str:
    """Which parts of a trial; empty: none. SQLite has no digests: what is written twice must agree."""
    found, values = trial.user_attrs, trial.intermediate_values
    epochs = _epochs(found.get(REPORTS))
    wrong = [
        key
        for key, of in {CONFIG: dict, SUGGESTED_BY: str, REPORTS_AT_SUGGESTION: int}.items()
        if not matches_type(found.get(key), of)
    ]
    wrong += [] if epochs is not None else [REPORTS]
    wrong += [] if epochs is None or _are_of(values, found[REPORTS], objective) else ["values"]
    wrong += [key for key, told in _EVENTS.items() if not _are_events(found.get(key, []), told)]
    if trial.state == TrialState.FAIL:
        wrong += [] if _has(found.get(ERROR), text=str, trials=int) else [ERROR]
    elif trial.state.is_finished():
        has_value = trial.values is not None and len(trial.values) == 1 and _is_finite(trial.values[0])
        is_right = has_value and not wrong_fields(Decision, found.get(DECISION))
        wrong += [] if is_right else [DECISION]
    return ", ".join(wrong)


def _are_of(values: Mapping[int, Any], reports: Any, objective: Objective) -> bool:
    of = (EvalReport.from_dict(report) for report in reports)
    told = {report.epoch: objective_value(report.ssim, report.psnr_db, objective) for report in of}
    return all(map(_is_finite, values.values())) and told == values


def _is_finite(value: Any) -> bool:
    return matches_type(value, float) and math.isfinite(value)


def _epochs(reports: Any) -> list[int] | None:
    """Of the reports of a trial: 1, 2, 3, ...; None where one is damaged."""
    try:
        epochs = [EvalReport.from_dict(report).epoch for report in reports]
        clocks = [report[key] for report in reports for key in (REPORT_INDEX, "seconds", "eval_seconds")]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    is_right = epochs == [*range(1, len(epochs) + 1)] and all(matches_type(clock, float) for clock in clocks)
    return epochs if is_right else None


def _are_events(events: Any, told: str) -> bool:
    return isinstance(events, list) and all(_has(event, **{"epoch": int, told: str}) for event in events)


def is_bad_measurement(value: Any) -> bool:
    """Whether what was measured of a finalist, or of the final training, is no such thing."""
    others = [value[key] for key in ("ssim", "psnr_db") if key in value] if isinstance(value, Mapping) else []
    return not _has(value, value=float) or not all(matches_type(other, float) for other in others)


def is_bad_collapse(event: Any) -> bool:
    """Whether what was noted of a final training's collapse is no such thing."""
    known = {"trial": int, "epochs": int, "epoch": int, "reason": str}
    if not _has(event, **known):
        return True
    return not (event.get("back_to") is None or _has(event, back_to=int, lr_g=float, lr_d=float))


def _has(values: Any, **of: type) -> bool:
    return isinstance(values, Mapping) and all(matches_type(values.get(name), kind) for name, kind in of.items())
