"""When a search falls back to on-demand nodes and returns from them; what trials wait for, in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import assert_readable, near
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.cluster import budget, cluster_state
from hpo.cluster.cluster_state import (
    MARKET,
    ON_DEMAND,
    SPOT,
    AutoscalerLimits,
    ClusterMonitor,
    ClusterSnapshot,
    Node,
    limits_from_config,
)
from hpo.cluster.fallback_policy import SpotShortage, describe_pending, node_to_release, update_shortage
from model.common.errors import MachineError

MINUTE = 60.0
GPU = {"CPU": 4.0, "GPU": 1.0}
HEAD = Node(id="head", resources={"node:__internal_head__": 1.0}, labels={MARKET: ON_DEMAND})


@dataclass
class Cluster:
    """Nodes of a GPU each, with a trial or without one; a look every minute."""

    of_market: dict[str, str] = field(default_factory=dict)
    trials: dict[int, str] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    waiting: int = 0
    starting: int = 0
    now: float = 0.0
    state: SpotShortage = field(default_factory=SpotShortage)

    @property
    def snapshot(self) -> ClusterSnapshot:
        free = {name: {} if name in self.trials.values() else GPU for name in self.of_market}
        workers = [
            Node(id=name, resources=GPU, available=free[name], labels={MARKET: market}, draining=name in self.draining)
            for name, market in self.of_market.items()
        ]
        return ClusterSnapshot(nodes=(HEAD, *workers))

    def look(self, minutes: int = 1) -> dict[str, int]:
        """What the autoscaler is asked for then."""
        for _ in range(minutes):
            self.now += MINUTE
            self.state = update_shortage(
                self.state,
                self.snapshot,
                running=self.trials,
                waiting=self.waiting,
                starting=self.starting,
                now=self.now,
                patience=10 * MINUTE,
            )
        request = self.state.request(len(self.trials) + self.waiting + self.starting)
        return {market: slots for market, slots in request.items() if slots}

    def leaves(self) -> str | None:
        return node_to_release(self.state, self.snapshot, self.trials, self.snapshot.free_slots(1, 1, SPOT))


def test_on_demand_places_are_asked_for_after_ten_minutes_of_waiting_and_spot_ones_still_are():
    cluster = Cluster(waiting=3)
    assert cluster.look(10) == {}
    assert cluster.look() == {ON_DEMAND: 3, SPOT: 3}


def test_a_spot_node_that_comes_begins_the_patience_anew():
    cluster = Cluster(waiting=3)
    cluster.look(9)
    cluster.of_market["s1"] = SPOT
    cluster.trials[0], cluster.waiting = "s1", 2
    assert cluster.look(10) == {}
    assert cluster.look() == {ON_DEMAND: 2, SPOT: 3}


def test_spot_nodes_that_go_do_not():
    cluster = Cluster({"s1": SPOT, "s2": SPOT}, {0: "s1", 1: "s2"}, waiting=1)
    cluster.look(6)
    del cluster.of_market["s1"], cluster.trials[0]
    cluster.waiting = 2
    assert cluster.look(5) == {ON_DEMAND: 2, SPOT: 3}


def test_nobody_waits_nothing_is_asked_for():
    cluster = Cluster({"s1": SPOT}, {0: "s1"})
    assert cluster.look(100) == {}
    cluster.waiting = 1
    cluster.look(9)
    cluster.waiting = 0
    cluster.look()
    cluster.waiting = 1
    assert cluster.look(10) == {}


@pytest.fixture
def bridged() -> Cluster:
    """Two on-demand nodes came in a drought, and have the trials."""
    cluster = Cluster(waiting=2)
    cluster.look(11)
    cluster.of_market |= {"d1": ON_DEMAND, "d2": ON_DEMAND}
    cluster.trials, cluster.waiting = {0: "d1", 1: "d2"}, 0
    assert cluster.look(30) == {ON_DEMAND: 2, SPOT: 2}
    assert cluster.leaves() is None
    return cluster


def test_while_it_lasts_others_that_wait_get_on_demand_places_at_once(bridged):
    bridged.waiting = 1
    assert bridged.look() == {ON_DEMAND: 3, SPOT: 3}


def test_when_spot_is_back_trials_return_one_by_one_as_there_is_room(bridged):
    bridged.of_market["s1"] = SPOT
    assert bridged.look() == {SPOT: 2}
    assert bridged.leaves() == "d1"
    bridged.draining.add("d1")
    bridged.look()
    assert bridged.leaves() is None  # until its trial has moved
    bridged.trials[0] = "s1"
    bridged.look()
    assert bridged.leaves() is None  # no room for the other
    del bridged.of_market["d1"]
    bridged.of_market["s2"] = SPOT
    assert bridged.look() == {SPOT: 2}
    assert bridged.leaves() == "d2"
    bridged.trials[1] = "s2"
    del bridged.of_market["d2"]
    assert bridged.look() == {}


def test_a_search_that_runs_out_of_trials_holds_no_node(bridged):
    bridged.trials = {0: "d1"}
    assert bridged.look() == {ON_DEMAND: 1, SPOT: 1}
    bridged.trials = {}
    assert bridged.look() == {}


def test_a_drought_is_not_over_while_trials_start_on_the_nodes_that_came():
    cluster = Cluster(waiting=2)
    cluster.look(11)
    cluster.of_market |= {"d1": ON_DEMAND, "d2": ON_DEMAND}
    cluster.waiting, cluster.starting = 0, 2
    assert cluster.look() == {ON_DEMAND: 2, SPOT: 2}
    cluster.starting, cluster.trials = 0, {0: "d1", 1: "d2"}
    assert cluster.look() == {ON_DEMAND: 2, SPOT: 2}


def test_on_demand_nodes_that_were_there_before_are_nobodys_bridge():
    cluster = Cluster({"d0": ON_DEMAND}, {0: "d0"}, waiting=1)
    assert cluster.look(11) == {ON_DEMAND: 1, SPOT: 2}
    cluster.of_market["s1"] = SPOT
    cluster.waiting = 0
    cluster.look()
    assert cluster.leaves() is None


@pytest.mark.parametrize(
    ("numbers", "gpus", "snapshot", "expected"),
    [
        ([5], 1.0, ClusterSnapshot(starting=("a", "a")), "trial 5 waits for 1 GPU: none free, 2 nodes are starting"),
        ([5], 0.25, ClusterSnapshot(starting=("a",)), "trial 5 waits for 0.25 GPUs: none free, 1 node is starting"),
        (
            [5, 6],
            0.0,
            ClusterSnapshot(requested=2),
            "trials 5 and 6 wait for 2 CPUs each: none free, 2 nodes requested",
        ),
        ([1, 2, 3], 1.0, ClusterSnapshot(), "trials 1, 2 and 3 wait for 1 GPU each: none free"),
        ([1, 2, 3, 4, 5], 1.0, ClusterSnapshot(), "trials 1, 2, 3 and 2 more wait for 1 GPU each: none free"),
        (
            [5],
            1.0,
            ClusterSnapshot(nodes=(Node(id="a", resources=GPU, available=GPU),)),
            "trial 5 waits for 1 GPU: room for 1",
        ),
        (
            [5],
            1.0,
            ClusterSnapshot(launch_failure="no capacity"),
            "trial 5 waits for 1 GPU: none free, the cloud reports: no capacity",
        ),
        ([], 1.0, ClusterSnapshot(), ""),
    ],
)
def test_what_trials_wait_for(numbers, gpus, snapshot, expected):
    assert describe_pending(numbers, 2.0, gpus, snapshot) == expected


def test_a_drought_is_told():
    told = describe_pending([5], 1.0, 1.0, ClusterSnapshot(starting=("a",), requested=1), on_demand_slots=2)
    assert told == (
        "trial 5 waits for 1 GPU: none free, 1 node is starting, 1 more requested, "
        "2 on-demand slots requested for lack of spot"
    )


def test_a_node_that_is_drained_has_no_room():
    snapshot = ClusterSnapshot(nodes=(Node(id="a", resources=GPU, available=GPU, draining=True),))
    assert snapshot.free_slots(1, 1) == 0


CONFIG = """
max_workers: 4
idle_timeout_minutes: 10
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, labels: {ray.io/market-type: on-demand, hpo/usd-per-hour: "0.2"}}
  spot: {resources: {CPU: 4, GPU: 1}, max_workers: 4, labels: {ray.io/market-type: spot, hpo/usd-per-hour: 0.5}}
"""


def test_only_a_cluster_with_spot_workers_and_on_demand_ones_falls_back():
    config: dict[str, Any] = yaml.safe_load(CONFIG)
    assert not limits_from_config(config).can_fall_back  # the head is none of them
    config["available_node_types"]["dear"] = {"resources": {"CPU": 4, "GPU": 1}, "labels": {MARKET: ON_DEMAND}}
    assert limits_from_config(config).can_fall_back
    config["available_node_types"]["dear"]["max_workers"] = 0
    assert not limits_from_config(config).can_fall_back
    assert not AutoscalerLimits().can_fall_back


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        ({ON_DEMAND: 3, SPOT: 4}, 1.0, {ON_DEMAND: 2, SPOT: 2}),  # two on-demand nodes at most, and four in all
        ({ON_DEMAND: 1, SPOT: 9}, 1.0, {ON_DEMAND: 1, SPOT: 3}),
        ({ON_DEMAND: 3, SPOT: 9}, 0.25, {ON_DEMAND: 3, SPOT: 9}),
        ({ON_DEMAND: 5, SPOT: 20}, 0.25, {ON_DEMAND: 5, SPOT: 8}),
        ({ON_DEMAND: 0, SPOT: 9}, 1.0, {SPOT: 4}),
        ({ON_DEMAND: 0, SPOT: 0}, 1.0, {}),
        ({ON_DEMAND: 1, SPOT: 1}, 2.0, {}),
    ],
)
def test_no_more_is_asked_for_than_may_be_added_all_at_once(wanted, gpus, expected):
    """Ray's autoscaler adds nothing at all where a request does not fit as a whole."""
    config: dict[str, Any] = yaml.safe_load(CONFIG)
    dear = {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2, "labels": {MARKET: ON_DEMAND}}
    config["available_node_types"]["dear"] = dear
    assert limits_from_config(config).feasible_request(wanted, 1.0, gpus) == expected


def test_the_file_on_the_head_is_read_and_missed_without_a_word(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    found = cluster_state.read_autoscaler_limits(tmp_path / "config.yaml")
    assert (found.max_workers, found.idle_timeout_seconds) == (4, 600)
    assert [(of.name, of.max_workers, cluster_state.price(of.labels)) for of in found.node_types] == [
        ("head", 0, 0.2),
        ("spot", 4, 0.5),
    ]
    assert cluster_state.read_autoscaler_limits(tmp_path / "other.yaml") == AutoscalerLimits()


def test_the_lookout_outlives_looks_that_fail(monkeypatch):
    monkeypatch.setattr(cluster_state, "_POLL_SECONDS", 0.01)
    snapshots = iter([ClusterSnapshot(), RuntimeError("the head is busy"), ClusterSnapshot(requested=1)])

    def poll() -> ClusterSnapshot:
        found = next(snapshots, ClusterSnapshot(requested=2))
        if isinstance(found, Exception):
            raise found
        return found

    monitor, told = ClusterMonitor(poll), []
    monitor.subscribe(lambda snapshot: told.append(snapshot.requested))
    monitor.start()
    while monitor.snapshot.requested < 2:
        pass
    monitor.stop()
    assert told[:3] == [0, 0, 1]


CLUSTER = yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text())


@given(config=near(CLUSTER), text=st.none() | st.text())
@example(config={}, text="a: &a [*a]")
@example(config={"available_node_types": {"head": {"resources": {"CPU": float("nan")}}}}, text=None)
def test_whatever_ray_up_left_on_the_head_is_counted_or_told_as_damaged(tmp_path_factory, config, text):
    path = tmp_path_factory.mktemp("fuzzed") / "config.yaml"
    path.write_text(yaml.safe_dump(config) if text is None else text, errors="replace")
    try:
        limits = cluster_state.read_autoscaler_limits(path)
    except MachineError as error:
        assert_readable(error, f"{path}: damaged")
        return
    assert limits.max_trials(1.0, 0.5) >= 0
    assert limits.feasible_request({SPOT: 3, ON_DEMAND: 2}, 1.0, 0.0).keys() <= {SPOT, ON_DEMAND}
    assert all(usd >= 0 for usd in budget.hourly_rates(ClusterSnapshot(starting=("head", "x")), limits).values())
