"""How many trials a cluster has room for; Ray's list of nodes is the seam."""

from __future__ import annotations

import pytest

from hpo.config import SearchConfig
from hpo.ray_runtime import Cluster, RayError, ray

HEAD = {"CPU": 0.0}
GPU_NODE = {"CPU": 4.0, "GPU": 1.0}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in found])
    return found


def test_fractions_of_a_gpu_pack_as_many_trials_as_the_cpus_allow(nodes):
    nodes += [GPU_NODE, GPU_NODE]
    assert Cluster(SearchConfig(gpus_per_trial=0.25)).slots == 8
    assert Cluster(SearchConfig(gpus_per_trial=0.1)).slots == 8
    assert Cluster(SearchConfig(gpus_per_trial=0.1, cpus_per_trial=0.4)).slots == 20


def test_a_trial_gets_a_gpu_where_there_is_one(nodes):
    nodes += [HEAD, GPU_NODE]
    cluster = Cluster(SearchConfig())
    assert (cluster.gpus_per_trial, cluster.slots) == (1.0, 1)
    assert cluster.whole_node == {"num_cpus": 4.0, "num_gpus": 1.0}


def test_never_more_slots_than_trials_or_than_asked_for(nodes):
    nodes += [{"CPU": 64.0}]
    assert Cluster(SearchConfig(trials=5)).slots == 5
    assert Cluster(SearchConfig(concurrent=3)).slots == 3


def test_a_trial_that_fits_nowhere_is_refused_with_what_the_nodes_have(nodes):
    nodes += [{"CPU": 2.0}]
    with pytest.raises(RayError, match=r"1 GPUs; no node has them\. The largest has 2 CPUs and 0 GPUs"):
        Cluster(SearchConfig(gpus_per_trial=1))


def test_an_autoscaling_cluster_may_have_no_worker_yet(nodes):
    nodes += [HEAD]
    search = SearchConfig(address="auto", gpus_per_trial=1, concurrent=8)
    assert Cluster(search).slots == 8
    assert Cluster(search).whole_node == {"num_cpus": 0.0, "num_gpus": 1.0}
