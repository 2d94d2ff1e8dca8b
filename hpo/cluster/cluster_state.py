"""The state of a Ray cluster: its nodes, the nodes that are starting, and those that its autoscaler may add."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2

from hpo.cluster import cluster_config, config_values, ray_internals
from model.common.errors import ConfigError, MachineError
from model.common.validation import matches_type

MARKET, PRICE = config_values.MARKET, config_values.PRICE  # labels of nodes and node types
SPOT, ON_DEMAND = "spot", "on-demand"  # values of MARKET
CONFIG_FILE = Path("~/ray_bootstrap_config.yaml")  # `ray up` writes it on the head
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head
_POLL_SECONDS = 2.0
_FAILURE_SECONDS = 30.0  # a launch failure is reported for so long: the autoscaler tries again every five seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node that is alive."""

    id: str
    resources: Mapping[str, float]
    available: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    draining: bool = False  # takes no new work, and is gone soon

    @property
    def is_head(self) -> bool:
        return _HEAD in self.resources


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeType:
    """One of the cluster file's `available_node_types`."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    max_workers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoscalerLimits:
    """What the autoscaler may add. The default describes a cluster without an autoscaler."""

    node_types: tuple[NodeType, ...] = ()  # the head's type too
    max_workers: int = 0  # of all types together
    expected_workers: int = 0  # of a local provider, whose file says nothing else about them; `ray up` sets them up
    idle_timeout_seconds: float = math.inf  # an idle worker is removed after that

    @property
    def can_fall_back(self) -> bool:
        """Whether there are spot workers, and on-demand workers that can replace them."""
        return {SPOT, ON_DEMAND} <= {kind.labels.get(MARKET) for kind in self.node_types if kind.max_workers}

    def max_trials(self, cpus: float, gpus: float) -> int:
        """Concurrent trials of the full-grown cluster. The types with the most slots per node are added first."""
        counts = [(trials_that_fit(kind.resources, cpus, gpus), kind.max_workers) for kind in self.node_types]
        return _fill(sorted(counts, reverse=True), self.max_workers)

    def feasible_request(self, wanted: Mapping[str, int], cpus: float, gpus: float) -> dict[str, int]:
        """Reduce a request to what the autoscaler may add: it adds nothing for a request that does not fit as a whole.

        The slots are by market, of which the first takes precedence. They assume the smallest nodes, since the
        autoscaler chooses the type.
        """
        workers_left, request = self.max_workers, {}
        for market, slots in wanted.items():
            counts = [
                (fit, kind.max_workers)
                for kind in self.node_types
                if kind.labels.get(MARKET) == market and (fit := trials_that_fit(kind.resources, cpus, gpus))
            ]
            granted = min(slots, _fill(sorted(counts), workers_left))
            if granted:
                request[market] = granted
                workers_left -= math.ceil(granted / min(counts)[0])
        return request


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSnapshot:
    """A cluster at one moment."""

    nodes: tuple[Node, ...] = ()
    starting: tuple[str, ...] = ()  # node types of the machines that the cloud has allocated and that are being set up
    requested: int = 0  # nodes that the cloud has not allocated yet
    launch_failure: str = ""  # the cloud's message, if it allocates none

    def free_slots(self, cpus: float, gpus: float, market: str | None = None) -> int:
        """Trials that could start at once, on all nodes or on those of one market."""
        nodes = [node for node in self.nodes if not node.draining and market in (None, node.labels.get(MARKET))]
        return sum(trials_that_fit(node.available, cpus, gpus) for node in nodes)


def _fill(counts: Sequence[tuple[int, int]], workers_left: int) -> int:
    """Slots on at most `workers_left` nodes. counts: slots per node, and the maximum of such nodes."""
    slots = 0
    for per_node, workers in counts:
        slots += per_node * min(workers, workers_left)
        workers_left -= min(workers, workers_left)
    return slots


def trials_that_fit(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Concurrent trials on a node with these resources."""
    fit = resources.get("CPU", 0) / cpus
    if gpus:
        fit = min(fit, resources.get("GPU", 0) / gpus)
    return int(fit + 1e-9)  # 1 / 0.1 trials are ten


def price(labels: Mapping[str, str]) -> float | None:
    """USD per hour; None without a valid label."""
    try:
        usd = float(labels[PRICE])
    except (KeyError, ValueError):
        return None
    return usd if 0 <= usd < math.inf else None


def poll_cluster() -> ClusterSnapshot:
    """Query the head of the cluster that Ray is connected to."""
    available = ray_internals.available_resources()
    draining = ray_internals.draining_nodes()
    nodes = tuple(
        Node(
            id=node["NodeID"],
            resources=node["Resources"],
            available=available.get(node["NodeID"], {}),
            labels=node["Labels"],
            address=node["NodeManagerAddress"],
            draining=node["NodeID"] in draining,
        )
        for node in ray.nodes()
        if node["Alive"]
    )
    return replace(_pending_nodes(), nodes=nodes)


def _pending_nodes() -> ClusterSnapshot:
    """The autoscaler's report; an empty snapshot without an autoscaler."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        since = time.time() - _FAILURE_SECONDS  # the head's clock, and ours: a cluster's driver runs there
        failed = [launch for launch in status.failed_launches if (launch.failed_ts_s or 0) > since]
        return ClusterSnapshot(
            starting=tuple(node.ray_node_type_name for node in status.pending_nodes),
            requested=sum(launch.count for launch in status.pending_launches),
            launch_failure=(failed[-1].details or "it has none").splitlines()[0] if failed else "",
        )
    text = ray_internals.autoscaler_v1_report()
    report = (json.loads(text).get("autoscaler_report") or {}) if text else {}
    return ClusterSnapshot(
        starting=tuple(node_type for _, node_type, _ in report.get("pending_nodes", [])),
        requested=sum(report.get("pending_launches", {}).values()),
    )


def read_autoscaler_limits(path: Path = CONFIG_FILE) -> AutoscalerLimits:
    """The limits in the file that `ray up` left on the head; no limits without that file. Raises MachineError."""
    path = path.expanduser()
    if not path.exists():
        return AutoscalerLimits()
    try:
        return limits_from_config(cluster_config.read(path))
    except (ConfigError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MachineError(f"{path}: damaged ({error}); `ray up` writes it") from error


def limits_from_config(config: Mapping[str, Any]) -> AutoscalerLimits:
    """The limits that a parsed cluster file sets."""
    max_workers, head = config.get("max_workers", 0), config.get("head_node_type")
    if config.get("provider", {}).get("type") == "local":  # nothing is ever added, and Ray makes up its only node type
        return AutoscalerLimits(expected_workers=int(max_workers))
    types = [
        NodeType(
            name=name,
            resources={key: float(value) for key, value in (kind.get("resources") or {}).items()},
            labels={key: str(value) for key, value in (kind.get("labels") or {}).items()},
            max_workers=kind.get("max_workers", 0 if name == head else max_workers),
        )
        for name, kind in config.get("available_node_types", {}).items()
    ]
    idle_minutes = config.get("idle_timeout_minutes", 5)
    if not all(matches_type(count, int) and count >= 0 for count in (max_workers, *(t.max_workers for t in types))):
        raise ValueError("max_workers: must be whole numbers")
    amounts = [amount for kind in types for amount in kind.resources.values()]
    if not all(0 <= amount < math.inf for amount in (idle_minutes, *amounts)):
        raise ValueError("resources, idle_timeout_minutes: must be numbers")
    return AutoscalerLimits(node_types=tuple(types), max_workers=max_workers, idle_timeout_seconds=60.0 * idle_minutes)


class ClusterMonitor:
    """Polls the cluster every two seconds, in a thread of its own: each poll queries Ray's head."""

    def __init__(self, poll: Callable[[], ClusterSnapshot] = poll_cluster) -> None:
        """Polls once, so that `snapshot` is set before `start`."""
        self._poll = poll
        self.snapshot = poll()
        self._listeners: list[Callable[[ClusterSnapshot], None]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster monitor", daemon=True)

    def subscribe(self, listener: Callable[[ClusterSnapshot], None]) -> None:
        """Call the listener with the last snapshot now, and after every poll in the monitor's thread."""
        listener(self.snapshot)
        self._listeners.append(listener)

    def wait_for_worker(self, timeout: float) -> bool:
        """Whether a worker has joined within the timeout, in seconds. The monitor must be running."""
        end = time.monotonic() + timeout
        while all(node.is_head for node in self.snapshot.nodes) and time.monotonic() < end:
            time.sleep(0.2)
        return any(not node.is_head for node in self.snapshot.nodes)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. It is not waited for without end: a head that is gone does not answer."""
        self._stopping.set()
        self._thread.join(timeout=_POLL_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            with contextlib.suppress(Exception):  # Ray's head is busy, or gone, which its watchdog reports
                self.snapshot = self._poll()
            for listener in self._listeners:
                listener(self.snapshot)
