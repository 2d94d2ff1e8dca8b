"""Overrides of Ray's private names: another version of Ray must have them still."""

from __future__ import annotations

import pytest
import ray
from ray.job_config import JobConfig
from ray.tune.execution import class_cache

from hpo.tune.ray_patches import LOOPBACK, PATCHES, ActorOutOfMemoryError, Patch, apply_patches


@pytest.mark.parametrize("patch", [*PATCHES, LOOPBACK], ids=lambda patch: patch.name)
def test_each_private_name_that_is_overridden_is_one_of_this_ray(patch: Patch):
    assert hasattr(patch.module, patch.name), (
        f"Ray {ray.__version__} has no {patch.module.__name__}.{patch.name}. The override was written for 2.60, since "
        f"{patch.reason}. Find out what this version does, and adapt hpo/tune/ray_patches.py"
    )


def test_a_job_config_still_has_what_decides_about_the_workers_path():
    for name in ("_py_driver_sys_path", "_serialize"):
        assert hasattr(JobConfig(), name), f"Ray {ray.__version__} has no {name}: adapt ray_patches.WorkerPathJob"


def test_once_applied_no_keys_are_propagated_and_out_of_memory_is_an_actors_error(monkeypatch):
    for patch in PATCHES:
        monkeypatch.setattr(patch.module, patch.name, getattr(patch.module, patch.name))  # put back afterwards
    apply_patches()
    assert not any(name.startswith("AWS_") and "KEY" in name for name in class_cache.ENV_VARS_TO_PROPAGATE)
    assert isinstance(ray._private.serialization.OutOfMemoryError("x"), ray.exceptions.RayActorError)
    assert ActorOutOfMemoryError("low on memory").message == "low on memory"
