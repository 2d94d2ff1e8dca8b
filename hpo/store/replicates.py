"""The replicates of a search, read from its record: trainings of the finalists' settings with fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hpo.policy.comparison import mean_interval
from hpo.policy.race import Race, Replicate, run_race
from hpo.store import integrity
from hpo.store.file_names import REPLICATES
from hpo.store.record import Record
from hpo.store.search_file import RecordError

_INTERVAL_SEEDS = 2  # below, nothing is known of the spread between seeds, and the race says nothing

_TOLD = ("value", "ssim", "psnr_db")

# By trial and by the index of the seed, both as text: what a replicate gave. Keys: seed, outcome ("finished",
# "diverged" or "collapsed"), epochs, value and the metrics behind it; sha256 of the checkpoint, unless it failed. A
# replicate that failed has the metrics of the noisy images.
Measured = Mapping[str, Mapping[str, Mapping[str, Any]]]


def measured_replicates(record: Record) -> Measured:
    """What the replicates gave, those of former finalists included. Raises RecordError."""
    noted: Any = record.metadata().get(REPLICATES, {})
    if not isinstance(noted, dict) or any(map(integrity.are_bad_replicates, noted.values())):
        raise RecordError(f"the search's note {REPLICATES}: damaged")
    measured: Measured = noted
    return measured


def current_race(record: Record, numbers: Sequence[int], finalists: Mapping[str, Mapping[str, Any]]) -> Race | None:
    """The race of the finalists as far as their replicates go; None without replicates.

    Args:
        numbers: of the finalists.
        finalists: their measurements, with `parameters`.
    """
    seeds = record.search.replicates
    if not seeds:
        return None
    noted = measured_replicates(record)
    results = {number: _results(noted.get(str(number), {}), seeds) for number in numbers}
    sizes = {n: finalists[str(n)]["parameters"] for n in numbers if "parameters" in finalists.get(str(n), {})}
    return run_race(results, seeds, sizes)


def _results(noted: Mapping[str, Mapping[str, Any]], seeds: int) -> list[Replicate | None]:
    by_seed = (noted.get(str(index)) for index in range(seeds))
    return [Replicate(value=one["value"], failed=one["outcome"] != "finished") if one else None for one in by_seed]


def decided_by(race: Race | None) -> Race | None:
    """The race, if it has enough seeds to decide who wins."""
    return race if race and race.seeds >= _INTERVAL_SEEDS and race.winner is not None else None


def race_order(race: Race, means: Mapping[int, float]) -> list[int]:
    """All finalists: the winner, those left by their means, then the dropped ones, the last that was dropped first."""
    left = sorted(race.left, key=lambda number: (number != race.winner, -means[number], number))
    return left + sorted(race.dropped, key=lambda number: (-race.dropped[number].seeds, -means[number], number))


def mean_values(record: Record, race: Race) -> dict[int, list[float]]:
    """The replicates' values of each finalist that the race has counted."""
    noted = measured_replicates(record)
    counted = dict.fromkeys(race.left, race.seeds) | {n: d.seeds for n, d in race.dropped.items()}
    return {n: [noted[str(n)][str(index)]["value"] for index in range(seeds)] for n, seeds in counted.items()}


def race_document(
    record: Record, race: Race | None, finalists: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What a race says, JSON-ready: of each finalist the means of its replicates with their intervals beside the
    search's own figures, and its comparison with the best. None before the first seed."""
    if race is None or not race.seeds:
        return None
    noted, told = measured_replicates(record), {}
    for number, values in mean_values(record, race).items():
        replicates = [noted[str(number)][str(index)] for index in range(len(values))]
        dropped, compared = race.dropped.get(number), race.compared.get(number)
        told[str(number)] = {
            "means": {name: _mean([replicate[name] for replicate in replicates]) for name in _TOLD},
            "searched": {name: finalists.get(str(number), {}).get(name) for name in _TOLD},
            "seeds": [replicate["seed"] for replicate in replicates],
            "failures": sum(replicate["outcome"] != "finished" for replicate in replicates),
            "dropped_after": dropped.seeds if dropped else None,
            "compared": {"with": race.against[number], **compared.as_dict()} if compared else None,
        }
    return {
        "planned": record.search.replicates,
        "seeds": race.seeds,
        "is_over": race.is_over,
        "best": race.best,
        "winner": race.winner if decided_by(race) else None,
        "finalists": told,
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    mean, low, high = mean_interval(values)
    ends = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
    return {"mean": mean, **ends, "values": list(values)}
