"""Two searches on a node with two GPUs that exist for Ray alone: python gpu_search.py FOLDER

Prints the GPUs that the trials of the first one saw, all of them running at once, and the error that ends the second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from rich.console import Console

import search_spaces
from hpo.cluster.budget import TimeAndCostBudget
from hpo.policy.search_config import SearchConfig
from hpo.run import trials
from hpo.run.context import SearchContext
from hpo.run.plan import describe_plan
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.tune import ray_session
from hpo.tune.trainable import Pix2PixTrial
from hpo.views.progress import Progress
from model.common.errors import MachineError
from model.data.data_config import DataConfig
from model.training_run import TrainingRun

TRIALS = 4
SEEN = "gpu"  # file in the trial's folder: CUDA_VISIBLE_DEVICES


class SeeingTrial(Pix2PixTrial):  # type: ignore[misc]
    """Waits for the others before it trains."""

    def _begin(self) -> TrainingRun:
        folder = Path(self.config["folder"])
        folder.mkdir(parents=True)
        (folder / SEEN).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        while len(list(folder.parent.glob(f"*/{SEEN}"))) < TRIALS:
            time.sleep(0.1)
        return super()._begin()


def main(folder: Path) -> None:
    trials.Pix2PixTrial = SeeingTrial  # type: ignore[misc]
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
    images, space = DataConfig().load(), search_spaces.load("losses_and_rates")
    small = {"width": 2, "dropout": 0.0, "batch_size": 16}
    asked = SearchConfig(trials=TRIALS, epochs=1, images_per_epoch=64, set=small, wandb="disabled")
    asked = replace(asked, address=nodes.address, gpus_per_trial=0.5, cpus_per_trial=0.5)
    for name, allowed in (("first", True), ("second", False)):
        record = Record.create(folder, name, replace(asked, allow_cpu=allowed))
        with ray_session.RaySession(record.search) as cluster:
            context = SearchContext(
                record=record,
                replicator=StorageReplicator(record, None, lambda _: None),
                images_ref=ray.put(images),
                cluster=cluster,
                budget=TimeAndCostBudget(asked, record.trials, None),
                console=Console(stderr=True),
                progress=Progress(asked, name, cluster.slots, Console(stderr=True)),
            )
            context.console.print(describe_plan(record, cluster), soft_wrap=True)
            try:
                trials.run_trials(context, space)
                print(json.dumps([path.read_text() for path in record.folder.glob(f"trials/*/{SEEN}")]))
            except MachineError as error:
                print(json.dumps(str(error)))
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
