"""Ray: started on this machine or joined; what its nodes have room for."""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.job_config import JobConfig
from ray.tune.execution import class_cache

from hpo import environment
from hpo.cluster.cluster_state import ClusterMonitor, read_autoscaler_limits, trials_that_fit
from hpo.cluster.trial_slots import NO_AUTOSCALER, Cluster, RayStartError, no_room
from hpo.policy.search_config import SearchConfig
from hpo.tune.process_reaper import Reaper
from model.common.errors import ConfigError, MachineError
from model.common.files import DISK_FULL_ERRNOS

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


_AWS_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}


class RayHalfStartedError(KeyboardInterrupt):
    """Interrupted while Ray starts, which can then only be left: Python's orderly end crashes in it."""


class HeadGoneError(MachineError):
    """Ray's head, or the node that the driver runs on, is gone; no search goes on without."""


class ActorOutOfMemoryError(OutOfMemoryError, RayActorError):  # type: ignore[misc]
    """In place of Ray's own: Tune 2.60 knows RayActorErrors alone, and ends the whole experiment for any other."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, error_msg=message)
        self.message = message


class _Job(JobConfig):  # type: ignore[misc]
    """Its workers find what this process finds. Ray itself would put the driver's current folder first on their path,
    where a user's model.py or torch.py would be taken for ours."""

    def _serialize(self) -> str:
        self._py_driver_sys_path = environment.worker_path()
        serialized: str = super()._serialize()
        return serialized


def check_address(search: SearchConfig, *, is_new: bool) -> None:
    """What can be known before Ray starts: whether a trial has room on this machine, or whether a cluster answers.

    Raises ConfigError; RayError for the cluster of a search that has begun there, and where Ray has no address space:
    it itself waits for minutes, or for ever.
    """
    if search.address == "local":
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if 0 <= limit < _ADDRESS_SPACE:
            raise RayStartError(
                f"`ulimit -v` lets a process map {limit / 1e9:.1f} GB, and each of Ray's maps "
                f"{_ADDRESS_SPACE / 1e9:.0f} and more, of which it uses a tenth: `ulimit -v unlimited`"
            )
        cpus, gpus = search.cpus_per_trial, search.gpus_per_trial or 0
        own = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
        if not trials_that_fit(own, cpus, gpus):
            raise no_room(cpus, gpus, [own])
        return
    try:
        host, _, port = canonicalize_bootstrap_address_or_die(search.address).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        told = f"address={search.address}: no Ray cluster answers there ({error})"
        if is_new:
            raise ConfigError(f"{told}; leave --address out to start Ray on this machine") from error
        raise RayStartError(told) from error


class Head:
    """Ray's head and the driver's own node, as long as their ports answer. To be made while they do."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        (own,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self.is_here = own["NodeManagerAddress"] == host
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


def _scratch() -> str:
    """A folder of this user's alone, for Tune, which must write somewhere and which nobody reads, and for a Ray of our
    own: its sockets let in whoever can reach them, and it opens its own folders, /tmp/ray, to all."""
    made = tempfile.mkdtemp(prefix="hpo-")
    if len(made) > _LONGEST_SCRATCH:
        os.rmdir(made)
        made = tempfile.mkdtemp(prefix="hpo-", dir="/tmp")
    return made


_OF_RAY = ".ray"  # no search, and so no folder of Tune's, is called that
_LONGEST_SCRATCH = 35  # the path of a socket has 107 bytes at most, of which Ray's own names take 72
_ADDRESS_SPACE = 11e9  # bytes; a trial's process maps 10.7e9, with 3e9 Ray 2.60's start never returns
_ANSWER_SECONDS = 5.0  # of a cluster's head, to a connection
_WORKER_SECONDS = 300.0  # for the first one, after `ray up`
_TOLD_LETTERS = 300  # of Ray's own explanation
_MISSED = 3  # seconds in a row, and connections refused


def _start(options: Mapping[str, Any], reaper: Reaper) -> Head:
    """Ray, tried twice: on a busy machine its node may take longer than the half minute that it grants itself. Whatever
    it raises then is told in a sentence: it has a dozen ways not to start, of which most are a bare Exception.

    Raises RayError; RayHalfStartedError; OSError where the disk is full.
    """
    for is_last in (False, True):
        try:
            # A closed terminal is told to all that run in it; Ray's processes are to end after the search, as with
            # Ctrl-C, and keep this mask.
            with environment.for_workers(), _blocked(signal.SIGHUP):
                ray.init(**options, job_config=_Job())
            return Head()
        except KeyboardInterrupt as error:
            raise RayHalfStartedError from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise
            if is_last:
                raise RayStartError(_not_started(options["address"], error)) from error
            with suppress(Exception):  # what has half started
                ray.shutdown()
            reaper.ends_all()
    raise AssertionError  # the last try gives or raises


def _not_started(address: str, error: Exception) -> str:
    told = " ".join(str(error).split()) or "without a word"
    first = told.split(". ")[0][:_TOLD_LETTERS]
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


@contextmanager
def started(
    search: SearchConfig,
    head_is_gone: Callable[[], None] = lambda: None,
) -> Iterator[Cluster]:
    """Ray, shut down again at the end. `local` listens on loopback only. Raises RayError, HeadGoneError,
    RayHalfStartedError, OSError.

    head_is_gone: called in another thread; what waits for Ray may wait for ever.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for secret in ("WANDB_API_KEY", "PGPASSWORD"):  # all that Ray starts would inherit them, and has no use for them
        os.environ.pop(secret, None)
    scratch = _scratch()
    local: dict[str, Any] = {}
    if search.address == "local":
        local = {"include_dashboard": False, "_temp_dir": f"{scratch}/{_OF_RAY}"}
        # Its ports let in who has the token, of all users of this machine. Ray's own lies in ~/.ray, for all to read.
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray's only way to loopback, meant for laptops. Its processes read it at their start, `import ray` has read it.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    # Tune would write them into the trials' job specs, and so into Ray's logs on every node. Nodes have their own.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_AWS_KEYS)
    ray._private.serialization.OutOfMemoryError = ActorOutOfMemoryError
    # It prints pages of Ray's log on stdout for each process that dies; the listeners tell it in a line.
    ray._private.worker.listen_error_messages = lambda worker, threads_stopped: None
    # This process has handlers of its own; Ray's would end it, that of its C++ part by an abort.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # as do our attempts that ended with an error
    reaper = Reaper()
    reaper.delete_at_exit(scratch)
    with reaper.tagging_children():
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        head = _start({"address": search.address, **common, **local}, reaper)
        try:
            with head.watched(head_is_gone):
                monitor = ClusterMonitor()
                limits = read_autoscaler_limits() if not local and head.is_here else NO_AUTOSCALER
                monitor.start()
                try:
                    if limits.expected_workers:
                        monitor.wait_for_worker(_WORKER_SECONDS)
                    yield Cluster(search, monitor, limits, is_alive=head.is_alive, scratch=scratch)
                finally:
                    monitor.stop()
        except Exception as error:
            if not head.is_alive():
                raise HeadGoneError("Ray's head is gone") from error
            raise
        finally:
            if head.is_alive():  # else the shutdown would end this process
                ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)
