"""The data of the report, read from a search's folder."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial
from PIL import Image

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.search_config import SearchConfig
from hpo.store import file_names, search_results
from hpo.store.record import Record
from hpo.views.comparison_text import comparison_lines
from hpo.views.formatting import collapse_message, outcome, place_options
from hpo.views.objectives_text import limit_lines
from hpo.views.report_analysis import importance, pareto, time_spent, would_longer_help
from hpo.views.report_front import (
    extra_figures,
    front_contents,
    front_details,
    limits,
    violated_text,
    why_dominated,
    why_infeasible,
)
from model.checkpoint import CheckpointError, load_checkpoint
from model.config import TrainConfig
from model.data.data_config import NUM_VALIDATION
from model.data.image_formats import ImageError
from model.data.image_reading import read_image
from model.denoise import MANIFEST, DenoiseError, read_manifest
from model.export_quality import SLIDES_TEST
from model.picture_strip import split_strip
from model.trainer import SEARCH_VALIDATION_IMAGES
from model.training_files import LAST, strip_name
from model.training_report import EvalReport, failure_reason, objective_value

# By search space: how many of its first starting points come from the slides, and a name for what they share.
_SLIDES: dict[str, dict[str, Any]] = {
    "losses_and_rates": {"points": 2, "name": "the slides' loss and rates"},
    "architecture": {"points": 1, "name": "the slides' settings"},
}
_PICTURED_TRIALS = 6  # best trials whose pictures are shown, beside starting points and the final training
_NUM_STARTS = 3  # starting points that others are compared with: the slides', then the best
_PICTURE_BYTES = 4_000_000  # of pixels: as incompressible PNGs in base64 still far below 10 MB


def contents(record: Record) -> dict[str, Any]:
    """The report's data, JSON-ready: search_results.document with more about each trial, and what the folder has."""
    trials, search = record.trials(), record.search
    storage = record.storage.address if record.storage else None
    document = search_results.document(record)
    by_number = {trial.number: trial for trial in trials}
    began = min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
    rows = [{**row, **_details(by_number[row["number"]], trials, search, began)} for row in document["trials"]]
    slides = _SLIDES.get(search.space, {"points": 0})
    starting_points = [row["number"] for row in rows if row["by"] == "starting point" and row["value"] is not None]
    starts = sorted(starting_points, key=lambda number: number >= slides["points"])[:_NUM_STARTS]
    export, final = _export(record), _final_training(record)
    data = {
        **document,
        "search": {k: v for k, v in document["search"].items() if k != "on_finish"},  # a command may hold secrets
        "objective": search.objective,
        "trials": rows,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "created": record.about["created"],
        "finished": bool(export and export["current"] and export["metrics"]["test"]),
        "versions": {**record.about.get("versions", {}), "git_commit": record.about.get("git_commit")},
        "tradeoffs": front_contents(record),
        "limits": limits(search),
        "limit_lines": limit_lines(trials, search),
        "extra_figures": extra_figures(search),
        "comparison": [] if search.is_multi_objective else comparison_lines(search_results.comparison(record)),
        "final_wins": search_results.final_wins(record),
        "final_training": final,
        "grace_epochs": search.grace_epochs,
        "collapse_messages": [collapse_message(event) for event in document[file_names.COLLAPSES]],
        "slides": slides,
        "starts": starts,
        "slides_test": SLIDES_TEST if search.data_config().is_slides else None,
        "validation": _validation(search, export),
        "noisy_psnr_db": next((r.noisy_psnr_db for trial in trials for r in leaderboard.reports_of(trial)), None),
        "parameters": _parameters(trials),
        "pareto": pareto(rows),
        "importance": importance(trials),
        "spent": time_spent(rows, search.epochs),
        "export": export,
        "options": "".join(f" {shlex.quote(word)}" for word in place_options(record.user_folder.parent, storage)),
        "export_path": str(record.user_folder / file_names.EXPORT),
        "export_folder": shlex.quote(str(record.user_folder / file_names.EXPORT)),
        "pictures": _pictures(record, rows, starts, final),
    }
    plain: dict[str, Any] = _plain(data)
    return plain


def _details(
    trial: FrozenTrial, trials: Sequence[FrozenTrial], search: SearchConfig, began: datetime | None
) -> dict[str, Any]:
    """What the report says of a trial beyond the leaderboard. began: when the first trial did."""
    reports = leaderboard.reports_of(trial)
    best = leaderboard.best_report(trial, search.objective)
    nodes = [report.get(trial_attributes.NODE) for report in trial.user_attrs[trial_attributes.REPORTS]]
    return {
        "kind": leaderboard.outcome_of(trial),
        "outcome": outcome(trial),
        "why": why_it_ended(trial, trials, search),
        **front_details(trial, search),
        "worse_than_noisy": trial.state.is_finished() and best is not None and best.psnr_db < best.noisy_psnr_db,
        "candidate": leaderboard.is_candidate(trial),
        "by": trial.user_attrs.get(trial_attributes.SUGGESTED_BY),
        "seconds": sum(report.seconds + report.eval_seconds for report in reports),
        "start": _seconds_between(began, trial.datetime_start),
        "end": _seconds_between(began, trial.datetime_complete),
        "node": next((node for node in reversed(nodes) if node), None),
        "failures": trial.user_attrs.get(trial_attributes.FAILURES, []),
        "error": trial.user_attrs.get(trial_attributes.ERROR, {}).get("text"),
        "curves": {
            "value": [round(trial.intermediate_values[report.epoch], 5) for report in reports],
            "ssim": [round(report.ssim, 5) for report in reports],
            "psnr_db": [round(report.psnr_db, 4) for report in reports],
            "haarpsi": [round(report.haarpsi, 5) for report in reports],
        },
    }


def _seconds_between(began: datetime | None, then: datetime | None) -> float | None:
    return None if began is None or then is None else round((then - began).total_seconds(), 2)


def why_it_ended(trial: FrozenTrial, trials: Sequence[FrozenTrial], search: SearchConfig) -> str:
    """Why a trial ended, in a sentence."""
    kind, epochs = leaderboard.outcome_of(trial), len(trial.intermediate_values)
    if kind == "pruned":
        return _why_pruned(trial, trials, search)
    if kind == "failed":
        when = f"after epoch {epochs}" if epochs else "before the end of its first epoch"
        return f"Failed {when}: {trial.user_attrs.get(trial_attributes.ERROR, {}).get('text')}"
    if kind == "infeasible":
        return why_infeasible(trial, search)
    violated = violated_text(trial, search)
    return {
        "running": f"Still running: {epochs} of {search.epochs} epochs are recorded",
        "finished": f"Ran all {epochs} epochs{', but ' * bool(violated)}{violated}",
        "diverged": f"Diverged in epoch {epochs}: a loss or a metric was no longer a finite number",
        "collapsed": f"Collapsed by epoch {epochs}: worse than the noisy images, or the same output for every image",
    }[kind]


def _why_pruned(trial: FrozenTrial, trials: Sequence[FrozenTrial], search: SearchConfig) -> str:
    decision = trial.user_attrs[trial_attributes.DECISION]
    if decision["reason"] == "dominated":
        return why_dominated(trial, trials, search)
    if decision["cutoff"] is None:
        return f"Pruned after epoch {decision['epoch']} by the pruner of {search.pruner}, at {decision['value']:.4f}"
    value = trial.intermediate_values[decision["compared"]]
    at = "" if decision["compared"] == decision["epoch"] else f" in epoch {decision['compared']}"
    reason = (
        f"Pruned after epoch {decision['epoch']}: its {value:.4f}{at} was below the cutoff of "
        f"{decision['cutoff']:.4f}, which trial {decision['set_by']} had reached by that epoch"
    )
    if not (places := decision.get("places")):  # a search that began before 2026-12
        return reason
    which = f"lowest of the best {places}" if places > 1 else "best"
    return f"{reason}, the {which} of {decision['rivals']} trials"


def _parameters(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """The searched parameters in the order of their suggestion, each with its range or choices over all conditions."""
    by_name: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            by_name.setdefault(name, []).append(distribution)
    return [{"name": name, **_range(distributions)} for name, distributions in by_name.items()]


def _range(distributions: Sequence[Any]) -> dict[str, Any]:
    if any(isinstance(distribution, CategoricalDistribution) for distribution in distributions):
        choices = [choice for distribution in distributions for choice in getattr(distribution, "choices", ())]
        return {"choices": list({repr(choice): choice for choice in choices}.values())}
    return {
        "low": min(distribution.low for distribution in distributions),
        "high": max(distribution.high for distribution in distributions),
        "log": all(distribution.log for distribution in distributions),
    }


def _export(record: Record) -> dict[str, Any] | None:
    """What the manifest of this search's export says; None if there is no export."""
    try:
        manifest = read_manifest(record.fetch(record.folder / file_names.EXPORT / MANIFEST).parent)
    except DenoiseError:
        return None
    origin = manifest["origin"]
    if origin.get("search_id") != record.id:
        return None
    return {
        "trial": origin.get("trial"),
        "trials": origin.get("trials"),
        "final_training": origin.get("final_training"),
        "current": origin.items() >= search_results.extent(record).items(),
        "metrics": manifest["metrics"],
        "parameters": manifest["model"]["parameters"],
    }


def _validation(search: SearchConfig, export: Mapping[str, Any] | None) -> dict[str, int | None]:
    """The number of validation images, None where it is not known; and how many of them measure a trial."""
    count = None if search.data_config().is_folder else NUM_VALIDATION
    count = export["metrics"]["validation"]["images"] if export else count
    return {"all": count, "trials": min(SEARCH_VALIDATION_IMAGES, count or SEARCH_VALIDATION_IMAGES)}


def _final_training(record: Record) -> dict[str, Any] | None:
    """The learning curve of the final training, over or not, and its best epoch; None if it has not begun."""
    path = record.folder / file_names.FINAL / LAST
    if not record.search.final_epochs or not record.fetch(path).exists():
        return None
    try:
        _, state = load_checkpoint(path)
    except (CheckpointError, OSError):
        return None
    search, config = record.search, TrainConfig.from_dict(state["config"])
    reports = [EvalReport.from_dict(report) for report in state["reports"]]
    values = [objective_value(report, search.objective) for report in reports]
    verdict = would_longer_help(
        values, search.final_epochs, search.objective, is_constant=config.lr_schedule == "constant"
    )
    if reason := failure_reason(reports):
        verdict = f"It {reason} by epoch {len(values)} and ended there: these settings cannot train for longer."
    return {
        "trial": _trial_of(record, config),
        "epochs": search.final_epochs,
        "verdict": verdict,
        "best_epoch": len(values) - int(np.argmax(values[::-1])),  # the last of equal ones
        "seconds": sum(report.seconds + report.eval_seconds for report in reports),
        "curves": {
            "value": values,
            "ssim": [report.ssim for report in reports],
            "psnr_db": [report.psnr_db for report in reports],
        },
    }


def _trial_of(record: Record, config: TrainConfig) -> int | None:
    """The trial whose configuration the final training has. It need not be the winner: that may have collapsed."""
    as_trial = replace(config, epochs=record.search.epochs)
    for trial in record.trials():
        if TrainConfig.from_dict(trial.user_attrs[trial_attributes.CONFIG]) == as_trial:
            return trial.number
    for event in search_results.collapses(record):  # a collapse has lowered the rates
        if event.get("lr_g") == config.lr_g:
            return int(event["trial"])
    return search_results.winner(record)


def _pictures(
    record: Record, rows: Sequence[Mapping[str, Any]], starts: Sequence[int], final: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The same validation images denoised by the best trials and starting points, each in its best epoch."""
    best = [row for row in rows if row["candidate"]][:_PICTURED_TRIALS]
    others = [row for row in rows if row["number"] in starts and row not in best]
    files = {
        str(row["number"]): record.trial_folder(row["number"]) / strip_name(row["best_epoch"])
        for row in [*best, *others]
    }
    if final:
        files[file_names.FINAL] = record.folder / file_names.FINAL / strip_name(final["best_epoch"])
    denoised: dict[str, np.ndarray] = {}
    noisy = clean = None
    for name, path in files.items():
        with suppress(ImageError, OSError, ValueError):  # leave out a picture that is missing or half written
            noisy, denoised[name], clean = split_strip(read_image(record.fetch(path)).pixels)
    if noisy is None or clean is None:
        return None
    shown = max(1, min(len(clean), _PICTURE_BYTES // ((len(denoised) + 2) * clean[0].nbytes)))
    images = {"noisy": noisy, "clean": clean, **denoised}
    encoded = {name: _png(pixels[:shown]) for name, pixels in images.items() if pixels.shape == clean.shape}
    return {"side": clean.shape[1], "shown": shown, "png": encoded}


def _png(images: np.ndarray) -> str:
    """Images (N, H, W) or (N, H, W, 3) in uint8 beside each other, as PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(images), axis=1)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _plain(value: Any) -> Any:
    """JSON-ready: numbers that are not finite become "nan", "inf" or "-inf", as in `hpo show --json`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
