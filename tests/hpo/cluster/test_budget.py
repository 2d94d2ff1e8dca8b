"""What a search has cost and will: node hours times prices, with a clock to be set."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from curves import report
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.cluster.budget import (
    Account,
    BudgetAction,
    CostMeter,
    TimeAndCostBudget,
    budget_action,
    check_cost_limit,
    cost_of_end,
    hourly_rates,
    seconds_after_trials,
    seconds_of_running_trials,
    unpriced,
)
from hpo.cluster.cluster_state import PRICE, AutoscalerLimits, ClusterSnapshot, Node, NodeType
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import REPORT_INDEX, REPORTS
from hpo.tune.cost_limit_stopper import CostLimitStopper
from model.common.errors import ConfigError

HOUR = 3600.0


@pytest.mark.parametrize(
    ("seen", "usd"),
    [
        ([(0, {"head": 0.2}), (HOUR, {"head": 0.2})], 0.2),
        ([(5, {}), (HOUR, {"head": 0.2})], 0.2 * (HOUR - 5) / HOUR),  # it came in between: from the last look on
        ([(0, {"head": 0.2, "a": 1.0}), (HOUR, {"head": 0.2}), (2 * HOUR, {"head": 0.2})], 1.4),  # it went meanwhile
        ([(0, {"a": 1.0}), (HOUR, {"b": 2.0}), (2 * HOUR, {"b": 2.0})], 3.0 + 2.0),  # one for another
        ([(0, {"a": 1.0}), (HOUR, {}), (5 * HOUR, {}), (6 * HOUR, {"a": 1.0})], 1.0 + 1.0),
        ([(10, {"a": 1.0}), (4, {"a": 1.0}), (4 + HOUR, {"a": 1.0})], 1.0),  # the clock jumped back: nothing, then on
        ([(0, {"a": 1.0}), (0, {"a": 1.0})], 0.0),
        ([(0, {"a": 1.0}), (HOUR, {"a": 3.0})], 3.0),  # the dearer one, where a label changes
    ],
)
def test_the_account_follows_nodes_that_come_and_go(seen, usd):
    account = Account()
    for now, rates_then in seen:
        account = account.accrue(rates_then, now)
    assert account.usd == pytest.approx(usd)


def test_what_was_spent_by_earlier_drivers_is_where_it_begins():
    assert Account(usd=3.0).accrue({"a": 1.0}, 100).accrue({"a": 1.0}, 100 + HOUR).usd == pytest.approx(4.0)


def node(name: str, usd: str | None = None) -> Node:
    return Node(id=name, resources={}, labels={} if usd is None else {PRICE: usd}, address=f"10.0.0.{name}")


LIMITS = AutoscalerLimits(
    node_types=(
        NodeType(name="spot", resources={}, labels={PRICE: "0.8"}, max_workers=2),
        NodeType(name="unknown", resources={}, max_workers=1),
    ),
    max_workers=2,
    idle_timeout_seconds=600,
)


def test_machines_that_are_set_up_cost_as_well_and_unknown_ones_as_much_as_the_dearest():
    snapshot = ClusterSnapshot(nodes=(node("1", "0.2"), node("2")), starting=("spot", "unknown"), requested=5)
    assert sorted(hourly_rates(snapshot, LIMITS).values()) == [0.2, 0.8, 0.8, 0.8]


@pytest.mark.parametrize("usd", [None, "", "cheap", "-1", "nan", "inf"])
def test_a_limit_is_refused_where_a_node_or_a_type_says_no_price_all_at_once(usd):
    snapshot = ClusterSnapshot(nodes=(node("1", "0.2"), node("2", usd)))
    assert unpriced(snapshot, LIMITS) == ["node 10.0.0.2", "node type unknown"]
    with pytest.raises(ConfigError, match=r"label hpo/usd-per-hour; node 10\.0\.0\.2, node type unknown have none"):
        check_cost_limit(SearchConfig(max_cost=5.0, address="auto"), 0.0, snapshot, LIMITS)
    check_cost_limit(SearchConfig(), 0.0, snapshot, LIMITS)


def test_a_limit_that_is_used_up_is_refused():
    with pytest.raises(ConfigError, match=r"max_cost=5: 5\.20 USD are spent; a higher limit continues"):
        check_cost_limit(
            SearchConfig(max_cost=5.0, address="auto"),
            5.2,
            ClusterSnapshot(nodes=(node("1", "0"),)),
            AutoscalerLimits(),
        )


def trial(epochs: int, state: TrialState = TrialState.RUNNING, **seconds: float) -> FrozenTrial:
    told = [{**report(e + 1, 0.5, **seconds).as_dict(), REPORT_INDEX: 0} for e in range(epochs)]
    values: dict[str, Any] = {"value": 0.5} if state == TrialState.COMPLETE else {}
    return create_trial(state=state, user_attrs={REPORTS: told}, **values)


SEARCH = SearchConfig(trials=4, epochs=10, pruner="none", final_epochs=20, max_cost=10.0, address="auto")


def test_what_is_ahead_is_the_longest_running_trial_and_then_the_end():
    trials = [trial(10, TrialState.COMPLETE, seconds=50, eval_seconds=10), trial(4, seconds=50, eval_seconds=10)]
    assert seconds_of_running_trials(trials, SEARCH) == pytest.approx(6 * 60)
    assert seconds_after_trials(trials, SEARCH) == pytest.approx(120 + 3 * 5 * 10 + 20 * 60)
    assert (seconds_of_running_trials([], SEARCH), seconds_after_trials([], SEARCH)) == (0.0, 120.0)


def test_replicates_are_ahead_too_one_seed_after_another():
    trials = [trial(10, TrialState.COMPLETE, seconds=50, eval_seconds=10)]
    with_seeds = replace(SEARCH, replicates=3)
    expected = 3 * (SEARCH.epochs * 60 + 5 * 10)
    assert seconds_after_trials(trials, with_seeds) - seconds_after_trials(trials, SEARCH) == pytest.approx(expected)


def test_of_many_machines_all_but_two_go_when_they_are_idle():
    many = {"head": 0.2, "a": 1.0, "b": 1.0, "c": 1.0}
    assert cost_of_end(HOUR, many, 600) == pytest.approx(3.2 / 6 + 2.0 * 5 / 6)
    assert cost_of_end(300, many, 600) == pytest.approx(3.2 / 12)
    assert cost_of_end(HOUR, many, float("inf")) == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("spent", "running", "end", "expected"),
    [
        (7.0, 1.0, 1.9, BudgetAction.CONTINUE),
        (7.0, 1.0, 2.0, BudgetAction.NO_NEW_TRIALS),
        (7.9, 2.0, 2.0, BudgetAction.NO_NEW_TRIALS),
        (8.0, 0.0, 2.0, BudgetAction.STOP),
        (11.0, 0.0, 0.0, BudgetAction.STOP),
    ],
)
def test_first_no_new_trials_begin_then_all_stop_with_enough_left_for_the_end(spent, running, end, expected):
    assert budget_action(spent, 10.0, running, end) == expected


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_whole_search_ends_before_it_has_cost_more_than_it_may():
    """Eleven machines for 2.1 USD an hour; every trial takes an hour, and each is stopped where it is."""
    clock = Clock()
    limits = AutoscalerLimits(idle_timeout_seconds=600)
    meter = CostMeter(1.0, limits, clock)
    snapshot = ClusterSnapshot(nodes=(node("head", "0.1"), *(node(str(i), "0.2") for i in range(10))))
    trials = [trial(1, seconds=300, eval_seconds=0)]
    budget = TimeAndCostBudget(SearchConfig(max_cost=10.0, address="auto"), lambda: trials, meter, clock)
    seen = []
    while not seen or seen[-1] is not BudgetAction.STOP:
        meter.update(snapshot)
        action = budget.cost_action()
        if not seen or action is not seen[-1]:
            seen.append(action)
        clock.now += 2
    assert seen == [BudgetAction.CONTINUE, BudgetAction.NO_NEW_TRIALS, BudgetAction.STOP]
    clock.now += seconds_after_trials(trials, SearchConfig()) - 5  # on all the machines, less what it took to notice
    assert 9.9 < meter.usd < 10.0


def test_without_a_limit_it_only_counts():
    clock = Clock()
    meter = CostMeter(0.0, AutoscalerLimits(), clock)
    meter.update(ClusterSnapshot(nodes=(node("1", "3.0"),)))
    clock.now = HOUR
    budget = TimeAndCostBudget(SearchConfig(), list, meter, clock)
    assert budget.cost_action() is BudgetAction.CONTINUE
    assert budget.allows_new_trials()
    assert budget.usd == pytest.approx(3.0)


def test_the_purse_stops_everything_once_and_keeps_the_note():
    clock = Clock()
    allowed, calls = [True], []
    budget = SimpleNamespace(allows_running_trials=lambda: allowed[0])
    stopper = CostLimitStopper(budget, lambda: calls.append("stop"), lambda: calls.append("save"), clock)
    for clock.now in range(0, 130, 10):
        assert not stopper.stop_all()
    allowed[0] = False
    clock.now += 10
    assert stopper.stop_all()
    assert stopper.stop_all()
    assert calls == ["save", "save", "stop"]
    assert not stopper("trial", {})


def test_the_time_budget_lets_running_trials_continue_and_no_new_one_begin():
    clock = Clock()
    budget = TimeAndCostBudget(SearchConfig(time_budget_minutes=60.0), list, None, clock)
    clock.now = HOUR
    assert budget.allows_new_trials()
    clock.now += 1
    assert not budget.allows_new_trials()
    assert budget.allows_running_trials()
    assert budget.usd is None
