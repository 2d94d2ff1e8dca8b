"""Whether a record holds what was written into it. Pure. Damage is reported, never guessed at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.policy.report_decision import Decision
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import (
    CONFIG,
    DECISION,
    ERROR,
    FAILURES,
    KNOWN,
    MIGRATIONS,
    REPORT_INDEX,
    REPORTS,
    REPORTS_AT_SUGGESTION,
    SUGGESTED_BY,
)
from model.common.validation import matches_type, wrong_fields
from model.training_report import EvalReport, Objective, objective_value

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def search_file_problem(content: Any) -> str:
    """The damaged fields of a search.json, but for `search`'s own; empty if it is intact."""
    if not isinstance(content, dict):
        return "not a mapping"
    search_id, files = content.get("id"), content.get("files", {})
    intact = {
        **_types(content, name=str, created=str),
        "id": isinstance(search_id, str) and bool(_ID.fullmatch(search_id)),
        **_types(content, search=dict),
        "space": _is_space(content.get("space")),
        "files": isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values()),
    }
    return ", ".join(field for field, is_intact in intact.items() if not is_intact)


def _is_space(space: Any) -> bool:
    """See search_spaces.Space.check."""
    if not _has(space, distributions=dict, starting_points=list, samples=list):
        return False
    distributions = space["distributions"].values()
    return all(
        isinstance(variants, list) and all(isinstance(variant, str) for variant in variants)
        for variants in distributions
    ) and all(_has(sample, params=dict) and "yields" in sample for sample in space["samples"])


def trial_problem(trial: FrozenTrial, search: SearchConfig) -> str:
    """The damaged parts of a trial; empty if it is intact. What is stored twice must agree: SQLite has no checksums."""
    attrs = trial.user_attrs
    reports = _parse_reports(attrs.get(REPORTS))
    intact = {
        **_types(attrs, **{CONFIG: dict, SUGGESTED_BY: str, REPORTS_AT_SUGGESTION: int}),
        REPORTS: reports is not None,
        "values": reports is None or _agree(trial.intermediate_values, reports, search.objective),
        KNOWN: _are_figures(attrs.get(KNOWN, {})),
        FAILURES: _are_events(attrs.get(FAILURES, []), "error"),
        MIGRATIONS: _are_events(attrs.get(MIGRATIONS, []), "why"),
    }
    if trial.state == TrialState.FAIL:
        intact[ERROR] = _has(attrs.get(ERROR), text=str, trials=int)
    elif trial.state.is_finished():
        values = trial.values or []
        has_values = len(values) == len(search.objectives) and all(map(_is_finite, values))
        is_decision = not wrong_fields(Decision, attrs.get(DECISION))
        was_trained = is_decision and attrs[DECISION]["reason"] != "limit"
        intact[DECISION] = is_decision and has_values is was_trained
    return ", ".join(part for part, is_intact in intact.items() if not is_intact)


def _are_figures(known: Any) -> bool:
    return isinstance(known, dict) and all(map(_is_finite, known.values()))


def _agree(values: Mapping[int, Any], reports: list[EvalReport], objective: Objective) -> bool:
    reported = {report.epoch: objective_value(report, objective) for report in reports}
    return all(map(_is_finite, values.values())) and reported == values


def _is_finite(value: Any) -> bool:
    return matches_type(value, float) and math.isfinite(value)


def _parse_reports(values: Any) -> list[EvalReport] | None:
    """The reports of the epochs 1, 2, 3, ... of a trial; None if one is damaged."""
    try:
        reports = [EvalReport.from_dict(value) for value in values]
        clocks = [value[key] for value in values for key in (REPORT_INDEX, "seconds", "eval_seconds")]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    in_order = [report.epoch for report in reports] == [*range(1, len(reports) + 1)]
    return reports if in_order and all(matches_type(clock, float) for clock in clocks) else None


def _are_events(events: Any, text_key: str) -> bool:
    return isinstance(events, list) and all(_has(event, **{"epoch": int, text_key: str}) for event in events)


def is_bad_measurement(value: Any) -> bool:
    """Whether the measurement of a finalist, or of the final training, is damaged."""
    optional: dict[str, type] = dict.fromkeys(("ssim", "psnr_db", "l1", "haarpsi"), float)
    optional |= {"parameters": int, "images": int, "sha256": str, "compared": dict}
    present = {key: kind for key, kind in optional.items() if isinstance(value, Mapping) and key in value}
    return not _has(value, value=float, **present) or ("compared" in present and is_bad_comparison(value["compared"]))


def is_bad_comparison(compared: Any) -> bool:
    """Whether the comparison of a finalist with the best one is damaged."""
    names = ("difference", "confidence", "probability")
    return not _has(compared, **{"with": int, "count": int, "verdict": str}, **dict.fromkeys(names, float)) or not all(
        name in compared and (compared[name] is None or matches_type(compared[name], float)) for name in ("low", "high")
    )


def are_bad_replicates(noted: Any) -> bool:
    """Whether the note about the replicates of a finalist is damaged."""
    if not isinstance(noted, Mapping):
        return True
    return any(
        not _has(one, seed=int, outcome=str, epochs=int, psnr_db=float, ssim=float)
        or is_bad_measurement(one)
        or not _is_finite(one["value"])
        for one in noted.values()
    )


def is_bad_collapse(event: Any) -> bool:
    """Whether the note about a collapse of a final training is damaged."""
    if not _has(event, trial=int, epochs=int, epoch=int, reason=str):
        return True
    return event.get("back_to") is not None and not _has(event, back_to=int, lr_g=float, lr_d=float)


def _has(values: Any, **kinds: type) -> bool:
    return isinstance(values, Mapping) and all(_types(values, **kinds).values())


def _types(values: Mapping[str, Any], **kinds: type) -> dict[str, bool]:
    """For each key whether its value has that type."""
    return {key: matches_type(values.get(key), kind) for key, kind in kinds.items()}
