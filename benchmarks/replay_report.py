"""Statistics and Markdown tables of replayed searches."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
from replay_simulation import Outcome
from replay_table import Table, Top, load_table


class Case(NamedTuple):
    """A table of curves, and the size of the searches over it."""

    table: Path
    trials: int
    workers: int


def interval(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> list[float]:
    """A statistic with its 95 % bootstrap interval (value, low, high). Several samples are drawn in pairs, by seed."""
    picks = np.random.default_rng(0).integers(len(samples[0]), size=(10_000, len(samples[0])))
    drawn = np.percentile(statistic(*(sample[picks] for sample in samples)), [2.5, 97.5])
    return [float(statistic(*samples)), *(float(bound) for bound in drawn)]


_mean, _median = partial(np.mean, axis=-1), partial(np.median, axis=-1)


def summarize(results: Mapping[str, Sequence[Outcome]], top: Top, budget: int) -> dict[str, Any]:
    """Summarise searches until they find, JSON-ready, with intervals as (value, low, high).

    A search that found nothing counts as `budget` epochs: means are restricted. `ours_to_it` below 1: ours needs fewer
    epochs.
    """
    epochs = {name: np.array([outcome.epochs for outcome in outcomes]) for name, outcomes in results.items()}
    summary: dict[str, Any] = {}
    for name, outcomes in results.items():
        summary[name] = {
            "found": sum(outcome.found for outcome in outcomes) / len(outcomes),
            "median": interval(_median, epochs[name]),
            "mean": interval(_mean, epochs[name]),
            "mean_to_random_theory": float(_mean(epochs[name])) / top.random_mean(budget),
            "trials": float(np.mean([outcome.trials for outcome in outcomes])),
            "ms_per_trial": 1000 * sum(o.seconds for o in outcomes) / sum(o.trials for o in outcomes),
        }
        if name != "ours" and "ours" in results:
            pair = epochs["ours"], epochs[name]
            summary[name]["ours_to_it_mean"] = interval(lambda a, b: _mean(a) / _mean(b), *pair)
            summary[name]["ours_to_it_median"] = interval(lambda a, b: _median(a) / _median(b), *pair)
    return summary


def markdown(summary: Mapping[str, Any], table: Table, options: argparse.Namespace) -> str:
    """The table of `compare`, and how it was measured."""
    top, budget = table.top, options.budget
    median = top.trial_epochs * math.log(0.5) / math.log(1 - top.share)
    lines = [
        f"{len(table.curves)} curves, {sum(curve.is_full for curve in table.curves)} of them full: "
        f"`{table.about['command']}`. Found: {table.search.objective} >= {top.threshold:.4f} at full length, as "
        f"{top.share:.2%} of the space have ({top.curves} curves). {options.workers} workers, {options.seeds} seeds. "
        f"A search that has not found after {budget} epochs counts as {budget}. Random search by theory: median "
        f"{median:.0f}, mean {top.random_mean():.0f}, restricted {top.random_mean(budget):.0f}.",
        "",
        "| method | found | median epochs | mean epochs | to random theory | ours / it, means | ours / it, medians "
        "| trials | ms a trial |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        pairs = [row.get(f"ours_to_it_{average}") for average in ("mean", "median")]
        ratios = ["{:.2f} ({:.2f}-{:.2f})".format(*pair) if pair else "" for pair in pairs]
        averages = ["{:.0f} ({:.0f}-{:.0f})".format(*row[average]) for average in ("median", "mean")]
        numbers = [f"{row['mean_to_random_theory']:.2f}", *ratios, f"{row['trials']:.0f}", f"{row['ms_per_trial']:.0f}"]
        lines.append("| " + " | ".join([name, f"{row['found']:.0%}", *averages, *numbers]) + " |")
    return "\n".join(lines)


def _with_error(sample: np.ndarray) -> list[float]:
    """The mean and twice its standard error."""
    return [float(sample.mean()), float(2 * sample.std(ddof=1) / math.sqrt(len(sample))) if len(sample) > 1 else 0.0]


def summarize_budget(results: Mapping[str, Sequence[Outcome]], best: float, subject: str = "ours") -> dict[str, Any]:
    """Summarise searches of so many trials, JSON-ready.

    Figures are (mean, two standard errors), and (value, low, high) where `subject` is compared by seed.
    """

    def values(name: str, field: str) -> np.ndarray:
        return np.array([getattr(outcome, field) for outcome in results[name]], dtype=float)

    summary: dict[str, Any] = {}
    for name, outcomes in results.items():
        summary[name] = {
            "regret": _with_error(best - values(name, "value")),
            "epochs": _with_error(values(name, "epochs")),
            "virtual_time": _with_error(values(name, "virtual_time")),
            "wrong_prunings": float(values(name, "wrong_prunings").mean()),
            "found": float(values(name, "found").mean()),
            "ms_per_trial": 1000 * sum(o.seconds for o in outcomes) / sum(o.trials for o in outcomes),
        }
        if name != subject and subject in results:
            pair = values(subject, "epochs"), values(name, "epochs")
            summary[name]["epochs_ratio"] = interval(lambda a, b: _mean(a) / _mean(b), *pair)
            summary[name]["regret_difference"] = interval(_mean, values(name, "value") - values(subject, "value"))
    return summary


def overview(summary: Mapping[str, Any], subject: str = "ours") -> dict[str, Any] | None:
    """Compare `subject` with the peer of the least regret, and with the cheapest one as good within its error."""
    rivals = [name for name in summary if name in peers.METHODS and name != subject]
    if subject not in summary or not rivals:
        return None
    ours_, enough = summary[subject], sum(summary[subject]["regret"])
    best = min(rivals, key=lambda name: summary[name]["regret"][0])
    good = [name for name in rivals if summary[name]["regret"][0] <= enough]
    cheapest = min(good, key=lambda name: summary[name]["epochs"][0], default=None)
    return {
        "regret": ours_["regret"],
        "epochs": ours_["epochs"],
        "best_peer": best,
        "best_peer_regret": summary[best]["regret"],
        "regret_difference": summary[best]["regret_difference"],
        "epochs_ratio": summary[best]["epochs_ratio"],
        "cheapest_as_good": cheapest,
        "cheapest_epochs_ratio": summary[cheapest]["epochs_ratio"] if cheapest else None,
    }


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(ratio: Sequence[float] | None) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio) if ratio else ""


def _difference(difference: Sequence[float] | None) -> str:
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*difference) if difference else ""


def markdown_budget(case: Case, summary: Mapping[str, Any], subject: str, seeds: int) -> str:
    """The table of one case, a line for each method."""
    table = load_table(case.table)
    heads = ["method", "regret", "epochs", "wrong prunings", f"epochs, {subject} / it", f"regret, {subject} - it"]
    lines = [
        f"`{case.table.name}` ({len(table.curves)} curves, the best ends at {table.best:.4f}), **{case.trials} trials, "
        f"{case.workers} workers**, {seeds} seeds:",
        "",
        _row(*heads, "virtual time", "ms a trial"),
        "|---" * 8 + "|",
    ]
    for name, of in summary.items():
        figures = ["{:.4f} ± {:.4f}".format(*of["regret"]), "{:.1f} ± {:.1f}".format(*of["epochs"])]
        compared = [_ratio(of.get("epochs_ratio")), _difference(of.get("regret_difference"))]
        costs = [f"{of['virtual_time'][0]:.1f}", f"{of['ms_per_trial']:.0f}"]
        lines.append(_row(name, *figures, f"{of['wrong_prunings']:.2f}", *compared, *costs))
    return "\n".join(lines)


def markdown_overview(rows: Sequence[tuple[Case, Mapping[str, Any]]], subject: str) -> str:
    """The table that compares `subject` with its best peers, a line for each case."""
    heads = ["table", "trials", "workers", f"regret, {subject}", "best peer, its regret", f"regret, {subject} - it"]
    lines = [
        _row(*heads, f"epochs, {subject} / it", "cheapest peer as good", f"epochs, {subject} / it"),
        "|---" * 9 + "|",
    ]
    for case, of in rows:
        best = "{}, {:.4f} ± {:.4f}".format(of["best_peer"], *of["best_peer_regret"])
        figures = ["{:.4f} ± {:.4f}".format(*of["regret"]), best, _difference(of["regret_difference"])]
        cheapest = [of["cheapest_as_good"] or "none", _ratio(of["cheapest_epochs_ratio"])]
        what = [case.table.name, str(case.trials), str(case.workers)]
        lines.append(_row(*what, *figures, _ratio(of["epochs_ratio"]), *cheapest))
    return "\n".join(lines)
