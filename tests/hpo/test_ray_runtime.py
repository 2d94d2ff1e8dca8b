"""How many trials a cluster has room for, now and once the autoscaler has added what it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.config import SearchConfig
from hpo.nodes import Growth, Lookout, Node, Sight, as_growth
from hpo.ray_runtime import Cluster
from model.config import ConfigError

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
GPU_NODE = {"CPU": 4.0, "GPU": 1.0}
NO_GROWTH = Growth()
FROM_ZERO = as_growth(yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text()))


def cluster(search: SearchConfig, *resources: dict[str, float], growth: Growth = NO_GROWTH) -> Cluster:
    sight = Sight(nodes=tuple(Node(id=str(i), resources=has) for i, has in enumerate(resources)))
    return Cluster(search, Lookout(lambda: sight), growth)


def types(**of: dict[str, Any]) -> Growth:
    return as_growth({"max_workers": 8, "head_node_type": "head", "available_node_types": {"head": {}, **of}})


def test_fractions_of_a_gpu_pack_as_many_trials_as_the_cpus_allow():
    assert cluster(SearchConfig(gpus_per_trial=0.25), GPU_NODE, GPU_NODE).slots == 8
    assert cluster(SearchConfig(gpus_per_trial=0.1), GPU_NODE, GPU_NODE).slots == 8
    assert cluster(SearchConfig(gpus_per_trial=0.1, cpus_per_trial=0.4), GPU_NODE, GPU_NODE).slots == 20


def test_a_trial_gets_a_gpu_where_there_is_one():
    found = cluster(SearchConfig(), HEAD, GPU_NODE)
    assert (found.gpus_per_trial, found.slots) == (1.0, 1)
    assert found.whole_node == {"num_cpus": 4.0, "num_gpus": 1.0}


def test_never_more_slots_than_trials_or_than_asked_for():
    assert cluster(SearchConfig(trials=5), {"CPU": 64.0}).slots == 5
    assert cluster(SearchConfig(concurrent=3), {"CPU": 64.0}).slots == 3


def test_a_trial_that_fits_nowhere_is_refused_with_what_the_nodes_have():
    with pytest.raises(ConfigError, match=r"1 GPUs; no node has them\. The largest has 2 CPUs and 0 GPUs"):
        cluster(SearchConfig(gpus_per_trial=1), {"CPU": 2.0})
    with pytest.raises(ConfigError, match=r"2 GPUs; no node has them, and none can be added that has\. .* and 1 GPUs"):
        cluster(SearchConfig(gpus_per_trial=2), HEAD, growth=FROM_ZERO)


def test_a_cluster_that_grows_elsewhere_may_have_no_worker_yet():
    found = cluster(SearchConfig(address="auto", gpus_per_trial=1, concurrent=8), HEAD)
    assert found.slots == 8
    assert found.whole_node == {"num_cpus": 1.0, "num_gpus": 1.0}


def test_the_cluster_files_own_workers_are_counted_from_zero():
    found = cluster(SearchConfig(trials=100, address="auto"), HEAD, growth=FROM_ZERO)
    assert (found.gpus_per_trial, found.slots, found.fit_now) == (1.0, 8, 0)
    assert found.whole_node == {"num_cpus": 4.0, "num_gpus": 1.0}
    assert cluster(SearchConfig(trials=100, gpus_per_trial=0.25, address="auto"), HEAD, growth=FROM_ZERO).slots == 32


def test_of_several_types_the_roomiest_are_counted_up_to_the_limit_of_all():
    growth = types(
        small={"resources": {"CPU": 4, "GPU": 1}},
        large={"resources": {"CPU": 16, "GPU": 4}, "max_workers": 2},
        no_gpu={"resources": {"CPU": 64}},
    )
    assert growth.fit(cpus=1, gpus=1) == 2 * 4 + 6 * 1
    assert growth.fit(cpus=1, gpus=0) == 8 * 64
    # Alone on a node: the smallest that a trial fits on; a large one might not be to be had. One that is there is.
    search = SearchConfig(trials=100, gpus_per_trial=1)
    assert cluster(search, HEAD, growth=growth).whole_node["num_cpus"] == 4
    assert cluster(search, HEAD, {"CPU": 16.0, "GPU": 4.0}, growth=growth).whole_node["num_cpus"] == 16


def test_workers_at_hand_that_are_still_set_up_are_taken_to_be_like_those_that_are_there():
    config = {"provider": {"type": "local"}, "max_workers": 3, "available_node_types": {"made.up": {"resources": {}}}}
    growth = as_growth(config)
    assert cluster(SearchConfig(trials=100), HEAD, GPU_NODE, growth=growth).slots == 3
    assert (growth.types, growth.falls_back) == ((), False)


def test_a_head_with_cpus_is_told_of_where_others_take_the_trials():
    head = {**HEAD, "CPU": 8.0}
    assert cluster(SearchConfig(), head).head_takes_trials == 0  # one machine
    assert cluster(SearchConfig(), head, GPU_NODE).head_takes_trials == 8
    assert cluster(SearchConfig(), head, growth=FROM_ZERO).head_takes_trials == 8
    assert cluster(SearchConfig(), HEAD, GPU_NODE, growth=FROM_ZERO).head_takes_trials == 0
