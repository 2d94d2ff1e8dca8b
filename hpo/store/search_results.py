"""The leaderboard and the winner of a search, and its export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy import report_decision
from hpo.policy.comparison import choose
from hpo.policy.front_members import FrontMember
from hpo.policy.leaderboard import best_report, finalists, leaderboard
from hpo.policy.objectives import TRAINED, UNITS, to_maximize
from hpo.policy.race import Race
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import (
    DECISION,
    ERROR,
    FAILURES,
    KNOWN,
    MIGRATIONS,
    REPORTS_AT_SUGGESTION,
    SUGGESTED_BY,
)
from hpo.policy.trial_objectives import objective_values, value_at, violations
from hpo.store import integrity
from hpo.store.file_names import COLLAPSES, EXPORT, FINAL, FINALISTS, FRONT, IMAGES, LOST, REPLICATES
from hpo.store.record import Record
from hpo.store.replicates import current_race, decided_by, mean_values, race_document, race_order
from hpo.store.search_file import RecordError
from model.common.errors import ConfigError
from model.common.validation import matches_type
from model.data.image_sets import Images
from model.denoise import MANIFEST, DenoiseError, read_manifest
from model.training_report import objective_value


def ranked_finalists(record: Record) -> list[int]:
    """The numbers of the finalists, best first: by the means of their replicates once these decide, else by all
    validation images once these were measured, else by their own reports. A tie with the best goes to the smaller."""
    metadata = record.metadata()
    numbers = finalists(record.trials(), record.search, lost_trials(metadata))
    measured = _measurements(metadata)
    if not numbers or measured.keys() != set(map(str, numbers)):  # the search has got more trials since
        return numbers
    numbers.sort(key=lambda number: -measured[str(number)]["value"])
    if record.search.is_multi_objective:
        return numbers
    if race := decided_by(current_race(record, numbers, measured)):
        means = {number: sum(values) / len(values) for number, values in mean_values(record, race).items()}
        return race_order(race, means)
    first = _smallest_of_ties(numbers, measured)
    return sorted(numbers, key=lambda number: number != first)


def _smallest_of_ties(numbers: Sequence[int], measured: Mapping[str, Mapping[str, Any]]) -> int:
    """The winner by the measurements alone. Those of searches before 2026-12 have no comparisons: the best one."""
    verdicts = {number: measured[str(number)].get("compared", {}).get("verdict") for number in numbers}
    ties = [number for number in numbers if number == numbers[0] or verdicts[number] == "tie"]
    sizes = {n: measured[str(n)]["parameters"] for n in ties if "parameters" in measured[str(n)]}
    return choose({n: measured[str(n)]["value"] for n in ties}, ties, sizes)


def replicate_race(record: Record) -> Race | None:
    """The race of the finalists over fresh seeds, as far as it has come; None without replicates or measurements."""
    metadata = record.metadata()
    numbers = finalists(record.trials(), record.search, lost_trials(metadata))
    measured = _measurements(metadata)
    if measured.keys() != set(map(str, numbers)):
        return None
    return current_race(record, numbers, measured)


def lost_trials(metadata: Mapping[str, Any]) -> list[int]:
    """Trials that cannot win, because their checkpoint is damaged or gone. Raises RecordError."""
    numbers: list[int] = metadata.get(LOST, [])
    _check(LOST, isinstance(numbers, list) and all(matches_type(number, int) for number in numbers))
    return numbers


def measured_values(record: Record) -> dict[int, dict[str, float]]:
    """The objectives of the finalists in their own units: those that need training on all validation images."""
    values: dict[int, dict[str, float]] = {}
    for number, measured in measured_finalists(record).items():
        known = record.trial(int(number)).user_attrs.get(KNOWN, {})
        asked = [name for name in TRAINED if name in record.search.objectives]
        trained = {str(name): to_maximize(name, objective_value(measured, name)) for name in asked}
        values[int(number)] = {name: {**known, **trained}[name] for name in record.search.objectives}
    return values


def measured_finalists(record: Record) -> dict[str, dict[str, Any]]:
    """What the finalists gave on all validation images, by number as text. Raises RecordError."""
    return _measurements(record.metadata())


def _measurements(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The finalists' measurements on all validation images, by trial number. Raises RecordError."""
    measured: dict[str, dict[str, Any]] = metadata.get(FINALISTS, {})
    _check(FINALISTS, isinstance(measured, dict) and not any(map(integrity.is_bad_measurement, measured.values())))
    return measured


def final_result(record: Record) -> dict[str, Any] | None:
    """The final training's measurement, and the `trial` whose configuration it had. Raises RecordError."""
    final: dict[str, Any] | None = record.metadata().get(FINAL)
    _check(FINAL, not final or (not integrity.is_bad_measurement(final) and matches_type(final.get("trial"), int)))
    return final or None


def collapses(record: Record) -> list[dict[str, Any]]:
    """Each collapse or divergence of a final training, in order. Raises RecordError.

    Keys: trial, epochs: whose configuration was trained, and for how many epochs; reason, epoch: what happened, and
    when; back_to, lr_g, lr_d: the epoch and the learning rates with which the training continued, None if it was given
    up.
    """
    events: list[dict[str, Any]] = record.metadata().get(COLLAPSES, [])
    _check(COLLAPSES, isinstance(events, list) and not any(map(integrity.is_bad_collapse, events)))
    return events


def _check(key: str, is_intact: bool) -> None:
    if not is_intact:
        raise RecordError(f"the search's note {key}: damaged")


def winner(record: Record) -> int | None:
    """The number of the trial that has the best checkpoint, or whose configuration the final training used best."""
    if final_wins(record):
        return int((final_result(record) or {})["trial"])
    return next(iter(ranked_finalists(record)), None)


def document(record: Record) -> dict[str, Any]:
    """The output of `hpo show --json`."""
    metadata = record.metadata()
    return {
        "name": record.name,
        "id": record.id,
        "search": record.search.as_dict(),
        "winner": winner(record),
        FINALISTS: _measurements(metadata),
        REPLICATES: race_document(record, replicate_race(record), _measurements(metadata)),
        FINAL: final_result(record),
        COLLAPSES: collapses(record),
        LOST: lost_trials(metadata),
        **(_front_document(record) if record.search.is_multi_objective else {}),
        "trials": leaderboard(record.trials(), record.search.objective),
    }


def _front_document(record: Record) -> dict[str, Any]:
    """The keys that only a search with several objectives has."""
    search = record.search
    return {
        "objectives": [
            {"name": name, "unit": UNITS.get(name, "").strip(), "direction": direction}
            for name, direction in zip(search.objectives, search.directions, strict=True)
        ],
        "front": [member.as_dict() for member in current_members(record)],
    }


def comparison(record: Record) -> dict[str, Any]:
    """What is known of the finalists: the keys of `document` that say so, and the objective."""
    finalists = _measurements(record.metadata())
    race = race_document(record, replicate_race(record), finalists)
    return {
        "objective": record.search.objective,
        "winner": winner(record),
        FINALISTS: finalists,
        REPLICATES: race,
    }


def export_document(record: Record) -> dict[str, Any]:
    """The folder of the export, its origin and its metrics. Raises DenoiseError."""
    folder = (record.folder / EXPORT).resolve()
    manifest = read_manifest(folder)
    return {"folder": str(folder), "origin": manifest["origin"], "metrics": manifest["metrics"]}


def decisions(record: Record) -> dict[str, Any]:
    """The output of `hpo show --decisions --json`: why each trial was pruned or continued, replayed from the record."""
    trials, search = record.trials(), record.search
    return {"name": record.name, "trials": [_decided(trials, t, search) for t in trials]}


def _decided(trials: Sequence[FrozenTrial], trial: FrozenTrial, search: SearchConfig) -> dict[str, Any]:
    replayed = [asdict(decision) for decision in report_decision.replay_decisions(trials, trial.number, search)]
    recorded = trial.user_attrs.get(DECISION)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "suggested_by": trial.user_attrs.get(SUGGESTED_BY),
        "suggested_after_reports": trial.user_attrs[REPORTS_AT_SUGGESTION],
        "decisions": [
            {**decision, **_evidence(trials, trial, decision, search)}
            for decision in replayed
            if decision["reason"] != "not compared"
        ],
        "recorded": recorded,
        "agrees": recorded is None or recorded.items() <= replayed[-1].items(),  # an older one lacks `places`
        "failures": trial.user_attrs.get(FAILURES, []),
        "moves": trial.user_attrs.get(MIGRATIONS, []),
        "error": trial.user_attrs.get(ERROR, {}).get("text"),
    }


def _evidence(
    trials: Sequence[FrozenTrial], trial: FrozenTrial, decision: Mapping[str, Any], search: SearchConfig
) -> dict[str, Any]:
    """What a decision rests on beyond one value: violated limits, or the objectives of a trial and of the one that
    dominates it. Empty with one objective and no limit."""
    if decision["reason"] == "limit":
        return {"violates": violations(trial, search)}
    if not search.is_multi_objective or decision["compared"] is None:
        return {}
    by = None if decision["set_by"] is None else trials[decision["set_by"]]
    return {
        name: {objective: value_at(of, objective, decision["compared"]) for objective in search.objectives}
        for name, of in (("objectives", trial), ("objectives_of_set_by", by))
        if of is not None
    }


def final_wins(record: Record) -> bool:
    """Whether a finalist's configuration, trained longer, is at least as good as the winner among the finalists, on all
    validation images."""
    final, numbers = final_result(record), ranked_finalists(record)
    if not final or not record.search.final_epochs or final["trial"] not in numbers:
        return False
    best = _measurements(record.metadata()).get(str(numbers[0]))
    return best is not None and bool(final["value"] >= best["value"])


def is_over(record: Record) -> bool:
    """Whether all trials have ended and none is left to start. From then on the test images may be used."""
    trials = record.trials()
    return len(trials) >= record.search.trials and all(trial.state.is_finished() for trial in trials)


def is_exported(record: Record) -> bool:
    """Whether the search is over and its exports were chosen from the trials and the final training that it has now."""
    members = front_members(record) if record.search.is_multi_objective else []
    if not is_over(record) or members is None:
        return False
    folders: dict[str, int | None] = {EXPORT: None, **{str(member.folder): member.trial for member in members}}
    return all(
        is_current(record, record.fetch(record.folder / folder / MANIFEST).parent, trial)
        for folder, trial in folders.items()
    )


def is_current(record: Record, folder: Path, trial: int | None = None) -> bool:
    """Whether a folder has an export that was chosen from what the search has now. trial: of which it must be."""
    try:
        origin = read_manifest(folder)["origin"]
    except DenoiseError:
        return False
    wanted = {} if trial is None else {"search_id": record.id, "trial": trial}
    return bool(origin.items() >= {**extent(record), **wanted}.items())


def front_members(record: Record) -> list[FrontMember] | None:
    """The exported members of the front, the best in the first trained objective first; None before they are chosen
    from all the trials that the search has now. Raises RecordError."""
    note: dict[str, Any] = record.metadata().get(FRONT) or {}
    _check(FRONT, isinstance(note, dict) and isinstance(note.get("members", []), list))
    if not note.items() >= extent(record).items():
        return None
    try:
        return [FrontMember.from_dict(member) for member in note["members"]]
    except (ConfigError, KeyError):
        raise RecordError(f"the search's note {FRONT}: damaged") from None


def members_so_far(record: Record) -> list[FrontMember]:
    """The front by the trials' own reports, and by what was known before their training."""
    trials, search = record.trials(), record.search
    members = []
    for number in finalists(trials, search, lost_trials(record.metadata())):
        values, best = objective_values(trials[number], search), best_report(trials[number], search.objective)
        if values is None or best is None:
            continue
        known = trials[number].user_attrs.get(KNOWN, {})
        metrics = {name: getattr(best, name) for name in ("ssim", "psnr_db", "l1", "haarpsi")}
        members.append(
            FrontMember(
                trial=number,
                values=values,
                metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
                parameters=round(known["params"]) if "params" in known else None,
                size_mb=known.get("size_mb"),
                latency={"median_ms": known["latency"]} if "latency" in known else None,
            )
        )
    return members


def current_members(record: Record) -> list[FrontMember]:
    """The exported members of the front; before they are chosen, all that are on it so far."""
    return front_members(record) or members_so_far(record)


def check_images(record: Record, images: Images, where: str) -> None:
    """Raise ConfigError unless the images are those that the trials saw. They may have moved to another folder."""
    seen, digest = record.metadata().get(IMAGES), images.digest
    if seen in (None, digest):
        return
    raise ConfigError(
        f"{record.name}: its trials saw other images than {where} has now, or the same split in another way: their "
        f"digest begins with {str(seen)[:12]}, that of these with {digest[:12]}. If they have moved, --data says where "
        "to; docs/data.md has what earlier versions read in another way"
    )


def extent(record: Record) -> dict[str, int]:
    """What an export is chosen from: the numbers of trials, of final epochs and of replicates, if there are any."""
    replicates = {REPLICATES: record.search.replicates} if record.search.replicates else {}  # older exports lack it
    return {"trials": len(record.trials()), "final_epochs": record.search.final_epochs, **replicates}
