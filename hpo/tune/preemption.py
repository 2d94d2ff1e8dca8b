"""Ray Tune's callback for nodes that come and go. It migrates trials from drained nodes, and reports what pending
trials wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune

from hpo.cluster import ray_internals
from hpo.cluster.cluster_state import MARKET, SPOT
from hpo.cluster.fallback_policy import describe_pending
from hpo.cluster.trial_slots import Cluster
from hpo.tune.errors import propagate_errors
from hpo.tune.on_demand_fallback import SPOT_IS_BACK, OnDemandFallback

_UPDATE_SECONDS = 1.0
_WAIT_SECONDS = 5.0  # before a trial counts as waiting: where there is room, an actor takes about as long to start


class PreemptionHandler(tune.Callback):  # type: ignore[misc]
    """Migrates trials and feeds the on-demand fallback."""

    def __init__(
        self,
        cluster: Cluster,
        fallback: OnDemandFallback,
        report_pending: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """report_pending: receives, once a second, what trials wait for; empty while none waits."""
        self._cluster, self._fallback, self._report_pending, self._clock = cluster, fallback, report_pending, clock
        self._updated = clock()
        self._running: dict[int, tuple[Any, str]] = {}  # Ray's trial, and its node
        self._safe_to_stop: set[int] = set()  # just begun, or just reported: stopping these costs no work
        self._pending_since: dict[int, float] = {}
        self._drained: dict[str, str] = {}  # nodes, those that are gone included, and why
        self.migrated: dict[int, str] = {}  # trials that were stopped, and why; Ray reports them as failed next

    def was_drained(self, number: int) -> bool:
        """Whether the trial's node is drained, or was drained before it was lost."""
        return number in self._running and self._running[number][1] in self._drained

    @propagate_errors
    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        number = trial.config["number"]
        self._running[number] = trial, _node_of(trial)
        self._safe_to_stop.add(number)
        self.migrated.pop(number, None)

    def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """The trial has written its checkpoint."""
        self._safe_to_stop.add(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """The trial has ended."""
        self._running.pop(trial.config["number"], None)

    on_trial_error = on_trial_complete

    @propagate_errors
    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Tune's loop has finished a round."""
        if self._safe_to_stop:
            self._migrate()
        now = self._clock()
        if now - self._updated < _UPDATE_SECONDS:
            return
        self._updated = now
        snapshot = self._cluster.monitor.snapshot
        for node in snapshot.nodes:
            if node.draining:
                reason = "its node is drained (spot)" if node.labels.get(MARKET) == SPOT else "its node is drained"
                self._drained.setdefault(node.id, reason)
        pending = [trial.config["number"] for trial in trials if trial.status == "PENDING"]
        self._pending_since = {number: self._pending_since.get(number, now) for number in pending}
        waiting = [number for number, since in self._pending_since.items() if now - since >= _WAIT_SECONDS]
        if waiting:
            waiting = waiting[max(0, len(waiting) - _num_unplaced()) :]
        running = {number: node for number, (_, node) in self._running.items()}
        if released := self._fallback.update(running, len(waiting), len(pending) - len(waiting)):
            self._drained.setdefault(released, SPOT_IS_BACK)
        cpus, gpus = self._cluster.cpus_per_trial, self._cluster.gpus_per_trial
        self._report_pending(describe_pending(waiting, cpus, gpus, snapshot, self._fallback.on_demand_slots))

    def stop_all(self) -> None:
        """Stop all trials at once, in the middle of their epochs."""
        for trial, _ in self._running.values():
            if trial.temporary_state.ray_actor:
                ray.kill(trial.temporary_state.ray_actor)

    def _migrate(self) -> None:
        """Stop trials on drained nodes after their current epoch. Most epochs take less than the two minutes that EC2
        grants; a longer one is lost with the node."""
        for number in self._safe_to_stop & self._running.keys():
            trial, node = self._running[number]
            if node in self._drained and trial.status == "RUNNING":
                self.migrated[number] = self._drained[node]
                ray.kill(trial.temporary_state.ray_actor)
        self._safe_to_stop.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles callbacks into its scratch folder


def _num_unplaced() -> int:
    """Trials for which Ray has no resources yet; the other pending trials have theirs, and their processes start."""
    try:
        return sum(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())
    except Exception:  # Ray's head is busy, or gone, which its watchdog reports
        return 0


def _node_of(trial: Any) -> str:
    """The node of the trial's actor, by a query of Ray's head; empty if it does not answer."""
    try:
        return ray_internals.node_of_actor(trial.temporary_state.ray_actor)
    except Exception:
        return ""
