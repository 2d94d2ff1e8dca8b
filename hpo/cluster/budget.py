"""What a search has cost and what it is about to cost: node hours times the nodes' prices. Pure but for `CostMeter`,
which adds up what the driver sees."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from optuna.trial import FrozenTrial

from hpo.cluster.cluster_state import PRICE, AutoscalerLimits, ClusterSnapshot, price
from hpo.policy import trial_attributes
from hpo.policy.estimates import epochs_left
from hpo.policy.leaderboard import NUM_FINALISTS, reports_of
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError

COST = "cost"  # note on the record: USD so far
_END_SECONDS = 120.0  # to notice and stop, for processes that measure finalists, for the export; without the measuring
_ALL_IMAGES = 5  # finalists are measured on 5,000 validation images, trials on 1,000

Rates = Mapping[str, float]  # USD an hour, of each machine that is there
BudgetAction = Literal["go on", "no new trials", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """USD spent up to a time on the driver's clock."""

    usd: float = 0.0
    at: float | None = None  # None: the clock has not begun
    rates: Rates = field(default_factory=dict)  # since then

    def then(self, rates: Rates, now: float) -> Account:
        """With what was there since, whether it came or went meanwhile. A clock that jumps back adds nothing."""
        hours = 0.0 if self.at is None else max(0.0, now - self.at) / 3600
        return Account(usd=self.usd + hours * sum({**self.rates, **rates}.values()), at=now, rates=rates)


def rates(sight: ClusterSnapshot, growth: AutoscalerLimits) -> dict[str, float]:
    """Of all machines, those that are still set up too; what says no price costs as much as the dearest."""
    of_type = {of.name: price(of.labels) for of in growth.types}
    found = {node.id: price(node.labels) for node in sight.nodes}
    found |= {f"starting {i}": of_type.get(name) for i, name in enumerate(sight.starting)}
    dearest = max((usd for usd in [*found.values(), *of_type.values()] if usd is not None), default=0.0)
    return {machine: dearest if usd is None else usd for machine, usd in found.items()}


def unpriced(sight: ClusterSnapshot, growth: AutoscalerLimits) -> list[str]:
    """Nodes and node types that say no price."""
    nodes = [f"node {node.address or node.id}" for node in sight.nodes if price(node.labels) is None]
    return nodes + [f"node type {of.name}" for of in growth.types if price(of.labels) is None]


def at_the_end(trials: Sequence[FrozenTrial], search: SearchConfig) -> float:
    """Seconds that finalists, final training and export take, once the trials are over."""
    epoch, measuring = _means(trials)
    return _END_SECONDS + NUM_FINALISTS * _ALL_IMAGES * measuring + search.final_epochs * epoch


def of_the_running(trials: Sequence[FrozenTrial], search: SearchConfig) -> float:
    """Seconds until the trials under way are over, pruning taken into account; 0 while no epoch was seen."""
    epoch, _ = _means(trials)
    left = epochs_left(trials, search)
    return epoch * max(
        (left[len(reports_of(trial))] for trial in trials if trial_attributes.is_unfinished(trial)), default=0.0
    )


def _means(trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Seconds of an epoch, and of its evaluation alone."""
    told = [report for trial in trials for report in trial.user_attrs[trial_attributes.REPORTS]]
    evaluating = sum(report["eval_seconds"] for report in told) / max(1, len(told))
    return evaluating + sum(report["seconds"] for report in told) / max(1, len(told)), evaluating


def spent_within(seconds: float, rates: Rates, idle_seconds: float) -> float:
    """USD, when the others go after so much idleness and one machine stays with the head: the two dearest, whichever
    they are."""
    all_stay = min(seconds, idle_seconds)
    lean = sum(sorted(rates.values())[-2:])
    return (sum(rates.values()) * all_stay + lean * (seconds - all_stay)) / 3600


def budget_action(spent: float, limit: float, running: float, end: float) -> BudgetAction:
    """All in USD; running: what the trials under way are still to cost; end: what follows them."""
    if spent + end >= limit:
        return "stop"
    return "no new trials" if spent + running + end >= limit else "go on"


class CostMeter:
    """Of one driver's cluster: adds up what the ClusterMonitor sees, in its thread."""

    def __init__(
        self, search: SearchConfig, spent: float, growth: AutoscalerLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._search, self._growth, self._clock = search, growth, clock
        self._account, self._lock = Account(usd=spent), threading.Lock()

    def see(self, sight: ClusterSnapshot) -> None:
        """The cluster as it is now."""
        with self._lock:
            self._account = self._account.then(rates(sight, self._growth), self._clock())

    @property
    def usd(self) -> float:
        """So far."""
        with self._lock:
            return self._account.then(self._account.rates, self._clock()).usd

    def verdict(self, trials: Sequence[FrozenTrial], *, final_epochs: int | None = None) -> BudgetAction:
        """What the limit, if there is one, lets the trials do. final_epochs: that are still to come; None: all."""
        search = self._search if final_epochs is None else replace(self._search, final_epochs=final_epochs)
        if search.max_cost is None:
            return "go on"
        with self._lock:
            now = self._account.rates
        running = sum(now.values()) * of_the_running(trials, search) / 3600
        end = spent_within(at_the_end(trials, search), now, self._growth.idle_seconds)
        return budget_action(self.usd, search.max_cost, running, end)


def check_cost_limit(search: SearchConfig, spent: float, sight: ClusterSnapshot, growth: AutoscalerLimits) -> None:
    """Raises ConfigError where `max_cost` cannot be kept, or is used up."""
    if search.max_cost is None:
        return
    if lacking := unpriced(sight, growth):
        raise ConfigError(f"max_cost={search.max_cost:g}: needs the label {PRICE}; {', '.join(lacking)} have none")
    if spent >= search.max_cost:
        raise ConfigError(
            f"max_cost={search.max_cost:g}: {spent:.2f} USD are spent; a higher one continues the search, "
            f"and `hpo export` writes what it has found"
        )
