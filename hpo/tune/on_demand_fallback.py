"""Asks Ray's autoscaler for on-demand nodes in a drought of spot, and gives them back: hpo.cluster.fallback_policy decides."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping

import ray
from ray.autoscaler.sdk import request_resources
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from hpo.cluster.cluster_state import MARKET, ON_DEMAND, SPOT
from hpo.cluster.fallback_policy import SpotShortage, node_to_release, update_shortage
from hpo.cluster.trial_slots import Cluster

SPOT_IS_BACK = "spot nodes are back"


class OnDemandFallback:
    """Of a driver. say: a line for what happens; patience: seconds of a drought. Where the cluster has nothing to fall
    back to it does nothing."""

    def __init__(
        self,
        cluster: Cluster,
        say: Callable[[str], None],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._say, self._patience, self._clock = cluster, say, patience, clock
        self._state = SpotShortage()
        self._asked: dict[str, int] | None = None  # places, by market; None: what a driver asked that was killed
        self._closed, self._lock = False, threading.Lock()  # work that runs alone is watched by a thread

    @property
    def asked(self) -> int:
        """Places for trials on on-demand nodes."""
        return (self._asked or {}).get(ON_DEMAND, 0)

    def look(self, running: Mapping[int, str], waiting: int, starting: int = 0) -> str | None:
        """As hpo.cluster.fallback_policy.update_shortage. Gives a node that trials are to leave."""
        cpus, gpus = self._cluster.cpus_per_trial, self._cluster.gpus_per_trial
        growth, sight = self._cluster.limits, self._cluster.monitor.snapshot
        with self._lock:
            if self._closed or not growth.falls_back:
                return None
            self._state = update_shortage(
                self._state,
                sight,
                running=running,
                waiting=waiting,
                starting=starting,
                now=self._clock(),
                after=self._patience,
            )
            node = node_to_release(self._state, sight, running, sight.free(cpus, gpus, SPOT))
            try:
                self._ask(growth.places(self._state.wants(len(running) + waiting + starting), cpus, gpus))
                if node is not None:
                    gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
                    gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, SPOT_IS_BACK, 0)
            except Exception:  # Ray's head is busy, or gone: the next look tries again, or others see that
                return None
        return node

    def look_alone(self) -> None:
        """For work that runs after the trials: it waits where no worker is there."""
        at_work = [node for node in self._cluster.monitor.snapshot.nodes if not node.is_head and not node.draining]
        self.look({}, 0 if any(self._cluster.fits(node) for node in at_work) else 1)

    def close(self) -> None:
        """What is asked for would stay asked for, and the nodes with it."""
        with self._lock:
            self._closed = True
            if self._cluster.limits.falls_back and self._cluster.is_alive():
                with contextlib.suppress(Exception):  # Ray's: it is gone just now
                    self._ask({})

    def _ask(self, places: dict[str, int]) -> None:
        if places == self._asked:
            return
        markets = [market for market, count in places.items() for _ in range(count)]
        place = {"CPU": self._cluster.cpus_per_trial, "GPU": self._cluster.gpus_per_trial}
        request_resources(
            bundles=[{name: amount for name, amount in place.items() if amount} for _ in markets],
            bundle_label_selectors=[{MARKET: market} for market in markets],
        )
        before, self._asked = self.asked, places
        if self.asked and not before:
            self._say(f"No spot node for {self._patience / 60:g} min: on-demand ones are asked for")
        elif before and not self.asked:
            self._say("On-demand nodes are no longer asked for")
