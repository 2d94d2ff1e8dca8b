"""Ray Tune's callback that sees to where trials run: those on a node that is drained move, those that wait say for
what, and a drought of spot nodes is bridged with on-demand ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.autoscaler.sdk import request_resources
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from hpo.capacity import Drought, drought, to_return, waits
from hpo.hooks import hook
from hpo.nodes import MARKET, ON_DEMAND, SPOT
from hpo.ray_runtime import Cluster

_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 5.0  # an actor takes about as long to start where there is room


class Placement(tune.Callback):  # type: ignore[misc]
    """waits: is told what trials wait for at every look, nothing while none does. say: a line for what happens.
    patience: seconds of a drought."""

    def __init__(
        self,
        cluster: Cluster,
        waits: Callable[[str], None],
        say: Callable[[str], None],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._waits, self._say = cluster, waits, say
        self._patience, self._clock = patience, clock
        self._looked = clock()
        self._running: dict[int, tuple[Any, str]] = {}  # Ray's trial, and its node
        self._at_rest: set[int] = set()  # just begun, or just reported: to stop these costs no work
        self._pending: dict[int, float] = {}  # since when
        self._drained: dict[str, str] = {}  # nodes, also those that are gone by now, and why
        self._drought = Drought()
        self._asked: dict[str, int] = {}  # places, by market
        self.moved: dict[int, str] = {}  # stopped here, with the words for it

    def was_drained(self, number: int) -> bool:
        """Whether the trial's node is drained, or was before it went."""
        return number in self._running and self._running[number][1] in self._drained

    @hook
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

    @hook
    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Ray's loop came round."""
        if self._at_rest:
            self._move()
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        sight = self._cluster.lookout.sight
        for node in sight.nodes:
            if node.draining:
                why = "its node is drained (spot)" if node.labels.get(MARKET) == SPOT else "its node is drained"
                self._drained.setdefault(node.id, why)
        pending = [trial.config["number"] for trial in trials if trial.status == "PENDING"]
        self._pending = {number: self._pending.get(number, now) for number in pending}
        waiting = [number for number, since in self._pending.items() if now - since >= _WAIT_SECONDS]
        waiting = waiting[len(waiting) - min(len(waiting), _num_unplaced()) :] if waiting else []
        if self._cluster.growth.falls_back:
            self._bridge(len(waiting), now)
        cpus, gpus = self._cluster.cpus_per_trial, self._cluster.gpus_per_trial
        self._waits(waits(waiting, cpus, gpus, sight, self._asked.get(ON_DEMAND, 0)))

    def stop_all(self) -> None:
        """At once, whatever they are at."""
        for trial, _ in self._running.values():
            if trial.temporary_state.ray_actor:
                ray.kill(trial.temporary_state.ray_actor)

    def close(self) -> None:
        """Nothing more to ask the autoscaler for."""
        self._ask({})

    def _move(self) -> None:
        """From nodes that are drained, after the epoch that they were at: most take less than the two minutes that are
        left, and those that take longer lose it with the node."""
        for number in self._at_rest & self._running.keys():
            trial, node = self._running[number]
            if node in self._drained and trial.status == "RUNNING":
                self.moved[number] = self._drained[node]
                ray.kill(trial.temporary_state.ray_actor)
        self._at_rest.clear()

    def _bridge(self, waiting: int, now: float) -> None:
        sight = self._cluster.lookout.sight
        running = {number: node for number, (_, node) in self._running.items()}
        self._drought = drought(self._drought, sight, running=running, waiting=waiting, now=now, after=self._patience)
        cpus, gpus = self._cluster.cpus_per_trial, self._cluster.gpus_per_trial
        self._ask(self._cluster.growth.places(self._drought.wants(len(running) + waiting), cpus, gpus))
        node = to_return(self._drought, sight, running, sight.free(cpus, gpus, SPOT))
        if node and node not in self._drained:
            self._drained[node] = "spot nodes are back"
            gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
            gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, self._drained[node], 0)

    def _ask(self, places: dict[str, int]) -> None:
        if places != self._asked:
            before, now = self._asked.get(ON_DEMAND, 0), places.get(ON_DEMAND, 0)
            if now and not before:
                self._say(f"No spot node for {self._patience / 60:g} minutes: on-demand ones are asked for")
            elif before and not now:
                self._say("On-demand nodes are no longer asked for")
            self._asked = places
            markets = [market for market, count in places.items() for _ in range(count)]
            place = {"CPU": self._cluster.cpus_per_trial, "GPU": self._cluster.gpus_per_trial}
            request_resources(
                bundles=[{name: amount for name, amount in place.items() if amount} for _ in markets],
                bundle_label_selectors=[{MARKET: market} for market in markets],
            )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles callbacks into its scratch folder


def _num_unplaced() -> int:
    """Of the places that Tune asked Ray for; the others have theirs, and their processes start."""
    return sum(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())


def _node_of(trial: Any) -> str:
    """Where its actor runs; a query of Ray's head."""
    actor = ray._private.state.actors(trial.temporary_state.ray_actor._actor_id.hex())
    node: str = actor.get("Address", {}).get("NodeID", "")
    return node
