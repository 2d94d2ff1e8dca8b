"""The leaderboard and the winner of a search, and its export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy import pruning
from hpo.policy.leaderboard import finalists, leaderboard
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, ERROR, FAILURES, MIGRATIONS, REPORTS_AT_SUGGESTION, SUGGESTED_BY
from hpo.store import integrity
from hpo.store.layout import COLLAPSES, EXPORT, FINAL, FINALISTS, IMAGES, LOST
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from model.common.errors import ConfigError
from model.common.validation import matches_type
from model.data.image_sets import Images
from model.denoise import MANIFEST, DenoiseError, read_manifest


def ranked(record: Record) -> list[int]:
    """The finalists, best first: by all validation images once they were measured, else by their own reports."""
    notes = record.metadata()
    numbers = finalists(record.trials(), record.search.objective, lost(notes))
    measured = _finalists(notes)
    if measured.keys() == set(map(str, numbers)):  # else they are those of an earlier end
        numbers.sort(key=lambda number: -measured[str(number)]["value"])
    return numbers


def lost(notes: Mapping[str, Any]) -> list[int]:
    """Trials that cannot win. Raises RecordError."""
    found = notes.get(LOST, [])
    if not isinstance(found, list) or not all(matches_type(number, int) for number in found):
        raise RecordError(f"the search's note {LOST}: damaged")
    return found


def _finalists(notes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By the number of the trial. Raises RecordError."""
    measured = notes.get(FINALISTS, {})
    if not isinstance(measured, dict) or any(map(integrity.is_bad_measurement, measured.values())):
        raise RecordError(f"the search's note {FINALISTS}: damaged")
    return measured


def final_of(record: Record) -> dict[str, Any] | None:
    """What the final training came to, and of which trial's configuration. Raises RecordError."""
    final: dict[str, Any] | None = record.metadata().get(FINAL)
    if final and (integrity.is_bad_measurement(final) or not matches_type(final.get("trial"), int)):
        raise RecordError(f"the search's note {FINAL}: damaged")
    return final or None


def collapses(record: Record) -> list[dict[str, Any]]:
    """Each time that a final training collapsed or diverged, in order. Raises RecordError.

    trial, epochs: whose configuration, and for how many epochs; reason, epoch: what happened, and when; back_to, lr_g,
    lr_d: the epoch that it went back to and the rates from there on, None where it was given up.
    """
    found: list[dict[str, Any]] = record.metadata().get(COLLAPSES, [])
    if not isinstance(found, list) or any(map(integrity.is_bad_collapse, found)):
        raise RecordError(f"the search's note {COLLAPSES}: damaged")
    return found


def winner(record: Record) -> int | None:
    """The trial with the best checkpoint, or with the configuration that the final training made the best of."""
    if final_wins(record):
        return int((final_of(record) or {})["trial"])
    return next(iter(ranked(record)), None)


def document(record: Record) -> dict[str, Any]:
    """`hpo show --json`."""
    notes = record.metadata()
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
    taken = [asdict(decision) for decision in pruning.replay_decisions(trials, trial.number, search)]
    recorded = trial.user_attrs.get(DECISION)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "suggested_by": trial.user_attrs.get(SUGGESTED_BY),
        "suggested_after_reports": trial.user_attrs[REPORTS_AT_SUGGESTION],
        "decisions": [decision for decision in taken if decision["reason"] != "not compared"],
        "recorded": recorded,
        "agrees": recorded is None or recorded.items() <= taken[-1].items(),  # an older one lacks `places`
        "failures": trial.user_attrs.get(FAILURES, []),
        "moves": trial.user_attrs.get(MIGRATIONS, []),
        "error": trial.user_attrs.get(ERROR, {}).get("text"),
    }


def final_wins(record: Record) -> bool:
    """Whether a finalist's configuration, trained longer, beats them all: on all validation images, like them."""
    final, numbers = final_of(record), ranked(record)
    if not final or not record.search.final_epochs or final["trial"] not in numbers:
        return False
    best = _finalists(record.metadata()).get(str(numbers[0]))
    return best is not None and bool(final["value"] >= best["value"])


def is_over(record: Record) -> bool:
    """All trials ended, and none left to start: from here on the test images may be looked at."""
    trials = record.trials()
    return len(trials) >= record.search.trials and all(trial.state.is_finished() for trial in trials)


def is_exported(record: Record) -> bool:
    """The search is over, and its export/ is of the trials and the final training that it now has."""
    try:
        origin = read_manifest(record.fetch(record.folder / EXPORT / MANIFEST).parent)["origin"]
    except DenoiseError:
        return False
    return is_over(record) and origin.items() >= extent(record).items()


def check_images(record: Record, images: Images, where: str) -> None:
    """Raises ConfigError where they are not those that its trials saw, wherever these have moved to."""
    seen, digest = record.metadata().get(IMAGES), images.digest
    if seen in (None, digest):
        return
    raise ConfigError(
        f"{record.name}: its trials saw other images than {where} has now, or the same split in another way: their "
        f"digest begins with {str(seen)[:12]}, that of these with {digest[:12]}. If they have moved, --data says where "
        "to; docs/data.md has what earlier versions read in another way"
    )


def extent(record: Record) -> dict[str, int]:
    """What an export was chosen from."""
    return {"trials": len(record.trials()), "final_epochs": record.search.final_epochs}
