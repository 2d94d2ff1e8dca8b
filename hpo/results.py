"""The leaderboard and the winner of a search, and its export."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from hpo import damage, decide
from hpo.config import SearchConfig
from hpo.decide import ASKED, BY, DECISION, ERROR, FAILURES, MOVES, REPORTS
from hpo.record import Record, RecordError
from model.checkpoint import CheckpointError, load_checkpoint
from model.config import ConfigError, is_a
from model.data import DataConfig, Images
from model.denoise import MANIFEST, DenoiseError, read_manifest
from model.export import export
from model.metrics import EvalReport, Objective, objective_value
from model.run import BEST
from model.stream import PixelFiles

FINALISTS, FINAL = "finalists", "final"  # notes on the record; the final training has a folder of that name too
COLLAPSES = "final_collapses"  # as those: each time that a final training collapsed, and what was done then
LOST = "lost"  # as those: numbers of the trials whose best checkpoint was damaged or gone when the search ended
IMAGES = "images"  # as those: the digest of the images that its trials see
EXPORT = "export"  # the folder of the winner's export
NUM_FINALISTS = 3


def reports_of(trial: FrozenTrial) -> list[EvalReport]:
    """Of epoch 1, 2, 3, ..."""
    return [EvalReport.from_dict(report) for report in trial.user_attrs[REPORTS]]


def best_report(trial: FrozenTrial, objective: Objective) -> EvalReport | None:
    """Of the epoch whose checkpoint is kept as the best."""
    return best_of(reports_of(trial), objective)


def best_of(reports: Sequence[EvalReport], objective: Objective) -> EvalReport | None:
    """As above, of any training."""
    # The last of equal ones: the checkpoint too is exchanged when a later epoch is as good.
    return max(
        reversed(reports),
        key=lambda report: objective_value(report.ssim, report.psnr_db, objective),
        default=None,
    )


def row(trial: FrozenTrial, objective: Objective) -> dict[str, Any]:
    """One line of the leaderboard, JSON-ready; metrics are those of its best epoch."""
    best = best_report(trial, objective)
    reports = reports_of(trial)
    measured = best.as_dict() if best else {"ssim": None, "psnr_db": None, "l1": None, "epoch": None}
    seconds = sum(report.seconds for report in reports)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "epochs": len(reports),
        "best_epoch": measured["epoch"],
        "value": objective_value(best.ssim, best.psnr_db, objective) if best else None,
        "ssim": measured["ssim"],
        "psnr_db": measured["psnr_db"],
        "l1": measured["l1"],
        "params": trial.params,
        "stop_reason": _stop_reason(trial),
        "images": reports[-1].images if reports else 0,
        "images_per_second": reports[-1].images / seconds if seconds else None,
    }


def leaderboard(trials: Sequence[FrozenTrial], objective: Objective) -> list[dict[str, Any]]:
    """Best first; those without a report last."""
    rows = [row(trial, objective) for trial in trials]
    return sorted(rows, key=lambda r: (r["value"] is None, -(r["value"] or 0.0), r["number"]))


def finalists(trials: Sequence[FrozenTrial], objective: Objective, lost: Collection[int] = ()) -> list[int]:
    """Numbers of the trials that are worth measuring on all validation images. lost: those that cannot be."""
    return candidates([trial for trial in trials if trial.number not in lost], objective)[:NUM_FINALISTS]


def candidates(trials: Sequence[FrozenTrial], objective: Objective) -> list[int]:
    """Numbers of the trials that can win, best first by their own reports."""
    return [row["number"] for row in leaderboard([trial for trial in trials if is_candidate(trial)], objective)]


def ranked(record: Record) -> list[int]:
    """The finalists, best first: by all validation images once they were measured, else by their own reports."""
    notes = record.notes()
    numbers = finalists(record.trials(), record.search.objective, lost(notes))
    measured = _finalists(notes)
    if measured.keys() == set(map(str, numbers)):  # else they are those of an earlier end
        numbers.sort(key=lambda number: -measured[str(number)]["value"])
    return numbers


def lost(notes: Mapping[str, Any]) -> list[int]:
    """Trials that cannot win. Raises RecordError."""
    found = notes.get(LOST, [])
    if not isinstance(found, list) or not all(is_a(number, int) for number in found):
        raise RecordError(f"the search's note {LOST}: damaged")
    return found


def _finalists(notes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By the number of the trial. Raises RecordError."""
    measured = notes.get(FINALISTS, {})
    if not isinstance(measured, dict) or any(map(damage.of_measured, measured.values())):
        raise RecordError(f"the search's note {FINALISTS}: damaged")
    return measured


def final_of(record: Record) -> dict[str, Any] | None:
    """What the final training came to, and of which trial's configuration. Raises RecordError."""
    final: dict[str, Any] | None = record.notes().get(FINAL)
    if final and (damage.of_measured(final) or not is_a(final.get("trial"), int)):
        raise RecordError(f"the search's note {FINAL}: damaged")
    return final or None


def collapses(record: Record) -> list[dict[str, Any]]:
    """Each time that a final training collapsed or diverged, in order. Raises RecordError.

    trial, epochs: whose configuration, and for how many epochs; reason, epoch: what happened, and when; back_to, lr_g,
    lr_d: the epoch that it went back to and the rates from there on, None where it was given up.
    """
    found: list[dict[str, Any]] = record.notes().get(COLLAPSES, [])
    if not isinstance(found, list) or any(map(damage.of_collapse, found)):
        raise RecordError(f"the search's note {COLLAPSES}: damaged")
    return found


def winner(record: Record) -> int | None:
    """The trial with the best checkpoint, or with the configuration that the final training made the best of."""
    if final_wins(record):
        return int((final_of(record) or {})["trial"])
    return next(iter(ranked(record)), None)


def document(record: Record) -> dict[str, Any]:
    """`hpo show --json`."""
    notes = record.notes()
    return {
        "name": record.name,
        "id": record.id,
        "search": record.search.as_dict(),
        "winner": winner(record),
        FINALISTS: _finalists(notes),
        FINAL: final_of(record),
        COLLAPSES: collapses(record),
        LOST: lost(notes),
        "trials": leaderboard(record.trials(), record.search.objective),
    }


def export_document(record: Record) -> dict[str, Any]:
    """Where the export is, and what was measured on it. Raises DenoiseError."""
    folder = (record.folder / EXPORT).resolve()
    manifest = read_manifest(folder)
    return {"folder": str(folder), "origin": manifest["origin"], "metrics": manifest["metrics"]}


def decisions(record: Record) -> dict[str, Any]:
    """`hpo show --decisions --json`: why each trial was stopped or let go on, taken again from the record."""
    trials, search = record.trials(), record.search
    return {"name": record.name, "trials": [_decided(trials, t, search) for t in trials]}


def _decided(trials: Sequence[FrozenTrial], trial: FrozenTrial, search: SearchConfig) -> dict[str, Any]:
    taken = [asdict(decision) for decision in decide.judgements(trials, trial.number, search)]
    recorded = trial.user_attrs.get(DECISION)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "suggested_by": trial.user_attrs.get(BY),
        "suggested_after_reports": trial.user_attrs[ASKED],
        "decisions": [decision for decision in taken if decision["reason"] != "not compared"],
        "recorded": recorded,
        "agrees": recorded is None or recorded.items() <= taken[-1].items(),  # an older one lacks `places`
        "failures": trial.user_attrs.get(FAILURES, []),
        "moves": trial.user_attrs.get(MOVES, []),
        "error": trial.user_attrs.get(ERROR, {}).get("text"),
    }


def final_wins(record: Record) -> bool:
    """Whether a finalist's configuration, trained longer, beats them all: on all validation images, like them."""
    final, numbers = final_of(record), ranked(record)
    if not final or not record.search.final_epochs or final["trial"] not in numbers:
        return False
    best = _finalists(record.notes()).get(str(numbers[0]))
    return best is not None and bool(final["value"] >= best["value"])


def is_over(record: Record) -> bool:
    """All trials ended, and none left to start: from here on the test images may be looked at."""
    trials = record.trials()
    return len(trials) >= record.search.trials and all(trial.state.is_finished() for trial in trials)


def is_exported(record: Record) -> bool:
    """The search is over, and its export/ is of the trials and the final training that it now has."""
    try:
        origin = read_manifest(record.here(record.folder / EXPORT / MANIFEST).parent)["origin"]
    except DenoiseError:
        return False
    return is_over(record) and origin.items() >= _extent(record).items()


def check_images(record: Record, images: Images, where: str) -> None:
    """Raises ConfigError where they are not those that its trials saw, wherever these have moved to."""
    seen, digest = record.notes().get(IMAGES), images.digest
    if seen in (None, digest):
        return
    raise ConfigError(
        f"{record.name}: its trials saw other images than {where} has now, or the same split in another way: their "
        f"digest begins with {str(seen)[:12]}, that of these with {digest[:12]}. If they have moved, --data says where "
        "to; docs/data.md has what earlier versions read in another way"
    )


def export_winner(
    record: Record,
    images: Images,
    *,
    over: bool,
    data: DataConfig | None = None,
    trial: int | None = None,
    to: Path | None = None,
    trainable: bool = False,
) -> dict[str, Any]:
    """The winner's best checkpoint, or that of a trial, as a deployable folder; gives its manifest.

    over: whether the search is, so that the test images may be looked at. data: where they have moved to. Raises
    ConfigError where there is nothing to export, CheckpointError, ExportError, OSError.
    """
    number = winner(record) if trial is None else record.trial(trial).number
    if number is None:
        raise ConfigError(f"{record.name}: no trial has a valid result yet")
    if trial is not None:
        check_kept(record, trial)
    final = trial is None and final_wins(record)
    folder = record.folder / FINAL if final else record.trial_folder(number)
    data = data or record.search.data_config()
    origin = {"search": record.name, "search_id": record.id, "trial": number, "final_training": final}
    with PixelFiles(record.folder.parent, record.name) as store:
        test = data.load_test(store) if over else None
    try:
        return export(
            record.here(folder / BEST),
            to or record.home / EXPORT,
            data=data,
            images=images,
            test=test,
            origin={**origin, **_extent(record)},
            trainable=trainable,
        )
    except CheckpointError as error:
        best = next((n for n in _by_rank(record) if (final or n != number) and _is_whole(record, n)), None)
        other = "no other trial has one that is whole" if best is None else f"the next best: --trial {best}"
        raise CheckpointError(f"{error}; {other}") from error


def _by_rank(record: Record) -> list[int]:
    """All candidates, the finalists first."""
    return list(dict.fromkeys([*ranked(record), *candidates(record.trials(), record.search.objective)]))


def _is_whole(record: Record, number: int) -> bool:
    """Whether a trial's best checkpoint is there and undamaged."""
    path = record.trial_folder(number) / BEST
    if not record.has(path):
        return False
    try:
        load_checkpoint(record.here(path))
    except CheckpointError:
        return False
    return True


def check_kept(record: Record, number: int) -> None:
    """Raises ConfigError, naming the trials that have one, where a trial's best checkpoint is not there."""
    if record.here(record.trial_folder(number) / BEST).exists():
        return
    have = [trial.number for trial in record.trials() if record.has(record.trial_folder(trial.number) / BEST)]
    why = "was let go" if record.trial(number).state.is_finished() else "is not there yet"
    raise ConfigError(
        f"trial={number}: its checkpoint {why}. {record.name} has those of trials "
        f"{', '.join(map(str, have)) or '(none)'}; of ended trials the best {record.search.keep} are kept (--keep)"
    )


def _extent(record: Record) -> dict[str, int]:
    """What an export was chosen from."""
    return {"trials": len(record.trials()), "final_epochs": record.search.final_epochs}


def is_candidate(trial: FrozenTrial) -> bool:
    """Whether it can win: not what failed, diverged or collapsed, nor what has no report yet."""
    return bool(trial.intermediate_values) and outcome_of(trial) not in ("failed", *DEAD)


Outcome = Literal["running", "finished", "pruned", "diverged", "collapsed", "failed"]
DEAD: tuple[Outcome, ...] = ("diverged", "collapsed")


def outcome_of(trial: FrozenTrial) -> Outcome:
    """What became of a trial, in the one word by which all who show it tell it. pruned: others were better."""
    if trial.state == TrialState.FAIL:
        return "failed"
    reason = trial.user_attrs.get(DECISION, {}).get("reason", "running")
    outcome: Outcome = "pruned" if reason in decide.PRUNED else reason
    return outcome


def _stop_reason(trial: FrozenTrial) -> str | None:
    """leaders, asha, diverged, collapsed, finished; error of a failed trial; None of one under way."""
    if trial.state == TrialState.FAIL:
        return "error"
    reason: str | None = trial.user_attrs.get(DECISION, {}).get("reason")
    return reason
