"""How many trials a cluster has room for, now and once the autoscaler has added what it may; how Ray does not start."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from plain_search import command
from ray.core.generated import common_pb2 as protobuf

import hpo
from hpo import environment
from hpo.cli.commands import main
from hpo.cluster.cluster_state import AutoscalerLimits, ClusterMonitor, ClusterSnapshot, Node, limits_from_config
from hpo.cluster.trial_slots import Cluster, RayStartError
from hpo.policy.search_config import SearchConfig
from hpo.store.record import Record
from hpo.tune.ray_patches import WorkerPathJob
from hpo.tune.ray_session import RayHalfStartedError, RaySession
from model.common.errors import ConfigError

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
GPU_NODE = {"CPU": 4.0, "GPU": 1.0}
NO_AUTOSCALER = AutoscalerLimits()
FROM_ZERO = limits_from_config(yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text()))


def cluster(search: SearchConfig, *resources: dict[str, float], limits: AutoscalerLimits = NO_AUTOSCALER) -> Cluster:
    snapshot = ClusterSnapshot(nodes=tuple(Node(id=str(i), resources=has) for i, has in enumerate(resources)))
    return Cluster(search, ClusterMonitor(lambda: snapshot), limits)


def types(**of: dict[str, Any]) -> AutoscalerLimits:
    return limits_from_config({"max_workers": 8, "head_node_type": "head", "available_node_types": {"head": {}, **of}})


def test_fractions_of_a_gpu_pack_as_many_trials_as_the_cpus_allow():
    assert cluster(SearchConfig(gpus_per_trial=0.25), GPU_NODE, GPU_NODE).slots == 8
    assert cluster(SearchConfig(gpus_per_trial=0.1), GPU_NODE, GPU_NODE).slots == 8
    assert cluster(SearchConfig(gpus_per_trial=0.1, cpus_per_trial=0.4), GPU_NODE, GPU_NODE).slots == 20


def test_a_trial_gets_a_gpu_where_there_is_one():
    found = cluster(SearchConfig(), HEAD, GPU_NODE)
    assert (found.gpus_per_trial, found.slots) == (1.0, 1)
    assert found.exclusive_node_options == {"num_cpus": 4.0, "num_gpus": 1.0}


def test_never_more_slots_than_trials_or_than_asked_for():
    assert cluster(SearchConfig(trials=5), {"CPU": 64.0}).slots == 5
    assert cluster(SearchConfig(max_concurrent=3), {"CPU": 64.0}).slots == 3


def test_a_trial_that_fits_nowhere_is_refused_with_what_the_nodes_have():
    with pytest.raises(ConfigError, match=r"1 GPUs; no node has them\. The largest node has 2 CPUs and 0 GPUs"):
        cluster(SearchConfig(gpus_per_trial=1), {"CPU": 2.0})
    with pytest.raises(ConfigError, match=r"2 GPUs; no node has them, and the autoscaler can add none .* and 1 GPUs"):
        cluster(SearchConfig(gpus_per_trial=2), HEAD, limits=FROM_ZERO)


def test_a_cluster_that_grows_elsewhere_may_have_no_worker_yet():
    found = cluster(SearchConfig(address="auto", gpus_per_trial=1, max_concurrent=8), HEAD)
    assert found.slots == 8
    assert found.exclusive_node_options == {"num_cpus": 1.0, "num_gpus": 1.0}


def test_the_cluster_files_own_workers_are_counted_from_zero():
    found = cluster(SearchConfig(trials=100, address="auto"), HEAD, limits=FROM_ZERO)
    assert (found.gpus_per_trial, found.slots, found.slots_now) == (1.0, 8, 0)
    assert found.exclusive_node_options == {"num_cpus": 4.0, "num_gpus": 1.0}
    assert cluster(SearchConfig(trials=100, gpus_per_trial=0.25, address="auto"), HEAD, limits=FROM_ZERO).slots == 32


def test_of_several_types_the_roomiest_are_counted_up_to_the_limit_of_all():
    limits = types(
        small={"resources": {"CPU": 4, "GPU": 1}},
        large={"resources": {"CPU": 16, "GPU": 4}, "max_workers": 2},
        no_gpu={"resources": {"CPU": 64}},
    )
    assert limits.max_trials(cpus=1, gpus=1) == 2 * 4 + 6 * 1
    assert limits.max_trials(cpus=1, gpus=0) == 8 * 64
    # Alone on a node: the smallest that a trial fits on; a large one might not be to be had. One that is there is.
    search = SearchConfig(trials=100, gpus_per_trial=1)
    assert cluster(search, HEAD, limits=limits).exclusive_node_options["num_cpus"] == 4
    assert cluster(search, HEAD, {"CPU": 16.0, "GPU": 4.0}, limits=limits).exclusive_node_options["num_cpus"] == 16


def test_workers_at_hand_that_are_still_set_up_are_taken_to_be_like_those_that_are_there():
    config = {"provider": {"type": "local"}, "max_workers": 3, "available_node_types": {"made.up": {"resources": {}}}}
    limits = limits_from_config(config)
    assert cluster(SearchConfig(trials=100), HEAD, GPU_NODE, limits=limits).slots == 3
    assert (limits.node_types, limits.can_fall_back) == ((), False)


def test_a_head_with_cpus_is_told_of_where_others_take_the_trials():
    head = {**HEAD, "CPU": 8.0}
    assert cluster(SearchConfig(), head).head_cpus == 0  # one machine
    assert cluster(SearchConfig(), head, GPU_NODE).head_cpus == 8
    assert cluster(SearchConfig(), head, limits=FROM_ZERO).head_cpus == 8
    assert cluster(SearchConfig(), HEAD, GPU_NODE, limits=FROM_ZERO).head_cpus == 0


# --- where Ray does not start ---------------------------------------------------------------------------------------

# What ray.init of 2.60 raises: worker.py, node.py and services.py of ray/_private, the system below, the C++ part.
NOT_STARTED = [
    Exception("The current node timed out during startup. This could happen because some of the raylet failed"),  # node
    Exception("Head node session dir not found in NodeInfo, either GCS or head node's raylet may not have started"),
    ConnectionError("Could not find any running Ray instance."),  # services
    TimeoutError("Timed out while waiting for node to startup. Did not find socket name"),  # services
    RuntimeError("Failed to start GCS server"),  # services
    ValueError("Failed to merge the Job's runtime env"),  # worker
    TypeError("The type of given job id must be JobID."),  # worker
    ImportError("cannot import name"),  # services
    FileExistsError(errno.EEXIST, "No usable temporary filename found"),  # node
    OSError(errno.ENOMEM, "Cannot allocate memory"),  # a fork under `ulimit -v`
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),  # a fork under `ulimit -u`
    PermissionError(errno.EACCES, "Permission denied", "/tmp/x"),
    MemoryError(),
    KeyError("node"),
    AssertionError(),
    ray.exceptions.RpcError("Deadline Exceeded", rpc_code=4),
    ray.exceptions.RaySystemError("System error: Failed to register worker to Raylet"),
    ray.exceptions.GetTimeoutError("timed out"),
    ray.exceptions.AuthenticationError("invalid token"),
]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[object]]:
    """Ray's start does, with these, one after another; gives what was asked of it."""

    def fail(*errors: BaseException) -> list[object]:
        asked: list[object] = []

        def init(**options: object) -> None:
            asked.append(options)
            raise errors[min(len(asked), len(errors)) - 1]

        monkeypatch.setattr(ray, "init", init)
        return asked

    return fail


@pytest.mark.parametrize("error", NOT_STARTED, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_whatever_rays_start_raises_it_is_tried_twice_and_told_in_a_sentence(fails, error):
    asked = fails(error)
    with pytest.raises(RayStartError) as told, RaySession(SearchConfig()):
        pass
    assert len(asked) == 2
    assert f"address=local: Ray does not start, tried twice ({type(error).__name__}" in str(told.value)
    assert "What may help" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_disk_that_is_full_while_ray_starts_is_told_as_one(fails):
    asked = fails(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"))
    with pytest.raises(OSError, match="No space left"), RaySession(SearchConfig()):
        pass
    assert len(asked) == 1


def test_ctrl_c_while_ray_starts_is_not_tried_again(fails):
    asked = fails(Exception("timed out"), KeyboardInterrupt())
    with pytest.raises(RayHalfStartedError), RaySession(SearchConfig()):
        pass
    assert len(asked) == 2


def test_what_a_first_try_left_running_is_ended_before_the_second(monkeypatch):
    begun: list[subprocess.Popen[bytes]] = []

    def init(**_: object) -> None:
        assert all(process.wait(10) == -signal.SIGKILL for process in begun)
        begun.append(subprocess.Popen(["sleep", "300"]))
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    try:
        with pytest.raises(RayStartError), RaySession(SearchConfig()):
            pass
        assert len(begun) == 2
    finally:
        for process in begun:
            process.kill()


def test_a_command_whose_ray_does_not_start_ends_with_4_and_can_be_continued(fails, pictures, tmp_path, capsys):
    fails(Exception("The current node timed out during startup. This could happen because of x."))
    assert main(command(pictures, tmp_path / "runs")) == 4
    said = capsys.readouterr().err
    assert "Ray does not start, tried twice" in said
    assert "Traceback" not in said
    assert Record(tmp_path / "runs", "first").trials() == []


def test_an_address_space_in_which_rays_start_would_hang_is_told_before(pictures, tmp_path):
    """With 3 GB its gcs_server dies at once, and its client waits for ever; measured on 2 cores."""
    hpo = [sys.executable, "-m", "hpo.cli", *command(pictures, tmp_path / "runs")]
    shell = ["bash", "-c", 'ulimit -v 8000000; exec "$@"', "bash"]
    root = Path(__file__).parents[3]
    done = subprocess.run([*shell, *hpo], cwd=root, check=False, capture_output=True, text=True)
    assert (done.returncode, "`ulimit -v` lets a process map 8.2 GB" in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "runs").exists()


# --- what its workers find ------------------------------------------------------------------------------------------


def test_workers_have_nothing_of_the_current_folder_on_their_path(monkeypatch):
    """Ray adds it to what the job says, just before it is sent."""
    job = WorkerPathJob()
    job._py_driver_sys_path.append(os.getcwd())
    sent = protobuf.JobConfig.FromString(job._serialize())
    assert list(sent.py_driver_sys_path) == [str(Path(hpo.__file__).parents[1])]
    monkeypatch.setattr(environment, "ROOT", next(entry for entry in sys.path if entry.endswith("site-packages")))
    assert not protobuf.JobConfig.FromString(WorkerPathJob()._serialize()).py_driver_sys_path  # installed: found anyway
