"""The race of the finalists over fresh seeds (`--replicates`): who is out, who is left, who wins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hpo.policy.comparison import ERROR, Comparison, choose, compare_seeds, num_pairs

_FIRST_LOOK = 2  # seeds that every interval needs
_LAST_SHARE = 0.5  # of the error is the last look's, where the winner is chosen; early looks only save trainings


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicate:
    """What one training with a fresh seed counts for."""

    value: float  # larger is better; a training that diverged or collapsed counts as the noisy images
    failed: bool = False  # it diverged or collapsed


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Why a finalist is out of the race."""

    seeds: int  # trainings of each finalist that had ended then
    failures: int  # its trainings that diverged or collapsed, where that is the reason; 0: it was worse
    best: int | None = None  # the finalist that was better


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """A race after the seeds that all remaining finalists have ended."""

    seeds: int
    left: tuple[int, ...]  # numbers of the finalists that are still in it
    dropped: Mapping[int, Dropped] = field(default_factory=dict)
    best: int | None = None  # of those left, the one with the highest mean
    compared: Mapping[int, Comparison] = field(default_factory=dict)  # each with the best, at its last look
    against: Mapping[int, int] = field(default_factory=dict)  # the best one in that comparison
    winner: int | None = None
    is_over: bool = False

    @property
    def ties(self) -> list[int]:
        """Those left that are not the best and not distinguishable from it."""
        return [number for number in self.left if number != self.best]


def look_errors(seeds: int) -> dict[int, float]:
    """The error that each look may have, by the number of seeds at it. Repeated looks must not add false differences:
    all errors together are ERROR."""
    looks = range(_FIRST_LOOK, seeds + 1)
    if len(looks) < 2:
        return dict.fromkeys(looks, ERROR)
    early = (1 - _LAST_SHARE) * ERROR / (len(looks) - 1)
    return {look: _LAST_SHARE * ERROR if look == seeds else early for look in looks}


def run_race(
    results: Mapping[int, Sequence[Replicate | None]],
    seeds: int,
    parameters: Mapping[int, int],
) -> Race:
    """The race as far as the results go. It depends on them alone, not on the order in which they came.

    Args:
        results: of each finalist by its number: a result for each seed, None for one that is not there yet. Results
            that were trained ahead do not count before their turn.
        seeds: the trainings of each finalist that are planned.
        parameters: of each finalist's network: a tie goes to the smallest.
    """
    race = Race(seeds=0, left=tuple(results))
    errors = look_errors(seeds)
    for look in range(1, seeds + 1):
        if any(len(results[number]) < look or results[number][look - 1] is None for number in race.left):
            break
        race = _after_look(race, results, look, errors.get(look))
        if _is_decided(race):
            break
    if not race.seeds:
        return race
    means = {number: _mean(results[number], race.seeds) for number in race.left}
    ties = [number for number in race.left if number == race.best or race.compared[number].verdict == "tie"]
    is_over = race.seeds == seeds or _is_decided(race)
    return replace(race, winner=choose(means, ties, parameters), is_over=is_over)


def _is_decided(race: Race) -> bool:
    """Whether one finalist is left, with enough seeds for an interval of its mean."""
    return len(race.left) == 1 and race.seeds >= _FIRST_LOOK


def _after_look(
    race: Race,
    results: Mapping[int, Sequence[Replicate | None]],
    look: int,
    error: float | None,
) -> Race:
    failures = {number: sum(r is not None and r.failed for r in results[number][:look]) for number in race.left}
    fewest, dropped = min(failures.values()), dict(race.dropped)
    dropped |= {n: Dropped(seeds=look, failures=count) for n, count in failures.items() if count > fewest}
    left = tuple(number for number in race.left if number not in dropped)
    best = max(left, key=lambda number: (_mean(results[number], look), -number))
    values = np.array([[r.value for r in results[number][:look] if r is not None] for number in left])
    compared, against = dict(race.compared), dict(race.against)
    share = (error or ERROR) / num_pairs(len(results))
    for row, number in enumerate(left):
        if number != best:
            compared[number] = compare_seeds(values, row, left.index(best), error=share)
            against[number] = best
            if error and compared[number].verdict == "worse":
                dropped[number] = Dropped(seeds=look, failures=0, best=best)
    left = tuple(number for number in left if number not in dropped)
    return Race(seeds=look, left=left, dropped=dropped, best=best, compared=compared, against=against)


def _mean(results: Sequence[Replicate | None], seeds: int) -> float:
    return float(np.mean([result.value for result in results[:seeds] if result is not None]))
