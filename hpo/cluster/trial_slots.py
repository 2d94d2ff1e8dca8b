"""How many trials have room on the nodes of a cluster at the same time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

from hpo.cluster.cluster_state import AutoscalerLimits, ClusterMonitor, Node, trials_that_fit
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError, MachineError

NO_GROWTH = AutoscalerLimits()


class RayStartError(MachineError):
    """Ray does not start, or has no room for a single trial."""


class Cluster:
    """What the nodes have, as a search needs it; whether they are still there, and a folder for Tune."""

    def __init__(
        self,
        search: SearchConfig,
        lookout: ClusterMonitor,
        growth: AutoscalerLimits = NO_GROWTH,
        *,
        is_alive: Callable[[], bool] = lambda: True,
        scratch: str = tempfile.gettempdir(),
    ) -> None:
        self.is_alive, self.scratch, self.monitor, self.limits = is_alive, scratch, lookout, growth
        nodes = lookout.snapshot.nodes
        offered = [node.resources for node in nodes] + [of.resources for of in growth.types if of.workers]
        has_gpus = any(resources.get("GPU", 0) for resources in offered)
        self.gpus_per_trial = float(has_gpus) if search.gpus_per_trial is None else search.gpus_per_trial
        self.cpus_per_trial = search.cpus_per_trial
        self.slots_now = sum(self._fit(node.resources) for node in nodes)
        fit = max(self.slots_now, growth.fit(self.cpus_per_trial, self.gpus_per_trial))
        most = max((self._fit(node.resources) for node in nodes if not node.is_head), default=0)
        fit = max(fit, growth.expected * most)  # the others are taken to be like those that are there
        if search.address != "local" and not growth.types and search.max_concurrent:
            fit = max(fit, search.max_concurrent)  # an autoscaler of another kind adds nodes
        if fit == 0:
            added = ", and none can be added that has" if growth.types else ""
            raise no_room(self.cpus_per_trial, self.gpus_per_trial, offered, added)
        self.slots = min(fit, search.max_concurrent or fit, search.trials)

    def _fit(self, resources: Mapping[str, float]) -> int:
        return trials_that_fit(resources, self.cpus_per_trial, self.gpus_per_trial)

    def fits(self, node: Node) -> bool:
        """Whether a trial has room there, once nothing else runs."""
        return bool(self._fit(node.resources))

    @property
    def head_cpus(self) -> float:
        """CPUs of a head that has them beside other nodes: a trial there can take the driver along."""
        heads = [node.resources.get("CPU", 0) for node in self.monitor.snapshot.nodes if node.is_head]
        return max(heads, default=0) if len(self.monitor.snapshot.nodes) > 1 or self.limits.workers else 0

    @property
    def exclusive_node_options(self) -> dict[str, float]:
        """Ray's options for work that runs alone: the largest node's CPUs, and a GPU where trials use them. If none is
        there, those of the smallest that may be added: a larger one might not be to be had."""
        gpus = float(bool(self.gpus_per_trial))

        def cpus(offered: Iterable[Mapping[str, float]]) -> list[float]:
            return [has.get("CPU", 0) for has in offered if self._fit(has) and has.get("GPU", 0) >= gpus]

        present = cpus(node.resources for node in self.monitor.snapshot.nodes if not node.draining)
        possible = cpus(of.resources for of in self.limits.types if of.workers)
        return {"num_cpus": max(present) if present else min(possible, default=self.cpus_per_trial), "num_gpus": gpus}


def no_room(cpus: float, gpus: float, offered: Sequence[Mapping[str, float]], added: str = "") -> Exception:
    most = {name: max((has.get(name, 0) for has in offered), default=0) for name in ("CPU", "GPU")}
    told = f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs; no node has them{added}. "
    if not most["CPU"]:  # whatever was asked for
        return RayStartError(f"{told}No worker is there")
    return ConfigError(
        f"{told}The largest has {most['CPU']:g} CPUs and {most['GPU']:g} GPUs: --cpus-per-trial, --gpus-per-trial"
    )
