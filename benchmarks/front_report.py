"""Statistics and Markdown tables of replayed searches on several objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from replay_front import FrontOutcome, volume_at

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the budget, for the columns
_DRAWS = 2_000
Array = npt.NDArray[np.float64]


class FrontCase(NamedTuple):
    """A table, the objectives, and the size of the searches over it."""

    table: Path
    objectives: tuple[str, ...]
    workers: int
    trials: int | None = None  # None: without an end
    epochs: int | None = None  # of all trials; None: without an end
    varies: bool = True  # see simulate_front

    def __str__(self) -> str:
        size = f"{self.trials} trials" if self.trials else f"{self.epochs} epochs of all trials"
        equal = "" if self.varies else ", equal trainings"
        return f"`{self.table.name}`, {' and '.join(self.objectives)}, **{size}, {self.workers} workers**{equal}"


def summarize_front(results: Mapping[str, Sequence[FrontOutcome]], subject: str) -> dict[str, Any]:
    """Summarise searches by method, JSON-ready.

    `volumes` are (mean, two standard errors) after shares of the most epochs that any method spent on average.
    `epochs_ratio` has the epochs after which the subject's mean volume reaches the method's at its end, divided by the
    method's epochs, as (value, low, high); None: never.
    """
    most = max(float(np.mean([outcome.epochs for outcome in outcomes])) for outcomes in results.values())
    grid, summary = np.array(SHARES) * most, {}
    for name, outcomes in results.items():
        volumes = np.array([volume_at(outcome, grid) for outcome in outcomes])
        summary[name] = {
            "volumes": [[float(column.mean()), _error(column)] for column in volumes.T],
            "final": float(np.mean([outcome.volumes[-1][1] for outcome in outcomes])),
            "epochs": float(np.mean([outcome.epochs for outcome in outcomes])),
            "trials": float(np.mean([outcome.trials for outcome in outcomes])),
            "wrong_prunings": float(np.mean([outcome.wrong_prunings for outcome in outcomes])),
            "ms_per_trial": 1000 * sum(o.seconds for o in outcomes) / sum(o.trials for o in outcomes),
        }
        if name != subject and subject in results:
            summary[name]["epochs_ratio"] = epochs_ratio(results[subject], outcomes)
            summary[name]["final_difference"] = _final_difference(results[subject], outcomes)
    return summary


def _error(sample: Array) -> float:
    """Twice the standard error of the mean."""
    return float(2 * sample.std(ddof=1) / math.sqrt(len(sample))) if len(sample) > 1 else 0.0


def _draws(count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(_DRAWS, count))


def _interval(value: float, drawn: Array) -> list[float | None]:
    """The value with its 95 % bootstrap interval; None for what is never reached."""
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
    return [float(x) if math.isfinite(x) else None for x in (value, low, high)]


def epochs_ratio(ours: Sequence[FrontOutcome], its: Sequence[FrontOutcome]) -> list[float | None]:
    """See summarize_front. Seeds are drawn in pairs."""
    length = max(outcome.epochs for outcome in ours)
    curves = np.array([volume_at(outcome, np.arange(1.0, length + 1)) for outcome in ours])
    finals, epochs = (np.array(c) for c in zip(*((o.volumes[-1][1], o.epochs) for o in its), strict=True))

    def ratio(picks: npt.NDArray[np.int64]) -> float:
        reached = np.flatnonzero(curves[picks].mean(axis=0) >= finals[picks].mean() - 1e-12)
        return float((reached[0] + 1) / epochs[picks].mean()) if len(reached) else math.inf

    return _interval(ratio(np.arange(len(finals))), np.array([ratio(picks) for picks in _draws(len(finals))]))


def _final_difference(ours: Sequence[FrontOutcome], its: Sequence[FrontOutcome]) -> list[float | None]:
    """By how much our volume at the end is larger, with its interval."""
    pairs = zip(ours, its, strict=True)
    differences = np.array([mine.volumes[-1][1] - other.volumes[-1][1] for mine, other in pairs])
    return _interval(float(differences.mean()), differences[_draws(len(differences))].mean(axis=1))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _with_interval(values: Sequence[float | None], form: str) -> str:
    value, low, high = (form.format(x) if x is not None else "never" for x in values)
    return f"{value} ({low} to {high})"


def markdown_front(case: FrontCase, summary: Mapping[str, Any], subject: str, seeds: int) -> str:
    """The table of one case, a line for each method."""
    most = max(of["epochs"] for of in summary.values())
    heads = [f"after {share * most:.0f} epochs" for share in SHARES]
    lines = [
        f"{case}, {seeds} seeds. Hypervolume of the front, as a share of that of all recorded configurations:",
        "",
        _row(
            "method",
            *heads,
            "epochs",
            "trials",
            f"epochs until {subject} has its last volume / its epochs",
            f"last volume, {subject} - it",
            "wrong prunings",
            "ms a trial",
        ),
        "|---" * (len(heads) + 7) + "|",
    ]
    for name, of in summary.items():
        cells = ["{:.3f} ± {:.3f}".format(*volume) for volume in of["volumes"]]
        cells += [f"{of['epochs']:.0f}", f"{of['trials']:.0f}"]
        if "epochs_ratio" in of:
            cells += [_with_interval(of["epochs_ratio"], "{:.2f}"), _with_interval(of["final_difference"], "{:+.3f}")]
        else:
            cells += ["", ""]
        lines.append(_row(name, *cells, f"{of['wrong_prunings']:.2f}", f"{of['ms_per_trial']:.0f}"))
    return "\n".join(lines)
