"""A session with Ray: started on this machine or joined, and ended with the search."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import ray

from hpo import environment
from hpo.cluster import ray_internals
from hpo.cluster.cluster_state import ClusterMonitor, read_autoscaler_limits, trials_that_fit
from hpo.cluster.trial_slots import NO_AUTOSCALER, Cluster, RayStartError, no_room
from hpo.policy.search_config import SearchConfig
from hpo.tune import ray_patches
from hpo.tune.process_reaper import Reaper
from model.common.errors import ConfigError, MachineError
from model.common.files import DISK_FULL_ERRNOS

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would call home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray 2.60 warns without it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they take two thirds of a report's 3.5 ms; the record has all of it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end an interrupted search with exit code 0
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nothing reads Tune's snapshots
    "TUNE_WARN_THRESHOLD_S": "5",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the listeners print them
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Tune retries by itself and does not report the failure
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait made a busy machine 3 to 6 times slower
}
_SECRETS = ("WANDB_API_KEY", "PGPASSWORD")  # Ray's processes would inherit them, and have no use for them
_RAY_FOLDER = ".ray"  # no search has that name, and so no folder of Tune
_MAX_SCRATCH_PATH = 35  # a socket's path has at most 107 bytes, of which Ray's own names take 72
_ADDRESS_SPACE = 11e9  # bytes; a trial's process maps 10.7e9, and with 3e9 the start of Ray 2.60 never returns
_ANSWER_SECONDS = 5.0  # for a connection to a cluster's head
_PROBE_SECONDS = 2.0  # for a connection to a head that has answered before
_MAX_MISSED = 3  # refused connections in a row, one per second, after which the head is gone
_WORKER_SECONDS = 300.0  # for the first worker after `ray up`
_MAX_REASON = 300  # letters of Ray's own explanation


class RayHalfStartedError(KeyboardInterrupt):
    """Interrupted while Ray starts. The process must exit at once: Python's orderly shutdown crashes in Ray."""


class HeadGoneError(MachineError):
    """Ray's head, or the driver's own node, is gone. No search can continue without it."""


def check_address(search: SearchConfig, *, is_new: bool) -> None:
    """Check before Ray starts that a trial fits on this machine, or that the cluster answers.

    Raises ConfigError if no trial fits, or no cluster answers a new search; RayStartError if the cluster of a search
    that has begun does not answer, or the address space is too small for Ray, which would wait for ever.
    """
    if search.address == "local":
        _check_this_machine(search)
        return
    try:
        socket.create_connection(ray_internals.head_address(search.address), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        message = f"address={search.address}: no Ray cluster answers ({error})"
        if is_new:
            raise ConfigError(f"{message}; leave --address out to start Ray on this machine") from error
        raise RayStartError(message) from error


def _check_this_machine(search: SearchConfig) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < _ADDRESS_SPACE:
        raise RayStartError(
            f"`ulimit -v` lets a process map {limit / 1e9:.1f} GB, and each of Ray's processes maps "
            f"{_ADDRESS_SPACE / 1e9:.0f} GB and more, of which it uses a tenth: `ulimit -v unlimited`"
        )
    cpus, gpus = search.cpus_per_trial, search.gpus_per_trial or 0
    resources = ray_internals.own_resources()
    if not trials_that_fit(resources, cpus, gpus):
        raise no_room(cpus, gpus, [resources])


class RaySession:
    """Ray, from the start to the shutdown; a context manager that gives the cluster. `local` listens on loopback only.

    Two daemon threads run meanwhile: the cluster monitor and the head watchdog.
    """

    def __init__(self, search: SearchConfig, on_head_gone: Callable[[], None] = lambda: None) -> None:
        """on_head_gone: called in the watchdog's thread, since whatever waits for Ray may wait for ever."""
        self._search, self._on_head_gone = search, on_head_gone
        self._head: Head | None = None
        self._monitor: ClusterMonitor | None = None
        self._was_alive = True  # the head, at the end

    def __enter__(self) -> Cluster:
        """Raises RayStartError, RayHalfStartedError, HeadGoneError; ConfigError if no trial fits on the cluster;
        OSError where the disk is full."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for secret in _SECRETS:
            os.environ.pop(secret, None)
        ray_patches.apply_patches()
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors of trials are ours to print
        self._scratch = _create_scratch()
        self._reaper = Reaper()
        self._reaper.delete_at_exit(self._scratch)
        self._reaper.tag_children()
        try:
            return self._start()
        except BaseException as error:
            self._stop()
            self._raise_if_head_gone(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        self._raise_if_head_gone(error)

    def _start(self) -> Cluster:
        search, is_local = self._search, self._search.address == "local"
        options = {"address": search.address, "log_to_driver": False, "logging_level": logging.ERROR}
        self._head = _start_ray(options | (_local_options(self._scratch) if is_local else {}), self._reaper)
        self._head.watch(self._on_head_gone)
        self._monitor = ClusterMonitor()
        self._monitor.start()
        limits = read_autoscaler_limits() if not is_local and self._head.is_here else NO_AUTOSCALER
        if limits.expected_workers:
            self._monitor.wait_for_worker(_WORKER_SECONDS)
        return Cluster(search, self._monitor, limits, is_alive=self._head.is_alive, scratch=self._scratch)

    def _stop(self) -> None:
        if self._monitor is not None:
            self._monitor.stop()
        if self._head is not None:
            self._head.stopping.set()
            self._was_alive = self._head.is_alive()
            if self._was_alive:  # without a head, the shutdown would end this process
                ray.shutdown()
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._reaper.untag_children()

    def _raise_if_head_gone(self, error: BaseException | None) -> None:
        if isinstance(error, Exception) and self._head is not None and not self._was_alive:
            raise HeadGoneError("Ray's head is gone") from error


def _local_options(scratch: str) -> dict[str, Any]:
    """Options of a Ray on this machine alone, whose ports admit only this user."""
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # Ray's own token lies in ~/.ray, readable by all users
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray_patches.listen_on_loopback()
    return {"include_dashboard": False, "_temp_dir": f"{scratch}/{_RAY_FOLDER}"}


def _create_scratch() -> str:
    """A folder that only this user can enter, for Tune's files, which nobody reads, and for a local Ray: its sockets
    admit whoever can reach them, and it opens its own folder, /tmp/ray, to all."""
    folder = tempfile.mkdtemp(prefix="hpo-")
    if len(folder) > _MAX_SCRATCH_PATH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="hpo-", dir="/tmp")
    return folder


def _start_ray(options: dict[str, Any], reaper: Reaper) -> Head:
    """Start or join Ray, with a second try: on a busy machine its node may take longer than Ray's 30 seconds.

    Raises RayStartError in place of whatever Ray raises, most of which are bare Exceptions; RayHalfStartedError;
    OSError where the disk is full.
    """
    for is_last in (False, True):
        try:
            # A closed terminal sends SIGHUP to all its processes. Ray's inherit this mask: they end after the search.
            with environment.clean_python_path(), _blocked(signal.SIGHUP):
                ray.init(**options, job_config=ray_patches.WorkerPathJob())
            return Head()
        except KeyboardInterrupt as error:
            raise RayHalfStartedError from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise
            if is_last:
                raise RayStartError(_start_failure(options["address"], error)) from error
            with suppress(Exception):  # it has half started
                ray.shutdown()
            reaper.kill_children()
    raise AssertionError  # the last try returns or raises


def _start_failure(address: str, error: Exception) -> str:
    first = (" ".join(str(error).split()) or "no message").split(". ")[0][:_MAX_REASON]
    return (
        f"address={address}: Ray does not start, tried twice ({type(error).__name__}: {first}). What may help: other "
        "work on this machine to end, more memory (`ulimit -v`, `free`) or processes (`ulimit -u`), another TMPDIR"
    )


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Head:
    """Ray's head and the driver's own node: alive as long as their ports answer. To be created while they do."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        (own,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self.is_here = own["NodeManagerAddress"] == host
        self._addresses = [(host, int(port)), (own["NodeManagerAddress"], own["NodeManagerPort"])]
        self.stopping = threading.Event()  # ends the thread that `watch` starts

    def is_alive(self) -> bool:
        """A process that was killed refuses at once; a machine that is gone, after two seconds."""
        for address in self._addresses:
            try:
                socket.create_connection(address, timeout=_PROBE_SECONDS).close()
            except OSError:
                return False
        return True

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Start a thread that calls on_gone once the head has not answered several times in a row."""
        threading.Thread(target=self._watch, args=(on_gone,), name="head watchdog", daemon=True).start()

    def _watch(self, on_gone: Callable[[], None]) -> None:
        missed = 0
        while missed < _MAX_MISSED and not self.stopping.wait(1):
            missed = 0 if self.is_alive() else missed + 1
        if not self.stopping.is_set():
            on_gone()
