"""Requests on-demand nodes from Ray's autoscaler when spot nodes are short, and gives them back. The rules are in
hpo.cluster.fallback_policy."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping

import ray
from ray.autoscaler.sdk import request_resources

from hpo.cluster import ray_internals
from hpo.cluster.cluster_state import MARKET, ON_DEMAND, SPOT
from hpo.cluster.fallback_policy import SpotShortage, node_to_release, update_shortage
from hpo.cluster.trial_slots import Cluster

SPOT_IS_BACK = "spot nodes are back"


class OnDemandFallback:
    """The fallback of one driver. It does nothing on a cluster without spot and on-demand workers."""

    def __init__(
        self,
        cluster: Cluster,
        say: Callable[[str], None],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """patience: seconds without a spot node after which on-demand nodes are requested."""
        self._cluster, self._say, self._patience, self._clock = cluster, say, patience, clock
        self._shortage = SpotShortage()
        self._request: dict[str, int] | None = None  # slots by market; None: what a killed driver may have requested
        self._closed, self._lock = False, threading.Lock()  # the monitor's thread calls `update_for_task`

    @property
    def on_demand_slots(self) -> int:
        """Slots that are requested on on-demand nodes."""
        return (self._request or {}).get(ON_DEMAND, 0)

    def update(self, running: Mapping[int, str], waiting: int, starting: int = 0) -> str | None:
        """Update the request to the autoscaler. For the arguments see `update_shortage`. Returns a node that is drained
        now, since its trials fit on spot nodes again."""
        cpus, gpus = self._cluster.cpus_per_trial, self._cluster.gpus_per_trial
        limits, snapshot = self._cluster.limits, self._cluster.monitor.snapshot
        with self._lock:
            if self._closed or not limits.can_fall_back:
                return None
            self._shortage = update_shortage(
                self._shortage,
                snapshot,
                running=running,
                waiting=waiting,
                starting=starting,
                now=self._clock(),
                patience=self._patience,
            )
            node = node_to_release(self._shortage, snapshot, running, snapshot.free_slots(cpus, gpus, SPOT))
            wanted = self._shortage.request(len(running) + waiting + starting)
            try:
                self._send(limits.feasible_request(wanted, cpus, gpus))
                if node is not None:
                    ray_internals.drain_node(ray.get_runtime_context().gcs_address, node, SPOT_IS_BACK)
            except Exception:  # Ray's head is busy: the next update tries again; or gone, which its watchdog reports
                return None
        return node

    def update_for_task(self) -> None:
        """Update the request for a task after the trials, which waits as long as there is no worker."""
        nodes = self._cluster.monitor.snapshot.nodes
        has_worker = any(self._cluster.fits(node) for node in nodes if not node.is_head and not node.draining)
        self.update({}, waiting=0 if has_worker else 1)

    def close(self) -> None:
        """Withdraw the request. Ray would keep it, and the nodes with it."""
        with self._lock:
            self._closed = True
            if self._cluster.limits.can_fall_back and self._cluster.is_alive():
                with contextlib.suppress(Exception):  # Ray's head is gone just now
                    self._send({})

    def _send(self, request: dict[str, int]) -> None:
        if request == self._request:
            return
        markets = [market for market, slots in request.items() for _ in range(slots)]
        slot = {"CPU": self._cluster.cpus_per_trial, "GPU": self._cluster.gpus_per_trial}
        request_resources(
            bundles=[{name: amount for name, amount in slot.items() if amount} for _ in markets],
            bundle_label_selectors=[{MARKET: market} for market in markets],
        )
        before, self._request = self.on_demand_slots, request
        if self.on_demand_slots and not before:
            self._say(f"No spot node for {self._patience / 60:g} min: on-demand nodes are requested")
        elif before and not self.on_demand_slots:
            self._say("On-demand nodes are no longer requested")
