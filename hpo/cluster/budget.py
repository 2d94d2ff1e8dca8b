"""The time and the money that a search may spend. The cost is the nodes' hours times their prices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from optuna.trial import FrozenTrial

from hpo.cluster.cluster_state import PRICE, AutoscalerLimits, ClusterMonitor, ClusterSnapshot, price
from hpo.policy import trial_attributes
from hpo.policy.leaderboard import NUM_FINALISTS, reports_of
from hpo.policy.report_decision import epochs_left
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError

COST = "cost"  # metadata of the record: USD so far
_END_SECONDS = 120.0  # notice and stop, start the finalists' processes, export; without the measurements
_ALL_IMAGES = 5  # finalists are measured on 5,000 validation images, trials on 1,000

Rates = Mapping[str, float]  # USD per hour of each machine that is present


class BudgetAction(Enum):
    """What the cost limit allows."""

    CONTINUE = "continue"
    NO_NEW_TRIALS = "no new trials"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """USD spent up to a time on the driver's clock."""

    usd: float = 0.0
    updated_at: float | None = None  # None: the clock has not started
    rates: Rates = field(default_factory=dict)  # since `updated_at`

    def accrue(self, rates: Rates, now: float) -> Account:
        """Charge every machine that was present at either end of the interval. A clock that jumps back adds nothing."""
        hours = 0.0 if self.updated_at is None else max(0.0, now - self.updated_at) / 3600
        return Account(usd=self.usd + hours * sum({**self.rates, **rates}.values()), updated_at=now, rates=rates)


def hourly_rates(snapshot: ClusterSnapshot, limits: AutoscalerLimits) -> dict[str, float]:
    """USD per hour of every machine, starting ones included. An unpriced one costs as much as the dearest."""
    type_prices = {node_type.name: price(node_type.labels) for node_type in limits.node_types}
    prices = {node.id: price(node.labels) for node in snapshot.nodes}
    prices |= {f"starting {i}": type_prices.get(name) for i, name in enumerate(snapshot.starting)}
    dearest = max((usd for usd in [*prices.values(), *type_prices.values()] if usd is not None), default=0.0)
    return {machine: dearest if usd is None else usd for machine, usd in prices.items()}


def unpriced(snapshot: ClusterSnapshot, limits: AutoscalerLimits) -> list[str]:
    """Nodes and node types without a price label."""
    nodes = [f"node {node.address or node.id}" for node in snapshot.nodes if price(node.labels) is None]
    return nodes + [f"node type {node_type.name}" for node_type in limits.node_types if price(node_type.labels) is None]


def seconds_after_trials(trials: Sequence[FrozenTrial], search: SearchConfig) -> float:
    """Expected seconds of finalists, replicates, final training and export. Finalists run beside each other, with one
    seed after another; the race may end earlier."""
    epoch, evaluation = _mean_seconds(trials)
    finalists = NUM_FINALISTS * _ALL_IMAGES * evaluation
    replicates = search.replicates * (search.epochs * epoch + _ALL_IMAGES * evaluation)
    return _END_SECONDS + finalists + replicates + search.final_epochs * epoch


def seconds_of_running_trials(trials: Sequence[FrozenTrial], search: SearchConfig) -> float:
    """Expected seconds until the running trials end, pruning included; 0 before the first epoch."""
    epoch, _ = _mean_seconds(trials)
    left = epochs_left(trials, search)
    running = (left[len(reports_of(trial))] for trial in trials if trial_attributes.is_unfinished(trial))
    return epoch * max(running, default=0.0)


def _mean_seconds(trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Seconds of an epoch, and of its evaluation alone."""
    reports = [report for trial in trials for report in trial.user_attrs[trial_attributes.REPORTS]]
    evaluation = sum(report["eval_seconds"] for report in reports) / max(1, len(reports))
    return evaluation + sum(report["seconds"] for report in reports) / max(1, len(reports)), evaluation


def cost_of_end(seconds: float, rates: Rates, idle_seconds: float) -> float:
    """USD for the end of a search. The autoscaler removes idle nodes after `idle_seconds`; the head and one worker
    stay: the two dearest machines, to be safe."""
    all_stay = min(seconds, idle_seconds)
    two_dearest = sum(sorted(rates.values())[-2:])
    return (sum(rates.values()) * all_stay + two_dearest * (seconds - all_stay)) / 3600


def budget_action(spent: float, limit: float, running: float, end: float) -> BudgetAction:
    """Decide by the USD spent so far, and those that the running trials and the end are expected to cost."""
    if spent + end >= limit:
        return BudgetAction.STOP
    return BudgetAction.NO_NEW_TRIALS if spent + running + end >= limit else BudgetAction.CONTINUE


class CostMeter:
    """Accumulates the cost of one driver's cluster. The monitor's thread calls `update`."""

    def __init__(self, spent: float, limits: AutoscalerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._account, self._lock = Account(usd=spent), threading.Lock()

    def update(self, snapshot: ClusterSnapshot) -> None:
        """Charge the time since the last snapshot."""
        with self._lock:
            self._account = self._account.accrue(hourly_rates(snapshot, self.limits), self._clock())

    @property
    def usd(self) -> float:
        """USD so far, earlier drivers included."""
        with self._lock:
            return self._account.accrue(self._account.rates, self._clock()).usd

    @property
    def rates(self) -> Rates:
        """USD per hour of each machine that is present."""
        return self._account.rates


class TimeAndCostBudget:
    """What `--time-budget-minutes` and `--max-cost` allow. The time counts from the construction on, the cost from the
    search's first driver on."""

    def __init__(
        self,
        search: SearchConfig,
        trials: Callable[[], Sequence[FrozenTrial]],
        meter: CostMeter | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """trials: returns those of the search now; expected costs depend on them. meter: None without prices."""
        self._search, self._trials, self._meter, self._clock = search, trials, meter, clock
        self._started = clock()

    @property
    def usd(self) -> float | None:
        """USD so far; None where the nodes have no prices."""
        return self._meter.usd if self._meter else None

    def cost_action(self, *, replicates: int | None = None, final_epochs: int | None = None) -> BudgetAction:
        """What `--max-cost` allows. replicates, final_epochs: those that are still to be trained; by default all."""
        search, meter = self._search, self._meter
        if search.max_cost is None or meter is None:
            return BudgetAction.CONTINUE
        trials = self._trials()
        ahead = replace(
            search,
            replicates=search.replicates if replicates is None else replicates,
            final_epochs=search.final_epochs if final_epochs is None else final_epochs,
        )
        running = sum(meter.rates.values()) * seconds_of_running_trials(trials, ahead) / 3600
        end = cost_of_end(seconds_after_trials(trials, ahead), meter.rates, meter.limits.idle_timeout_seconds)
        return budget_action(meter.usd, search.max_cost, running, end)

    def allows_new_trials(self) -> bool:
        """Whether time and money allow to begin another trial."""
        minutes = self._search.time_budget_minutes
        if minutes is not None and self._clock() - self._started > 60 * minutes:
            return False
        return self.cost_action() is BudgetAction.CONTINUE

    def allows_running_trials(self) -> bool:
        """Whether the money allows trials, running or unfinished, to continue."""
        return self.cost_action() is not BudgetAction.STOP

    def allows_replicate_epoch(self) -> bool:
        """Whether the money allows one more epoch of a replicate, and what must follow."""
        return self.cost_action(replicates=0) is not BudgetAction.STOP

    def allows_final_epoch(self) -> bool:
        """Whether the money allows one more epoch of the final training."""
        return self.cost_action(replicates=0, final_epochs=1) is not BudgetAction.STOP


def create_budget(
    search: SearchConfig,
    spent: float,
    trials: Callable[[], Sequence[FrozenTrial]],
    monitor: ClusterMonitor,
    limits: AutoscalerLimits,
) -> TimeAndCostBudget:
    """The budget of one driver, fed by the monitor. spent: USD of earlier drivers. Raises as check_cost_limit does."""
    check_cost_limit(search, spent, monitor.snapshot, limits)
    meter = None
    if not unpriced(monitor.snapshot, limits):
        meter = CostMeter(spent, limits)
        monitor.subscribe(meter.update)
    return TimeAndCostBudget(search, trials, meter)


def check_cost_limit(search: SearchConfig, spent: float, snapshot: ClusterSnapshot, limits: AutoscalerLimits) -> None:
    """Raises ConfigError where `max_cost` needs prices that are missing, or is used up."""
    if search.max_cost is None:
        return
    if missing := unpriced(snapshot, limits):
        raise ConfigError(f"max_cost={search.max_cost:g}: needs the label {PRICE}; {', '.join(missing)} have none")
    if spent >= search.max_cost:
        raise ConfigError(
            f"max_cost={search.max_cost:g}: {spent:.2f} USD are spent; a higher limit continues the search, "
            f"and `hpo export` writes its best result"
        )
