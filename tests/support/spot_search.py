"""A real search on a cluster whose nodes are taken, and one whose money is soon up: python spot_search.py FOLDER

Prints what it saw as JSON.

The nodes are raylets on this machine, with GPUs that exist for Ray alone; the notice comes from a stand-in for EC2's
metadata service, through the poller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import metadata_server
import ray
from grpc import RpcError
from ray.cluster_utils import Cluster
from rich.console import Console

import search_spaces
from hpo.cluster import preemption_agent, trial_slots
from hpo.cluster.budget import seconds_after_trials
from hpo.cluster.cluster_state import MARKET, PRICE, SPOT
from hpo.policy.search_config import SearchConfig
from hpo.run import trials
from hpo.run.context import SearchContext, open_budget
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.tune import ray_session
from hpo.tune.trainable import Pix2PixTrial
from hpo.views.progress import Progress
from model.data.data_config import DataConfig
from model.data.image_sets import Images
from model.training_run import TrainingRun

NOTICED, OTHER, LOST = range(3)  # trials
SEARCH = {
    "trials": 3,
    "epochs": 3,
    "images_per_epoch": 64,
    "pruner": "none",
    "set": {"width": 2, "dropout": 0.0, "batch_size": 16},
    "wandb": "disabled",
    "gpus_per_trial": 1.0,
    "max_concurrent": 2,
    "allow_cpu": True,
}
RICH, POOR = "rich", "poor"  # the searches
MONEY_SECONDS = 15.0  # that the second one may run
NODES = "nodes"  # file in the trial's folder: where each epoch was begun
OTHER_SECONDS = 16.0  # that a place is taken: so long the moved trial waits for it


class TakenTrial(Pix2PixTrial):  # type: ignore[misc]
    """Tells where it is, and lets its second epoch last until its node is drained."""

    def _begin(self) -> TrainingRun:
        run, folder = super()._begin(), Path(self.config["folder"])
        train = run.run_epoch

        def run_epoch() -> Any:
            number, own = self.config["number"], ray.get_runtime_context().get_node_id()
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / NODES).open("a") as begun:
                begun.write(f"{len(run.reports) + 1} {own}\n")
            is_first = (folder / NODES).read_text().split().count("2") == 1
            if len(run.reports) == 1 and (self.config["folder"].count(POOR) or (is_first and number == LOST)):
                time.sleep(3600)
            if len(run.reports) == 1 and is_first and number == NOTICED:
                time.sleep(6)  # the notice comes, and the driver sees the drain
            if len(run.reports) == 1 and number == OTHER:
                time.sleep(OTHER_SECONDS)
            return train()

        run.run_epoch = run_epoch  # type: ignore[method-assign]
        return run


def second_epoch(folder: Path) -> str:
    """The node where it is begun first."""
    while True:
        lines = (folder / NODES).read_text().splitlines() if (folder / NODES).exists() else []
        if len(lines) >= 2:
            return lines[1].split()[1]
        time.sleep(0.1)


def take_nodes(cluster: Cluster, record: Record, ec2: metadata_server.Metadata) -> None:
    """One with notice. Later another, which is drained and gone before its trial reports; a new one comes first."""
    first = second_epoch(record.trial_folder(NOTICED))
    ec2.take(time.time() + 110)
    own = [raylet for raylet in preemption_agent.raylets(cluster.address) if raylet.node_id == first]
    preemption_agent.watch(own, preemption_agent.Metadata(ec2.url), wait=lambda seconds: time.sleep(0.2))
    second = second_epoch(record.trial_folder(LOST))
    cluster.add_node(num_cpus=1, num_gpus=1, labels={MARKET: SPOT, PRICE: "0.8"})
    (raylet,) = (raylet for raylet in preemption_agent.raylets(cluster.address) if raylet.node_id == second)
    raylet.drain(time.time() + 60)
    time.sleep(4)
    (node,) = (node for node in cluster.list_all_nodes() if node.node_id == second)
    cluster.remove_node(node, allow_graceful=False)
    threading.Event().wait()  # the new node ends with the thread that started it


def stored_bytes() -> dict[str, int]:
    """In the object store of each node that answers."""
    found = {}
    for node in ray.nodes():
        with suppress(RpcError):
            stats = ray._private.internal_api.node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
            )
            found[node["NodeID"]] = stats.store_stats.object_store_bytes_used
    return found


def run(record: Record, cluster: trial_slots.Cluster, images: Images) -> dict[str, Any]:
    """The trials alone."""
    budget = open_budget(record, cluster)
    assert budget.usd is not None
    console = Console(stderr=True)
    progress = Progress(record.search, record.name, cluster.slots, console, folder=record.folder, budget=budget)
    context = SearchContext(
        record=record,
        replicator=StorageReplicator(record, None, lambda _: None),
        images_ref=ray.put(images),
        cluster=cluster,
        console=console,
        progress=progress,
        budget=budget,
    )
    began = time.monotonic()
    trials.run_trials(context, search_spaces.load("losses_and_rates"))
    seconds = time.monotonic() - began
    context.save_cost()
    progress.close()
    return {"usd": budget.usd, "limit": record.search.max_cost, "seconds": seconds}


def main(folder: Path) -> None:
    trials.Pix2PixTrial = TakenTrial  # type: ignore[misc]
    ray._private.utils.set_sigterm_handler = lambda handler: None  # a node is added in another thread
    head = {"num_cpus": 0, "include_dashboard": False, "labels": {PRICE: "0.1"}}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        nodes.add_node(num_cpus=1, num_gpus=1, labels={MARKET: SPOT, PRICE: "0.8"})
    asked = SearchConfig(**SEARCH, address=nodes.address, max_cost=100.0)
    record, images, seen = Record.create(folder, RICH, asked), DataConfig().load(), {}
    with metadata_server.serving() as ec2, ray_session.RaySession(asked) as cluster:
        threading.Thread(target=take_nodes, args=(nodes, record, ec2), daemon=True).start()
        seen[RICH] = run(record, cluster, images)
        seen["stored"] = stored_bytes()
        seen["images"] = sum(array.nbytes for array in (images.train, images.validation.clean))
        while len(cluster.monitor.snapshot.nodes) != 2:  # head and the new one
            time.sleep(0.2)
        enough = 0.9 / 3600 * (seconds_after_trials(record.trials(), asked) + MONEY_SECONDS)
        poor = Record.create(folder, POOR, replace(asked, max_cost=enough))
        seen[POOR] = run(poor, cluster, images)
    # `python -m hpo.cluster.preemption_agent` itself drains all of the cluster's raylets here, and ends with them.
    with metadata_server.serving() as ec2:
        ec2.take(time.time() + 110)
        environment = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": ec2.url}
        command = [sys.executable, "-m", "hpo.cluster.preemption_agent", nodes.address]
        seen["poller"] = subprocess.run(command, env=environment, timeout=60, check=False).returncode
    print(json.dumps(seen))
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
