"""Ray: started on this machine or joined; what its nodes have room for."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from hpo.config import SearchConfig
from hpo.reaper import Reaper
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
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the listeners tell of them
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Tune itself tries again, and we don't hear of it
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait made a busy machine 3 to 6 times slower
}


class RayError(MachineError):
    """Ray does not start, or has no room for a single trial."""


class HeadGoneError(MachineError):
    """Ray's head, or the node that the driver runs on, is gone; no search goes on without."""


class ActorOutOfMemoryError(OutOfMemoryError, RayActorError):  # type: ignore[misc]
    """In place of Ray's own: Tune 2.60 knows RayActorErrors alone, and ends the whole experiment for any other."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, error_msg=message)
        self.message = message


class Cluster:
    """What the nodes have, as a search needs it; whether they are still there, and a folder for Tune."""

    def __init__(
        self, search: SearchConfig, *, is_alive: Callable[[], bool] = lambda: True, scratch: str = tempfile.gettempdir()
    ) -> None:
        self.is_alive, self.scratch = is_alive, scratch
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


class Head:
    """Ray's head and the driver's own node, as long as their ports answer. To be made while they do."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        (own,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._addresses = [(host, int(port)), (own["NodeManagerAddress"], own["NodeManagerPort"])]

    def is_alive(self) -> bool:
        """A process that was killed refuses at once; a machine that is gone, after two seconds."""
        for address in self._addresses:
            try:
                socket.create_connection(address, timeout=2).close()
            except OSError:
                return False
        return True

    @contextmanager
    def watched(self, when_gone: Callable[[], None]) -> Iterator[None]:
        """when_gone is called in a thread of its own, once the head was missed for a while."""
        over = threading.Event()

        def watch() -> None:
            missed = 0
            while missed < _MISSED and not over.wait(1):
                missed = 0 if self.is_alive() else missed + 1
            if not over.is_set():
                when_gone()

        threading.Thread(target=watch, name="head", daemon=True).start()
        try:
            yield
        finally:
            over.set()


_MISSED = 3  # seconds in a row, and connections refused


@contextmanager
def started(search: SearchConfig, head_is_gone: Callable[[], None] = lambda: None) -> Iterator[Cluster]:
    """Ray, shut down again at the end. `local` listens on loopback only. Raises RayError, HeadGoneError.

    head_is_gone: called in another thread; what waits for Ray may wait for ever.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for secret in ("WANDB_API_KEY", "PGPASSWORD"):  # all that Ray starts would inherit them, and has no use for them
        os.environ.pop(secret, None)
    local: dict[str, Any] = {}
    if search.address == "local":
        local = {"include_dashboard": False}
        # Ray's only way to loopback, meant for laptops. Its processes read it at their start, `import ray` has read it.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    ray._private.serialization.OutOfMemoryError = ActorOutOfMemoryError
    # It prints pages of Ray's log on stdout for each process that dies; the listeners tell it in a line.
    ray._private.worker.listen_error_messages = lambda worker, threads_stopped: None
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # as do our attempts that ended with an error
    reaper = Reaper()
    with reaper.marking():
        try:
            ray.init(address=search.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RayError(f"address={search.address}: Ray does not start there ({error})") from error
        head = Head()
        if local:
            reaper.removes(ray._private.worker._global_node.get_session_dir_path())
        scratch = tempfile.mkdtemp(prefix="pix2pix-search-")  # Tune must write somewhere; nothing reads it
        reaper.removes(scratch)
        try:
            with head.watched(head_is_gone):
                yield Cluster(search, is_alive=head.is_alive, scratch=scratch)
        except Exception as error:
            if not head.is_alive():
                raise HeadGoneError("Ray's head is gone") from error
            raise
        finally:
            if head.is_alive():  # else the shutdown would end this process
                ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)
