"""Every override of a private name of Ray, written for Ray 2.60. tests/hpo/tune/test_ray_patches.py fails where another
version of Ray lacks one of the names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.job_config import JobConfig
from ray.tune.execution import class_cache

from hpo import environment

_AWS_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}


class ActorOutOfMemoryError(OutOfMemoryError, RayActorError):  # type: ignore[misc]
    """Replaces Ray's error, which is no RayActorError: Tune would end the whole experiment for it."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, error_msg=message)
        self.message = message


class WorkerPathJob(JobConfig):  # type: ignore[misc]
    """A job whose workers import the same sources as the driver. Ray would put the driver's current folder first on
    their path, where a user's model.py or torch.py would be imported in place of ours."""

    def _serialize(self) -> str:
        self._py_driver_sys_path = environment.worker_path()
        serialized: str = super()._serialize()
        return serialized


@dataclass(frozen=True, slots=True)
class Patch:
    """An attribute of one of Ray's modules, its replacement, and the reason."""

    module: Any
    name: str
    replacement: Any
    reason: str

    def apply(self) -> None:
        setattr(self.module, self.name, self.replacement)


PATCHES = (
    Patch(
        ray._private.serialization,
        "OutOfMemoryError",
        ActorOutOfMemoryError,
        "Tune takes only RayActorErrors for a trial's failure",
    ),
    Patch(
        ray._private.worker,
        "listen_error_messages",
        lambda worker, threads_stopped: None,
        "it prints pages of Ray's log on stdout for each process that dies; the listeners print a line",
    ),
    Patch(
        ray._private.utils,
        "set_sigterm_handler",
        lambda handler: None,
        "Ray's handler would end the driver, which has handlers of its own",
    ),
    Patch(
        ray._private.ray_constants,
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER",
        True,
        "the handler of Ray's C++ part would abort the driver on SIGTERM",
    ),
    Patch(
        class_cache,
        "ENV_VARS_TO_PROPAGATE",
        class_cache.ENV_VARS_TO_PROPAGATE - _AWS_KEYS,
        "Tune would write the keys into the trials' job specs, and so into Ray's logs on every node",
    ),
)
# For a Ray on this machine alone. It is Ray's only way to loopback, and is meant for laptops.
LOOPBACK = Patch(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False, "a local Ray must listen on loopback only")


def apply_patches() -> None:
    """Apply all overrides that every driver needs."""
    for patch in PATCHES:
        patch.apply()


def listen_on_loopback() -> None:
    """Let a Ray that is started by this process listen on loopback only."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's processes read it; `import ray` has read it
    LOOPBACK.apply()
