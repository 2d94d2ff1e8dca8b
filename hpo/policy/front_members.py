"""The members of a front that are exported: which ones are chosen, and what is known of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.policy.pareto import Point, front, hypervolume
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_objectives import point_of
from model.common.errors import ConfigError
from model.common.validation import matches_type, wrong_fields
from model.training_report import Objective, objective_value

_BELOW = 0.1  # of an objective's range on the front: how far the reference point of the hypervolume is below the worst


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontMember:
    """One trial of a front, with its figures. Raises ConfigError."""

    trial: int
    values: Mapping[str, float]  # of each objective of the search, in its own unit
    metrics: Mapping[str, Any]  # ssim, psnr_db, l1 and haarpsi, on all validation images once they were measured there
    test: Mapping[str, Any] | None = None  # the same on the test images
    parameters: int | None = None
    size_mb: float | None = None  # of the exported network
    latency: Mapping[str, Any] | None = None  # a model.latency.Latency
    folder: str | None = None  # of its export, in the search's folder

    def __post_init__(self) -> None:
        errors = wrong_fields(FrontMember, self.as_dict())
        numbers = [*self.values.values(), *self.metrics.values(), *(self.test or {}).values()] if not errors else []
        numbers += [self.latency.get("median_ms")] if self.latency is not None and not errors else []
        if not all(matches_type(number, float) for number in numbers):
            errors.append(f"trial={self.trial}: its figures must be numbers")
        if errors:
            raise ConfigError("\n".join(errors))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> FrontMember:
        """The inverse of as_dict, for a note that may be damaged. Raises ConfigError."""
        if wrong := wrong_fields(cls, values):
            raise ConfigError("\n".join(wrong))
        return cls(**values)

    def figure(self, name: str) -> float | None:
        """latency (ms), params or size_mb; None: not measured."""
        if name == "latency" and self.latency is not None:
            return float(self.latency["median_ms"])
        figures = {"params": self.parameters, "size_mb": self.size_mb}
        return self.values.get(name) if figures.get(name) is None else figures[name]

    def quality(self, objective: Objective) -> float:
        """The value of a trained objective, to be maximized."""
        return objective_value(self.metrics, objective)


def best_member(members: Iterable[FrontMember], objective: Objective) -> FrontMember:
    """The best in a trained objective."""
    return max(members, key=lambda member: (member.quality(objective), -member.trial))


def undominated(values: Mapping[int, Mapping[str, float]], search: SearchConfig) -> list[int]:
    """The trials that no other one beats in all objectives, the best in the first trained one first."""
    return front({trial: point_of(each, search) for trial, each in values.items()})


def choose_members(values: Mapping[int, Mapping[str, float]], search: SearchConfig) -> list[int]:
    """At most `search.front` trials of the front, the best in the first trained objective first.

    Of a larger front these are the best in each objective, and then, one after the other, the trial that adds the most
    hypervolume. values: of each trial by objective, in their units.
    """
    members = undominated(values, search)
    if len(members) <= search.front:
        return members
    points = _scaled({trial: point_of(values[trial], search) for trial in members})
    columns = range(len(search.objectives))
    ends = [max((points[trial][i], points[trial], trial) for trial in members)[-1] for i in columns]
    chosen = list(dict.fromkeys(ends))[: search.front]
    while len(chosen) < search.front:
        rest = [trial for trial in members if trial not in chosen]
        volumes = {trial: hypervolume([points[each] for each in (*chosen, trial)]) for trial in rest}
        chosen.append(max(rest, key=volumes.__getitem__))
    return [trial for trial in members if trial in chosen]


def _scaled(points: Mapping[int, Point]) -> dict[int, Point]:
    """Points with each coordinate from _BELOW, the worst of the front, to 1 + _BELOW."""
    columns = list(zip(*points.values(), strict=True))
    lows, widths = [min(column) for column in columns], [max(column) - min(column) or 1.0 for column in columns]
    return {
        trial: tuple((x - low) / width + _BELOW for x, low, width in zip(point, lows, widths, strict=True))
        for trial, point in points.items()
    }
