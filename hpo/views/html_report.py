"""The report: a search as one HTML file that opens from disk, without network; drawn from its folder alone."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import io
import itertools
import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

from hpo.policy import leaderboard, trial_attributes, trial_history
from hpo.policy.search_config import SearchConfig
from hpo.store import layout, search_results
from hpo.store.record import Record
from hpo.views.formatting import collapse_message, outcome
from model.checkpoint import CheckpointError, load_checkpoint
from model.common.files import write_atomically
from model.config import TrainConfig
from model.data.data_config import NUM_VALIDATION
from model.data.image_formats import ImageError
from model.data.image_reading import read_image
from model.denoise import MANIFEST, DenoiseError, read_manifest
from model.export_quality import SLIDES_TEST
from model.picture_strip import split_strip
from model.run_layout import LAST, strip_name
from model.trainer import SEARCH_VALIDATION_IMAGES
from model.training_report import SMALL, EvalReport, Objective, failure_reason, objective_value

REPORT = "report.html"  # in a search's folder
_TEMPLATE = Path(__file__).with_suffix(".html")
_SLIDES: dict[str, dict[str, Any]] = {  # of a space's first starting points so many are the slides', and what of theirs
    "losses_and_rates": {"points": 2, "name": "the slides' loss and rates"},
    "architecture": {"points": 1, "name": "the slides' settings"},
}
_TOP = 5  # best trials that importance is about; Optuna asks for at least five
_FEWEST = 2 * _TOP  # trials with a result, below which importance would be noise
_RESAMPLINGS = 40
_WALL = 6  # best trials whose pictures are shown, beside starting points and the final training
_STARTS = 3  # starting points that others are held against: the slides', then the best
_PICTURE_BYTES = 4_000_000  # of pixels: as incompressible PNGs in base64 still far below 10 MB


def write_report(record: Record, to: Path | None = None) -> Path:
    """Write the report of what is on record, be the search over or not; gives the file. Raises OSError."""
    path = to or record.user_folder / REPORT
    write_atomically(path, page(contents(record)).encode())
    return path


def page(told: Mapping[str, Any]) -> str:
    """The HTML file. Its script and style run by their digest alone; all that comes from a search is data."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    script, style = (re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL) for tag in ("script", "style"))
    assert script
    assert style
    policy = (
        f"default-src 'none'; script-src '{_digest(script[1])}'; style-src '{_digest(style[1])}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # No text inside can end the element that holds it: JSON has other ways to write these.
    data = json.dumps(told, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    filled = {"{{policy}}": policy, "{{title}}": html.escape(f"{told['name']}: a search"), "{{data}}": data}
    return re.sub("|".join(map(re.escape, filled)), lambda found: filled[found[0]], template)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def contents(record: Record) -> dict[str, Any]:
    """What the page shows, JSON-ready: results.document, and beside each trial what became of it and when."""
    trials, search, runs = record.trials(), record.search, record.user_folder.parent
    by_number = {trial.number: trial for trial in trials}
    document = search_results.document(record)
    began = min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
    rows = [{**row, **_more(by_number[row["number"]], search, began)} for row in document["trials"]]
    slides = _SLIDES.get(search.space, {"points": 0})
    of_starts = [row["number"] for row in rows if row["by"] == "starting point" and row["value"] is not None]
    starts = sorted(of_starts, key=lambda number: number >= slides["points"])[:_STARTS]
    export, final = _export(record, len(trials)), _final_training(record)
    told = {
        **document,
        "search": {name: value for name, value in document["search"].items() if name != "on_finish"},  # nobody's affair
        "trials": rows,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "created": record.about["created"],
        "finished": bool(export and export["current"] and export["metrics"]["test"]),
        "versions": {**record.about.get("versions", {}), "git_commit": record.about.get("git_commit")},
        "final_wins": search_results.final_wins(record),
        "final_training": final,
        "grace_epochs": search.grace_epochs,
        "final_collapses_told": [collapse_message(event) for event in document[layout.COLLAPSES]],
        "slides": slides,
        "starts": starts,
        "slides_test": SLIDES_TEST if search.data_config().is_slides else None,
        "validation": _validation(search, export),
        "noisy_psnr_db": next((r.noisy_psnr_db for trial in trials for r in leaderboard.reports_of(trial)), None),
        "parameters": _parameters(trials),
        "pareto": pareto(rows),
        "importance": importance(trials),
        "resamplings": _RESAMPLINGS,
        "spent": _spent(rows, search),
        "export": export,
        "runs_option": ("" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}")
        + (f" --storage {shlex.quote(record.storage.address)}" if record.storage else ""),
        "export_path": str(record.user_folder / layout.EXPORT),
        "export_folder": shlex.quote(str(record.user_folder / layout.EXPORT)),
    }
    plain: dict[str, Any] = _plain({**told, "pictures": _pictures(record, rows, starts, final)})
    return plain


# --- trials ----------------------------------------------------------------------------------------------------------


def _more(trial: FrozenTrial, search: SearchConfig, began: datetime | None) -> dict[str, Any]:
    reports = leaderboard.reports_of(trial)
    best = leaderboard.best_report(trial, search.objective)
    nodes = [report.get(trial_attributes.NODE) for report in trial.user_attrs[trial_attributes.REPORTS]]
    return {
        "kind": _kind(trial),
        "outcome": outcome(trial).replace("pruned", "stopped"),  # one word for it on the page
        "why": why(trial, search),
        "worse_than_noisy": trial.state.is_finished() and best is not None and best.psnr_db < best.noisy_psnr_db,
        "candidate": leaderboard.is_candidate(trial),
        "by": trial.user_attrs.get(trial_attributes.SUGGESTED_BY),
        "seconds": sum(report.seconds + report.eval_seconds for report in reports),
        "start": _seconds_between(began, trial.datetime_start),
        "end": _seconds_between(began, trial.datetime_complete),
        "node": next((node for node in reversed(nodes) if node), None),
        "deaths": trial.user_attrs.get(trial_attributes.FAILURES, []),
        "error": trial.user_attrs.get(trial_attributes.ERROR, {}).get("text"),
        "curves": {
            "value": [round(trial.intermediate_values[report.epoch], 5) for report in reports],
            "ssim": [round(report.ssim, 5) for report in reports],
            "psnr_db": [round(report.psnr_db, 4) for report in reports],
        },
    }


def _seconds_between(began: datetime | None, then: datetime | None) -> float | None:
    return None if began is None or then is None else round((then - began).total_seconds(), 2)


def _kind(trial: FrozenTrial) -> str:
    """finished, stopped (others were better), diverged, collapsed, failed, running."""
    return leaderboard.outcome_of(trial).replace("pruned", "stopped")


def why(trial: FrozenTrial, search: SearchConfig) -> str:
    """Why it ended, in a sentence."""
    kind, epochs = _kind(trial), len(trial.intermediate_values)
    if kind == "failed":
        when = f"after epoch {epochs}" if epochs else "before an epoch was done"
        return f"Failed {when}: {trial.user_attrs.get(trial_attributes.ERROR, {}).get('text')}"
    if kind == "running":
        return f"Not ended yet: {epochs} of {search.epochs} epochs are on record"
    if kind == "finished":
        return f"Ran all {epochs} epochs"
    if kind == "diverged":
        return f"Diverged in epoch {epochs}: a loss or a metric was no longer a finite number"
    if kind == "collapsed":
        return f"Collapsed by epoch {epochs}: worse than the noisy images, or the same output for every image"
    return _why_pruned(trial, search)


def _why_pruned(trial: FrozenTrial, search: SearchConfig) -> str:
    taken = trial.user_attrs[trial_attributes.DECISION]
    if taken["cutoff"] is None:
        return f"Stopped after epoch {taken['epoch']} by the pruner of {search.pruner}, at {taken['value']:.4f}"
    value = trial.intermediate_values[taken["compared"]]
    at = "" if taken["compared"] == taken["epoch"] else f" in epoch {taken['compared']}"
    told = (
        f"Stopped after epoch {taken['epoch']}: its {value:.4f}{at} was below the bar, {taken['cutoff']:.4f}, which "
        f"trial {taken['set_by']} had there"
    )
    if not (places := taken.get("places")):  # of a search that began before 2026-12
        return told
    which = f"lowest of the best {places}" if places > 1 else "best"
    return f"{told}: the {which} of the {taken['rivals']} trials by then"


def pareto(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Trials that no other beats in SSIM without losing to it in PSNR, at their best epochs; by falling PSNR."""
    points = [
        (-float(row["psnr_db"]), -row["ssim"], row["number"])
        for row in rows
        if row["candidate"] and _is_real(row["ssim"])
    ]
    front: list[int] = []
    highest = -math.inf
    for _, minus_ssim, number in sorted(point for point in points if not math.isnan(point[0])):
        if -minus_ssim > highest:
            front.append(number)
            highest = -minus_ssim
    return front


def _is_real(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _parameters(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """What was searched, in the order in which it was asked for: the range or the choices, over all conditions."""
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            known = found.setdefault(name, [])
            if distribution not in known:
                known.append(distribution)
    return [{"name": name, **_range(distributions)} for name, distributions in found.items()]


def _range(distributions: Sequence[Any]) -> dict[str, Any]:
    if any(isinstance(distribution, CategoricalDistribution) for distribution in distributions):
        choices = [choice for distribution in distributions for choice in getattr(distribution, "choices", ())]
        return {"choices": list({repr(choice): choice for choice in choices}.values())}
    return {
        "low": min(distribution.low for distribution in distributions),
        "high": max(distribution.high for distribution in distributions),
        "log": all(distribution.log for distribution in distributions),
    }


def importance(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What sets the best trials apart, by Optuna's PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255).

    It asks only which trials are the best, so that stopped ones count too, in fair company: who was stopped is not
    among them. Shares add up to 1; low and high are the 5th and 95th percentile over resamplings of the trials.
    """
    ended = [_as_complete(trial) for trial in trials if trial.state.is_finished() and trial.state != TrialState.FAIL]
    told: dict[str, Any] = {"trials": len(ended), "fewest": _FEWEST, "best": _TOP, "shares": []}
    if len(ended) < _FEWEST:
        return told
    shares = _shares(ended)
    rng = np.random.default_rng(0)
    resampled = [_shares([ended[i] for i in rng.integers(len(ended), size=len(ended))]) for _ in range(_RESAMPLINGS)]
    for name, share in shares.items():
        low, high = np.percentile([other.get(name, 0.0) for other in resampled], [5, 95])
        told["shares"].append({"name": name, "share": share, "low": float(low), "high": float(high)})
    told["best"] = max(_TOP, math.ceil(0.1 * len(ended)))
    return told


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    """With the value of its best epoch; of one that diverged or collapsed that of its last."""
    done = copy.copy(trial)
    values = trial.intermediate_values.values()
    done.state, done.values = TrialState.COMPLETE, [max(values) if leaderboard.is_candidate(trial) else trial.values[0]]
    return done


def _shares(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parameters that few trials have, of which it leaves out what it must
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, _TOP / len(trials)))
        return optuna.importance.get_param_importances(trial_history.in_memory_study(trials), evaluator=evaluator)


def _spent(rows: Sequence[Mapping[str, Any]], search: SearchConfig) -> list[dict[str, Any]]:
    """By how trials ended: epochs and seconds that were run, and those that stopping saved: each trial's own pace."""
    told = []
    for kind in ("finished", "stopped", "diverged", "collapsed", "failed", "running"):
        of_kind = [row for row in rows if row["kind"] == kind]
        saved = [
            (left, left * row["seconds"] / row["epochs"])
            for row in of_kind
            if kind in ("stopped", "diverged", "collapsed") and (left := search.epochs - row["epochs"])
        ]
        if of_kind:
            told.append(
                {
                    "kind": kind,
                    "trials": len(of_kind),
                    "epochs": sum(row["epochs"] for row in of_kind),
                    "seconds": sum(row["seconds"] for row in of_kind),
                    "saved_epochs": sum(left for left, _ in saved),
                    "saved_seconds": sum(seconds for _, seconds in saved),
                }
            )
    return told


# --- what else lies in the folder ------------------------------------------------------------------------------------


def _export(record: Record, num_trials: int) -> dict[str, Any] | None:
    """What the exported folder says of itself; None where there is none of this search."""
    try:
        manifest = read_manifest(record.fetch(record.folder / layout.EXPORT / MANIFEST).parent)
    except DenoiseError:
        return None
    origin = manifest["origin"]
    if origin.get("search_id") != record.id:
        return None
    return {
        "trial": origin.get("trial"),
        "trials": origin.get("trials"),
        "final_training": origin.get("final_training"),
        "current": (origin.get("trials"), origin.get("final_epochs")) == (num_trials, record.search.final_epochs),
        "metrics": manifest["metrics"],
        "parameters": manifest["model"]["parameters"],
    }


def _validation(search: SearchConfig, export: Mapping[str, Any] | None) -> dict[str, int | None]:
    """How many validation images there are, None where nothing says so; and how many of them trials look at."""
    count = None if search.data_config().is_folder else NUM_VALIDATION
    count = export["metrics"]["validation"]["images"] if export else count
    return {"all": count, "trials": min(SEARCH_VALIDATION_IMAGES, count or SEARCH_VALIDATION_IMAGES)}


def _final_training(record: Record) -> dict[str, Any] | None:
    """Its learning curve, and which epoch was kept; it may be under way."""
    path = record.folder / layout.FINAL / LAST
    if not record.search.final_epochs or not record.fetch(path).exists():
        return None
    try:
        _, state = load_checkpoint(path)
    except (CheckpointError, OSError):
        return None
    reports = [EvalReport.from_dict(report) for report in state["reports"]]
    values = [objective_value(report.ssim, report.psnr_db, record.search.objective) for report in reports]
    config = TrainConfig.from_dict(state["config"])
    is_constant = config.lr_schedule == "constant"
    verdict = longer(values, record.search.final_epochs, record.search.objective, is_constant=is_constant)
    if reason := failure_reason(reports):
        verdict = f"It {reason} by epoch {len(values)}, and ended there: these settings do not bear a longer one."
    same = replace(config, epochs=record.search.epochs)
    of = (t.number for t in record.trials() if TrainConfig.from_dict(t.user_attrs[trial_attributes.CONFIG]) == same)
    lower = (event["trial"] for event in search_results.collapses(record) if event.get("lr_g") == config.lr_g)
    return {
        "trial": next(
            of, next(lower, search_results.winner(record))
        ),  # not always the winner's: that may have collapsed
        "epochs": record.search.final_epochs,
        "verdict": verdict,
        "best_epoch": len(values) - int(np.argmax(values[::-1])),  # of equal ones the last
        "seconds": sum(report.seconds + report.eval_seconds for report in reports),
        "curves": {
            "value": values,
            "ssim": [report.ssim for report in reports],
            "psnr_db": [report.psnr_db for report in reports],
        },
    }


def longer(values: Sequence[float], epochs: int, objective: Objective, *, is_constant: bool) -> str:
    """Would a longer training help? No surer than one curve of so many epochs allows.

    is_constant: the learning rate is. One that falls to zero levels every curve at its end, whatever its length.
    """
    quarter, small = len(values) // 4, SMALL[objective]
    if len(values) < epochs:
        return "It is not over: too early to say whether a longer one would help."
    if quarter < 2:
        return f"Whether a longer one would help, {len(values)} epochs are too few to say."
    best, before = max(values), max(values[:-quarter])
    if max(values[-quarter:]) < best - 10 * small:
        return f"It got worse: {best:.4f} at best, {values[-1]:.4f} at its end. More epochs like these would not help."
    gain, earlier = best - before, before - max(values[: -2 * quarter])
    wavering = max(0.0, *(a - b for a, b in itertools.pairwise(values[-2 * quarter :])))
    is_level = gain <= max(wavering, small)
    said = f"its last {quarter} epochs gained {gain:.4f}, the {quarter} before them {earlier:.4f}"
    if 0 < gain <= wavering:
        said += f", and from one epoch to the next it fell by up to {wavering:.4f}"
    verdict = f"{'It had levelled off' if is_level else 'It was still rising'}: {said}."
    if is_constant:
        return f"{verdict} More epochs would {'hardly' if is_level else 'probably'} help."
    return (
        f"{verdict} But its learning rate fell to zero by plan, which levels any curve at its end: only a new "
        "training, planned longer, would tell."
    )


def _pictures(
    record: Record, rows: Sequence[Mapping[str, Any]], starts: Sequence[int], final: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The same validation images as the best trials and starting points denoised them, each in its best epoch."""
    best = [row for row in rows if row["candidate"]][:_WALL]
    shown_too = [row for row in rows if row["number"] in starts and row not in best]
    files = {
        str(row["number"]): record.trial_folder(row["number"]) / strip_name(row["best_epoch"])
        for row in [*best, *shown_too]
    }
    if final:
        files[layout.FINAL] = record.folder / layout.FINAL / strip_name(final["best_epoch"])
    denoised: dict[str, np.ndarray] = {}
    noisy = clean = None
    for name, path in files.items():
        try:
            noisy, denoised[name], clean = split_strip(read_image(record.fetch(path)).pixels)
        except (ImageError, OSError, ValueError):  # a picture that is gone, or half written, is left out
            continue
    if noisy is None or clean is None:
        return None
    shown = max(1, min(len(clean), _PICTURE_BYTES // ((len(denoised) + 2) * clean[0].nbytes)))
    every = {"noisy": noisy, "clean": clean, **denoised}
    encoded = {name: _png(pixels[:shown]) for name, pixels in every.items() if pixels.shape == clean.shape}
    return {"side": clean.shape[1], "shown": shown, "png": encoded}


def _png(images: np.ndarray) -> str:
    """(N, H, W) or (N, H, W, 3) uint8 beside each other, in base64."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(images), axis=1)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _plain(value: Any) -> Any:
    """JSON-ready: what is not finite becomes the string "nan", "inf" or "-inf", as in `hpo show --json`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
