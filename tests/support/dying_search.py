"""A real search on a cluster of two nodes, whose trials die in all ways: python dying_search.py FOLDER

Each node says that it has a GPU, and has none.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

import search_spaces
from hpo.cluster.budget import TimeAndCostBudget
from hpo.policy.search_config import SearchConfig
from hpo.run import trials
from hpo.run.context import SearchContext
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.tune import hang_watchdog, ray_session
from hpo.tune.trainable import Pix2PixTrial
from hpo.views.progress import Progress
from model.data.data_config import DataConfig
from model.training_run import TrainingRun

KILLED, KILLED_LATE, HUNG, OUT_OF_MEMORY, DOOMED, NODE_LOST, HEALTHY = range(7)
SEARCH = {
    "trials": 7,
    "epochs": 3,
    "images_per_epoch": 256,
    "pruner": "none",
    "set": {"width": 4, "dropout": 0.0, "batch_size": 16},
    "wandb": "disabled",
    "gpus_per_trial": 0.25,
    "allow_cpu": True,
}
NODE = "node"  # file in the trial's folder: where it runs
EPOCHS = "epochs"  # file in the trial's folder: those that were begun
GPUS = "gpus"  # file in the trial's folder: those that it saw, by CUDA's own rule


class DyingTrial(Pix2PixTrial):  # type: ignore[misc]
    """Each trial its own death, in its second epoch."""

    def _begin(self) -> TrainingRun:
        run, folder = super()._begin(), Path(self.config["folder"])
        train = run.run_epoch

        def run_epoch() -> Any:
            epoch = len(run.reports) + 1
            folder.mkdir(parents=True, exist_ok=True)
            (folder / GPUS).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            with (folder / EPOCHS).open("a") as begun:
                begun.write(f"{epoch}\n")
            is_first = (folder / EPOCHS).read_text().split().count("2") == 1
            if epoch == 2:
                before_epoch(self.config["number"], folder, is_first)
            report = train()
            if epoch == 2 and self.config["number"] == KILLED_LATE and is_first:
                os.kill(os.getpid(), signal.SIGKILL)  # the checkpoint has what nobody was told
            return report

        run.run_epoch = run_epoch  # type: ignore[method-assign]
        return run


def before_epoch(number: int, folder: Path, is_first: bool) -> None:
    if number == DOOMED or (number == KILLED and is_first):
        os.kill(os.getpid(), signal.SIGKILL)
    elif number == HUNG and is_first:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif number == OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    elif number == NODE_LOST and is_first:
        (folder / NODE).write_text(ray.get_runtime_context().get_node_id())
        time.sleep(3600)


def lose_a_node(cluster: Cluster, file: Path) -> None:
    """The one whose trial waits for it."""
    while not (file.exists() and (node_id := file.read_text())):
        time.sleep(0.1)
    (node,) = (node for node in cluster.list_all_nodes() if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


def main(folder: Path) -> None:
    hang_watchdog.FLOOR_SECONDS = 20.0
    trials.Pix2PixTrial = DyingTrial  # type: ignore[misc]
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes.add_node(num_cpus=1, num_gpus=1)
    nodes.add_node(num_cpus=1, num_gpus=1)
    asked = SearchConfig(**SEARCH, address=nodes.address)
    record = Record.create(folder, "first", asked)
    threading.Thread(target=lose_a_node, args=(nodes, record.trial_folder(NODE_LOST) / NODE), daemon=True).start()
    images = DataConfig().load()
    with ray_session.RaySession(asked) as cluster:
        context = SearchContext(
            record=record,
            replicator=StorageReplicator(record, None, lambda _: None),
            images_ref=ray.put(images),
            cluster=cluster,
            budget=TimeAndCostBudget(asked, record.trials, None),
            console=Console(stderr=True),
            progress=Progress(asked, "first", cluster.slots, Console(stderr=True)),
        )
        trials.run_trials(context, search_spaces.load("losses_and_rates"))
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
