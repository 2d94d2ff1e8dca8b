"""Trials whose node is taken move, uncharged; those that wait say for what; a drought of spot nodes is bridged."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from curves import FixedBudget, controller, train
from optuna.trial import TrialState

from hpo.cluster.cluster_state import MARKET, ON_DEMAND, SPOT, AutoscalerLimits, ClusterSnapshot, Node, NodeType
from hpo.policy.retry_policy import DRAINED, MAX_MIGRATIONS, FailureAction, TrialFailure, classify_failure
from hpo.policy.trial_attributes import FAILURES
from hpo.policy.trial_attributes import MIGRATIONS as MOVED
from hpo.store.record import Record
from hpo.tune import on_demand_fallback, preemption
from hpo.tune.on_demand_fallback import SPOT_IS_BACK, OnDemandFallback
from hpo.tune.preemption import PreemptionHandler

MOVE = TrialFailure(error="its node is drained (spot)", action=FailureAction.MIGRATE)


class PreemptedError(Exception):
    """As Ray's RayActorError."""

    preempted = True


def test_a_preempted_trial_is_no_failure_whatever_else_its_error_says():
    assert classify_failure(PreemptedError("its worker process has died"), oom_kills=1) == TrialFailure(
        error=DRAINED, action=FailureAction.MIGRATE
    )


def test_a_trial_that_moves_comes_next_and_has_all_its_attempts_left(record):
    driver = controller(record)
    driver.next_trial()
    for _ in range(5):
        driver.on_trial_failure(0, MOVE)
        assert driver.next_trial().number == 0
    for _ in range(2):
        driver.on_trial_failure(0, TrialFailure(error="its process died", action=FailureAction.RETRY))
        assert driver.next_trial().number == 0
    train(driver, 0, [])
    trial = record.trial(0)
    assert trial.state.is_finished()
    assert trial.state != TrialState.FAIL
    assert (len(trial.user_attrs[MOVED]), len(trial.user_attrs[FAILURES])) == (5, 2)


def test_a_trial_does_not_move_for_ever(record):
    driver = controller(record)
    for _ in range(MAX_MIGRATIONS):
        assert driver.next_trial().number == 0
        driver.on_trial_failure(0, MOVE)
    assert record.trial(0).state == TrialState.FAIL
    assert record.trial(0).user_attrs["error"]["text"] == f"moved {MAX_MIGRATIONS} times, at last: {MOVE.error}"
    assert driver.next_trial().number == 1


def test_when_money_is_up_nothing_is_taken_up(record, runs):
    controller(record).next_trial()
    driver = controller(Record(runs, "first"), budget=FixedBudget(running_trials=False))
    assert driver.next_trial() is None
    assert driver.trials_left == 8


# --- where trials run -----------------------------------------------------------------------------------------------

GPU = {"CPU": 4.0, "GPU": 1.0}
TYPES = tuple(
    NodeType(name=market, resources=GPU, labels={MARKET: market}, max_workers=2) for market in (SPOT, ON_DEMAND)
)


@dataclass
class Loop:
    """Ray Tune's, with trials that exist only here, a look every second, and a minute's patience."""

    monkeypatch: pytest.MonkeyPatch
    limits: AutoscalerLimits = field(default_factory=AutoscalerLimits)
    now: float = 0.0
    killed: list[str] = field(default_factory=list)
    requested: list[list[str]] = field(default_factory=list)  # of the autoscaler: markets of the slots
    drained: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    pending: str = ""
    head_answers: bool = True

    def __post_init__(self) -> None:
        self.monitor = SimpleNamespace(snapshot=ClusterSnapshot())
        cluster: Any = SimpleNamespace(
            monitor=self.monitor,
            limits=self.limits,
            cpus_per_trial=1.0,
            gpus_per_trial=1.0,
            is_alive=lambda: True,
            fits=lambda node: bool(node.resources),
        )
        patch = self.monkeypatch.setattr
        patch(preemption.ray, "kill", self.killed.append)
        patch(preemption, "_node_of", lambda trial: trial.node)
        patch(preemption, "_num_unplaced", lambda: sum(trial.status == "PENDING" for trial in self.trials))
        patch(on_demand_fallback, "request_resources", self.request)
        patch(on_demand_fallback.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=""))
        patch(on_demand_fallback.ray_internals, "drain_node", lambda address, node, why: self.drained.append(node))
        self.fallback = OnDemandFallback(cluster, self.lines.append, 60.0, lambda: self.now)
        self.handler = PreemptionHandler(
            cluster, self.fallback, lambda line: setattr(self, "pending", line), lambda: self.now
        )
        self.trials = [self.trial(number) for number in range(3)]

    def trial(self, number: int) -> Any:
        state = SimpleNamespace(ray_actor=f"actor of {number}")
        return SimpleNamespace(config={"number": number}, status="PENDING", temporary_state=state, node="")

    def request(self, bundles: Any, bundle_label_selectors: Any) -> None:
        if not self.head_answers:
            raise TimeoutError
        self.requested.append([selector[MARKET] for selector in bundle_label_selectors])

    def sees(self, *nodes: tuple[str, str], draining: str = "", **more: Any) -> None:
        """Nodes and their markets; those where a trial runs have no room."""
        used = [trial.node for trial in self.trials if trial.status == "RUNNING"]
        self.monitor.snapshot = ClusterSnapshot(
            nodes=tuple(
                Node(
                    id=name,
                    resources=GPU,
                    available={} if name in used else GPU,
                    labels={MARKET: market},
                    draining=name == draining,
                )
                for name, market in nodes
            ),
            **more,
        )

    def starts(self, number: int, node: str) -> None:
        trial = self.trials[number]
        trial.node, trial.status = node, "RUNNING"
        self.handler.on_trial_start(0, self.trials, trial)

    def reports(self, number: int) -> None:
        self.handler.on_trial_result(0, self.trials, self.trials[number])

    def dies(self, number: int) -> None:
        self.trials[number].status = "ERROR"
        self.handler.on_trial_error(0, self.trials, self.trials[number])

    def goes_round(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1
            self.handler.on_step_end(0, self.trials)


def test_a_trial_leaves_a_drained_node_when_it_has_reported_and_no_other_trial_is_touched(monkeypatch):
    loop = Loop(monkeypatch)
    loop.sees(("a", SPOT), ("b", SPOT))
    loop.starts(0, "a")
    loop.starts(1, "b")
    loop.goes_round()
    loop.sees(("a", SPOT), ("b", SPOT), draining="a")
    loop.goes_round(5)
    assert loop.killed == []  # in the middle of an epoch
    loop.reports(1)
    loop.reports(0)
    loop.goes_round()
    assert loop.killed == ["actor of 0"]
    assert loop.handler.migrated == {0: "its node is drained (spot)"}
    assert (loop.handler.was_drained(0), loop.handler.was_drained(1)) == (True, False)


def test_a_trial_that_begins_on_a_drained_node_does_not_begin(monkeypatch):
    """The process of the one before is used again."""
    loop = Loop(monkeypatch)
    loop.sees(("a", "other"), draining="a")
    loop.goes_round()
    loop.starts(0, "a")
    loop.goes_round()
    assert loop.handler.migrated == {0: "its node is drained"}
    loop.dies(0)
    loop.sees(("b", SPOT))
    loop.starts(0, "b")
    loop.goes_round()
    assert (loop.killed, loop.handler.migrated) == (["actor of 0"], {})


def test_a_node_that_is_gone_was_drained_all_the_same(monkeypatch):
    loop = Loop(monkeypatch)
    loop.sees(("a", SPOT), draining="a")
    loop.starts(0, "a")
    loop.goes_round()
    loop.sees()
    loop.goes_round()
    assert loop.handler.was_drained(0)
    loop.dies(0)
    assert not loop.handler.was_drained(0)


def test_trials_that_wait_are_told_after_a_few_seconds_and_no_longer_than_they_do(monkeypatch):
    loop = Loop(monkeypatch)
    loop.sees(starting=("g6",))
    loop.goes_round(5)
    assert loop.pending == ""
    loop.goes_round(2)
    assert loop.pending == "trials 0, 1 and 2 wait for 1 GPU each: none free, 1 node is starting"
    loop.sees(("a", SPOT))
    for number in range(3):
        loop.starts(number, "a")
    loop.goes_round()
    assert loop.pending == ""


def test_trials_that_have_a_place_and_only_start_do_not_wait(monkeypatch):
    loop = Loop(monkeypatch)
    monkeypatch.setattr(preemption, "_num_unplaced", lambda: 1)
    loop.goes_round(10)
    assert loop.pending == "trial 2 waits for 1 GPU: none free"


def test_a_drought_is_bridged_and_trials_come_back(monkeypatch):
    loop = Loop(monkeypatch, limits=AutoscalerLimits(node_types=TYPES, max_workers=4))
    loop.goes_round(60)
    assert loop.requested == [[]]  # whatever a driver that was killed had asked for
    loop.goes_round(10)
    assert loop.requested[1:] == [[ON_DEMAND] * 2 + [SPOT] * 2]  # of three each: no more may be added at once
    assert loop.lines == ["No spot node for 1 min: on-demand nodes are requested"]
    for number, node in enumerate(("a", "b")):
        loop.starts(number, node)
    loop.dies(2)
    loop.sees(("a", ON_DEMAND), ("b", ON_DEMAND))
    loop.goes_round(5)
    loop.sees(("a", ON_DEMAND), ("b", ON_DEMAND), ("s", SPOT))
    loop.goes_round()
    assert loop.drained == ["a"]
    assert loop.lines[1:] == ["On-demand nodes are no longer requested"]
    loop.sees(("a", ON_DEMAND), ("b", ON_DEMAND), ("s", SPOT), draining="a")
    loop.goes_round()
    loop.reports(0)
    loop.goes_round()
    assert loop.handler.migrated == {0: SPOT_IS_BACK}
    assert loop.killed == ["actor of 0"]
    loop.fallback.close()
    assert loop.requested[-1] == []
    loop.goes_round(100)
    assert loop.requested[-1] == []


def test_a_head_that_does_not_answer_is_asked_again(monkeypatch):
    loop = Loop(monkeypatch, limits=AutoscalerLimits(node_types=TYPES, max_workers=4), head_answers=False)
    loop.goes_round(70)
    assert loop.requested == []
    loop.head_answers = True
    loop.goes_round()
    assert loop.requested == [[ON_DEMAND] * 2 + [SPOT] * 2]


def test_work_that_runs_alone_is_bridged_too(monkeypatch):
    loop = Loop(monkeypatch, limits=AutoscalerLimits(node_types=TYPES, max_workers=4))
    loop.sees(("s", SPOT))
    for loop.now in range(0, 200, 2):
        loop.fallback.update_for_task()
    loop.sees(("s", SPOT), draining="s")
    for loop.now in range(200, 270, 2):
        loop.fallback.update_for_task()
    assert loop.requested == [[], [ON_DEMAND, SPOT]]
    loop.sees(("a", ON_DEMAND))
    loop.fallback.update_for_task()
    assert loop.requested[2:] == [[]]
