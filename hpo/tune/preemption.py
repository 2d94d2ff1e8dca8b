"""Ray Tune's callback that sees to where trials run: those on a node that is drained move, those that wait say for
what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune

from hpo.cluster.cluster_state import MARKET, SPOT
from hpo.cluster.fallback_policy import describe_pending
from hpo.cluster.trial_slots import Cluster
from hpo.tune.errors import propagate_errors
from hpo.tune.on_demand_fallback import SPOT_IS_BACK, OnDemandFallback

_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 5.0  # an actor takes about as long to start where there is room


class PreemptionHandler(tune.Callback):  # type: ignore[misc]
    """waits: is told what trials wait for at every look, nothing while none does."""

    def __init__(
        self,
        cluster: Cluster,
        bridge: OnDemandFallback,
        waits: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._bridge, self._waits, self._clock = cluster, bridge, waits, clock
        self._looked = clock()
        self._running: dict[int, tuple[Any, str]] = {}  # Ray's trial, and its node
        self._at_rest: set[int] = set()  # just begun, or just reported: to stop these costs no work
        self._pending: dict[int, float] = {}  # since when
        self._drained: dict[str, str] = {}  # nodes, also those that are gone by now, and why
        self.moved: dict[int, str] = {}  # stopped here, with the words for it

    def was_drained(self, number: int) -> bool:
        """Whether the trial's node is drained, or was before it went."""
        return number in self._running and self._running[number][1] in self._drained

    @propagate_errors
    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Its process is there."""
        number = trial.config["number"]
        self._running[number] = trial, _node_of(trial)
        self._at_rest.add(number)
        self.moved.pop(number, None)

    def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Its checkpoint is written."""
        self._at_rest.add(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """It has ended."""
        self._running.pop(trial.config["number"], None)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """It died."""
        self._running.pop(trial.config["number"], None)

    @propagate_errors
    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Ray's loop came round."""
        if self._at_rest:
            self._move()
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        sight = self._cluster.monitor.snapshot
        for node in sight.nodes:
            if node.draining:
                why = "its node is drained (spot)" if node.labels.get(MARKET) == SPOT else "its node is drained"
                self._drained.setdefault(node.id, why)
        pending = [trial.config["number"] for trial in trials if trial.status == "PENDING"]
        self._pending = {number: self._pending.get(number, now) for number in pending}
        waiting = [number for number, since in self._pending.items() if now - since >= _WAIT_SECONDS]
        waiting = waiting[len(waiting) - min(len(waiting), _num_unplaced()) :] if waiting else []
        running = {number: node for number, (_, node) in self._running.items()}
        if left := self._bridge.look(running, len(waiting), len(pending) - len(waiting)):
            self._drained.setdefault(left, SPOT_IS_BACK)
        cpus, gpus = self._cluster.cpus_per_trial, self._cluster.gpus_per_trial
        self._waits(describe_pending(waiting, cpus, gpus, sight, self._bridge.asked))

    def stop_all(self) -> None:
        """At once, whatever they are at."""
        for trial, _ in self._running.values():
            if trial.temporary_state.ray_actor:
                ray.kill(trial.temporary_state.ray_actor)

    def _move(self) -> None:
        """From nodes that are drained, after the epoch that they were at: most take less than the two minutes that are
        left, and those that take longer lose it with the node."""
        for number in self._at_rest & self._running.keys():
            trial, node = self._running[number]
            if node in self._drained and trial.status == "RUNNING":
                self.moved[number] = self._drained[node]
                ray.kill(trial.temporary_state.ray_actor)
        self._at_rest.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles callbacks into its scratch folder


def _num_unplaced() -> int:
    """Of the places that Tune asked Ray for; the others have theirs, and their processes start."""
    try:
        return sum(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())
    except Exception:  # Ray's head is busy, or gone: others see that
        return 0


def _node_of(trial: Any) -> str:
    """Where its actor runs; a query of Ray's head."""
    try:
        node: str = ray._private.state.actors(trial.temporary_state.ray_actor._actor_id.hex())["Address"]["NodeID"]
    except Exception:  # the head is busy, or gone: others see that
        return ""
    return node
