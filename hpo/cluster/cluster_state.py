"""What a cluster has, read off Ray: nodes that are there, nodes that start, and those that its autoscaler may add."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2

from hpo.cluster import cluster_config
from model.common.errors import ConfigError, MachineError
from model.common.validation import matches_type

MARKET, SPOT, ON_DEMAND = "ray.io/market-type", "spot", "on-demand"  # a label, and its values
PRICE = "hpo/usd-per-hour"  # a label
CONFIG_FILE = Path("~/ray_bootstrap_config.yaml")  # `ray up` writes it on the head
_HEAD = "node:__internal_head__"  # a resource that Ray gives it
_LOOK_SECONDS = 2.0
_REFUSED_SECONDS = 30.0  # for so long a refusal is worth telling: the autoscaler asks again every five


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One that is alive."""

    id: str
    resources: Mapping[str, float]
    free: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    draining: bool = False  # it takes no new work, and is gone soon

    @property
    def is_head(self) -> bool:
        return _HEAD in self.resources


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeType:
    """As the cluster file has it."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    workers: int  # at most


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoscalerLimits:
    """What the autoscaler may do; by default there is none."""

    types: tuple[NodeType, ...] = ()  # the head's too
    workers: int = 0  # at most, of all types together
    expected: int = 0  # workers that `ray up` has begun to set up, and of which the file says no more
    idle_seconds: float = math.inf  # after which an idle worker goes

    @property
    def falls_back(self) -> bool:
        """Whether there are spot workers, and on-demand ones to fall back to."""
        return {SPOT, ON_DEMAND} <= {of.labels.get(MARKET) for of in self.types if of.workers}

    def fit(self, cpus: float, gpus: float) -> int:
        """Trials at a time, when all is added that may be: the roomiest types first."""
        rooms = [(trials_that_fit(of.resources, cpus, gpus), of.workers) for of in self.types]
        return _greedy(sorted(rooms, reverse=True), self.workers)

    def places(self, wanted: Mapping[str, int], cpus: float, gpus: float) -> dict[str, int]:
        """As many of the wanted places for trials, by market, as all fit on nodes at once, the first market first. An
        autoscaler that is asked for more than it may add adds nothing; which type it takes it decides: the smallest."""
        left, found = self.workers, {}
        for market, places in wanted.items():
            rooms = [
                (room, of.workers)
                for of in self.types
                if of.labels.get(MARKET) == market and (room := trials_that_fit(of.resources, cpus, gpus))
            ]
            found[market] = min(places, _greedy(sorted(rooms), left))
            left -= math.ceil(found[market] / min(rooms)[0]) if found[market] else 0
        return {market: places for market, places in found.items() if places}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSnapshot:
    """Of a cluster, at one moment."""

    nodes: tuple[Node, ...] = ()
    starting: tuple[str, ...] = ()  # the types of the machines that the cloud has given and that are set up now
    asked: int = 0  # nodes that it has not given yet
    refused: str = ""  # what it said, where it gives none

    def free(self, cpus: float, gpus: float, market: str | None = None) -> int:
        """Trials that could start at once; market: on nodes with that label."""
        nodes = [n for n in self.nodes if not n.draining and market in (None, n.labels.get(MARKET))]
        return sum(trials_that_fit(node.free, cpus, gpus) for node in nodes)


def _greedy(rooms: Sequence[tuple[int, int]], left: int) -> int:
    """rooms: of a node, and how many there may be of them; left: in all."""
    fit = 0
    for room, workers in rooms:
        fit += room * min(workers, left)
        left -= min(workers, left)
    return fit


def trials_that_fit(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Trials side by side."""
    room = resources.get("CPU", 0) / cpus
    if gpus:
        room = min(room, resources.get("GPU", 0) / gpus)
    return int(room + 1e-9)  # 1 / 0.1 trials are ten


def price(labels: Mapping[str, str]) -> float | None:
    """USD an hour; None where none is said."""
    try:
        usd = float(labels[PRICE])
    except (KeyError, ValueError):
        return None
    return usd if 0 <= usd < math.inf else None


def poll_cluster() -> ClusterSnapshot:
    """At the cluster that Ray is connected to."""
    free = ray._private.state.available_resources_per_node()
    draining = ray._private.state.state.get_draining_nodes()
    nodes = tuple(
        Node(
            id=node["NodeID"],
            resources=node["Resources"],
            free=free.get(node["NodeID"], {}),
            labels=node["Labels"],
            address=node["NodeManagerAddress"],
            draining=node["NodeID"] in draining,
        )
        for node in ray.nodes()
        if node["Alive"]
    )
    return replace(_coming(), nodes=nodes)


def _coming() -> ClusterSnapshot:
    """As the autoscaler says; nothing where there is none."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        since = time.time() - _REFUSED_SECONDS  # on the head's clock, as ours: a cluster's driver runs there
        failed = [launch for launch in status.failed_launches if (launch.failed_ts_s or 0) > since]
        return ClusterSnapshot(
            starting=tuple(node.ray_node_type_name for node in status.pending_nodes),
            asked=sum(launch.count for launch in status.pending_launches),
            refused=(failed[-1].details or "it has none").splitlines()[0] if failed else "",
        )
    text = ray.experimental.internal_kv._internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS)
    report = (json.loads(text).get("autoscaler_report") or {}) if text else {}
    return ClusterSnapshot(
        starting=tuple(node_type for _, node_type, _ in report.get("pending_nodes", [])),
        asked=sum(report.get("pending_launches", {}).values()),
    )


def autoscaler_limits(path: Path = CONFIG_FILE) -> AutoscalerLimits:
    """By the file that `ray up` left on the head; none where this is no such head. Raises MachineError."""
    path = path.expanduser()
    if not path.exists():
        return AutoscalerLimits()
    try:
        return limits_of(cluster_config.read(path))
    except (ConfigError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MachineError(f"{path}: damaged ({error}); `ray up` writes it") from error


def limits_of(config: Mapping[str, Any]) -> AutoscalerLimits:
    """A cluster file's."""
    at_most, head = config.get("max_workers", 0), config.get("head_node_type")
    if config.get("provider", {}).get("type") == "local":  # nothing is ever added, and its only type is made up by Ray
        return AutoscalerLimits(expected=int(at_most))
    types = [
        NodeType(
            name=name,
            resources={key: float(value) for key, value in (of.get("resources") or {}).items()},
            labels={key: str(value) for key, value in (of.get("labels") or {}).items()},
            workers=of.get("max_workers", 0 if name == head else at_most),
        )
        for name, of in config.get("available_node_types", {}).items()
    ]
    idle = config.get("idle_timeout_minutes", 5)
    if not all(matches_type(count, int) and count >= 0 for count in (at_most, *(of.workers for of in types))):
        raise ValueError("max_workers: must be whole numbers")
    if not all(0 <= amount < math.inf for amount in (idle, *(a for of in types for a in of.resources.values()))):
        raise ValueError("resources, idle_timeout_minutes: must be numbers")
    return AutoscalerLimits(types=tuple(types), workers=at_most, idle_seconds=60.0 * idle)


class ClusterMonitor:
    """Looks at the cluster every two seconds, in a thread of its own: a look asks Ray's head."""

    def __init__(self, see: Callable[[], ClusterSnapshot] = poll_cluster) -> None:
        self._see = see
        self.snapshot = see()
        self._listeners: list[Callable[[ClusterSnapshot], None]] = []

    def subscribe(self, listener: Callable[[ClusterSnapshot], None]) -> None:
        """Of every look, in that thread; of the last one at once."""
        listener(self.snapshot)
        self._listeners.append(listener)

    def wait_for_worker(self, patience: float) -> bool:
        """Seconds; whether one is there."""
        end = time.monotonic() + patience
        while all(node.is_head for node in self.snapshot.nodes) and time.monotonic() < end:
            time.sleep(0.2)
        return any(not node.is_head for node in self.snapshot.nodes)

    @contextmanager
    def looking(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_LOOK_SECONDS):
                with contextlib.suppress(Exception):  # Ray's head is busy, or gone: others see that
                    self.snapshot = self._see()
                for listener in self._listeners:
                    listener(self.snapshot)

        thread = threading.Thread(target=watch, name="nodes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=_LOOK_SECONDS)  # not for ever: a head that is gone does not answer
