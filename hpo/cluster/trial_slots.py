"""How many trials can run at the same time on the nodes of a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

from hpo.cluster.cluster_state import AutoscalerLimits, ClusterMonitor, Node, trials_that_fit
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError, MachineError

NO_AUTOSCALER = AutoscalerLimits()


class RayStartError(MachineError):
    """Ray does not start, or no worker has joined."""


class Cluster:
    """A cluster as one search uses it."""

    def __init__(
        self,
        search: SearchConfig,
        monitor: ClusterMonitor,
        limits: AutoscalerLimits = NO_AUTOSCALER,
        *,
        is_alive: Callable[[], bool] = lambda: True,
        scratch: str = tempfile.gettempdir(),
    ) -> None:
        """Raises ConfigError if no node has the resources of a trial; RayStartError if no worker has joined."""
        self.is_alive, self.monitor, self.limits = is_alive, monitor, limits
        self.scratch = scratch  # a local folder for Tune
        nodes = monitor.snapshot.nodes
        addable = [kind.resources for kind in limits.node_types if kind.max_workers]
        offered = [node.resources for node in nodes] + addable
        has_gpus = any(resources.get("GPU", 0) for resources in offered)
        self.gpus_per_trial = float(has_gpus) if search.gpus_per_trial is None else search.gpus_per_trial
        self.cpus_per_trial = search.cpus_per_trial
        self.slots_now = sum(self._fit(node.resources) for node in nodes)  # on the nodes that are present
        slots = max(self.slots_now, limits.max_trials(self.cpus_per_trial, self.gpus_per_trial))
        per_worker = max((self._fit(node.resources) for node in nodes if not node.is_head), default=0)
        slots = max(slots, limits.expected_workers * per_worker)  # assumes that the others are like those present
        if search.address != "local" and not limits.node_types and search.max_concurrent:
            slots = max(slots, search.max_concurrent)  # an autoscaler of another kind adds nodes
        if slots == 0:
            raise no_room(self.cpus_per_trial, self.gpus_per_trial, offered, can_grow=bool(limits.node_types))
        self.slots = min(slots, search.max_concurrent or slots, search.trials)  # once all nodes have joined

    def _fit(self, resources: Mapping[str, float]) -> int:
        return trials_that_fit(resources, self.cpus_per_trial, self.gpus_per_trial)

    def fits(self, node: Node) -> bool:
        """Whether a trial fits on the node once nothing else runs there."""
        return bool(self._fit(node.resources))

    @property
    def head_cpus(self) -> float:
        """CPUs that a head offers beside other nodes: a trial there can take the driver down with it."""
        heads = [node.resources.get("CPU", 0) for node in self.monitor.snapshot.nodes if node.is_head]
        return max(heads, default=0) if len(self.monitor.snapshot.nodes) > 1 or self.limits.max_workers else 0

    @property
    def exclusive_node_options(self) -> dict[str, float]:
        """Ray's options for a task that occupies a node: the CPUs of the largest node, and a GPU where trials use them.
        Without a suitable node, the CPUs of the smallest that may be added: a larger one might not be available."""
        gpus = float(bool(self.gpus_per_trial))

        def cpus(offered: Iterable[Mapping[str, float]]) -> list[float]:
            return [has.get("CPU", 0) for has in offered if self._fit(has) and has.get("GPU", 0) >= gpus]

        present = cpus(node.resources for node in self.monitor.snapshot.nodes if not node.draining)
        addable = cpus(kind.resources for kind in self.limits.node_types if kind.max_workers)
        return {"num_cpus": max(present) if present else min(addable, default=self.cpus_per_trial), "num_gpus": gpus}


def no_room(
    cpus: float, gpus: float, offered: Sequence[Mapping[str, float]], *, can_grow: bool = False
) -> ConfigError | RayStartError:
    """The error for a trial that fits on no node: RayStartError without any worker. offered: the resources of each node
    and each node type. can_grow: whether an autoscaler adds nodes."""
    largest = {name: max((has.get(name, 0) for has in offered), default=0) for name in ("CPU", "GPU")}
    added = ", and the autoscaler can add none that has" if can_grow else ""
    message = f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs; no node has them{added}. "
    if not largest["CPU"]:  # whatever a trial needs
        return RayStartError(f"{message}No worker has joined")
    return ConfigError(
        f"{message}The largest node has {largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs: set --cpus-per-trial or "
        "--gpus-per-trial"
    )
