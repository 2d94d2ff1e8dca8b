"""Ray: started on this machine or joined; what its nodes have room for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from hpo.config import SearchConfig
from model.config import MachineError

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would call home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray 2.60 warns about otherwise
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # two thirds of a report's 3.5 ms; the record has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end an interrupted search with exit code 0
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nothing reads Tune's snapshots
    "TUNE_WARN_THRESHOLD_S": "5",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait made a busy machine 3 to 6 times slower
}


class RayError(MachineError):
    """Ray does not start, or has no room for a single trial."""


class Cluster:
    """What the nodes have, as a search needs it."""

    def __init__(self, search: SearchConfig) -> None:
        self._nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU", 0) for node in self._nodes)
        self.gpus_per_trial = float(has_gpus) if search.gpus_per_trial is None else search.gpus_per_trial
        self.cpus_per_trial = search.cpus_per_trial
        fit = sum(self._fit(node) for node in self._nodes)
        if search.address != "local" and search.concurrent:
            fit = max(fit, search.concurrent)  # an autoscaler adds nodes for trials that wait
        if fit == 0:
            raise RayError(
                f"a trial asks for {self.cpus_per_trial:g} CPUs and {self.gpus_per_trial:g} GPUs; no node has them. "
                f"The largest has {max(node.get('CPU', 0) for node in self._nodes):g} CPUs and "
                f"{max(node.get('GPU', 0) for node in self._nodes):g} GPUs"
            )
        self.slots = min(fit, search.concurrent or fit, search.trials)

    def _fit(self, node: dict[str, float]) -> int:
        fit = node.get("CPU", 0) / self.cpus_per_trial
        if self.gpus_per_trial:
            fit = min(fit, node.get("GPU", 0) / self.gpus_per_trial)
        return int(fit + 1e-9)  # 1 / 0.1 trials are ten

    @property
    def whole_node(self) -> dict[str, float]:
        """Ray's options for work that runs alone: the largest node's CPUs, and a GPU where trials use them."""
        with_gpu = [node for node in self._nodes if node.get("GPU", 0) >= 1]
        cpus = max(node.get("CPU", 0) for node in (self.gpus_per_trial and with_gpu) or self._nodes)
        return {"num_cpus": cpus, "num_gpus": float(bool(self.gpus_per_trial))}


@contextmanager
def started(search: SearchConfig) -> Iterator[Cluster]:
    """Ray, shut down again at the end. `local` listens on loopback only. Raises RayError."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local: dict[str, Any] = {}
    if search.address == "local":
        local = {"include_dashboard": False}
        # Ray's only way to loopback, meant for laptops. Its processes read it at their start, `import ray` has read it.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(address=search.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayError(f"address={search.address}: Ray does not start there ({error})") from error
    try:
        yield Cluster(search)
    finally:
        ray.shutdown()
