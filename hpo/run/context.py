"""What the phases of a search share once Ray runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from rich.console import Console

from hpo.cluster import trial_slots
from hpo.cluster.budget import COST, TimeAndCostBudget, create_budget
from hpo.policy.search_config import SEARCH_FILE
from hpo.store import search_results
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.tune.on_demand_fallback import OnDemandFallback
from hpo.views.progress import Progress
from model.common.errors import ConfigError
from model.training_report import objective_value

if TYPE_CHECKING:
    from hpo.tracking.tensorboard import TensorBoard
    from hpo.tracking.wandb_tracker import Tracker


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchContext:
    """What every phase of a search works with."""

    record: Record
    replicator: StorageReplicator
    images_ref: ray.ObjectRef  # the images in Ray's object store
    cluster: trial_slots.Cluster
    console: Console
    progress: Progress
    budget: TimeAndCostBudget
    tracker: Tracker | None = None  # None: the search does not log to W&B

    def say(self, line: str) -> None:
        """Print a plain line, unwrapped."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def training_config(self, number: int, train: dict[str, Any], folder: Path, cpus: float) -> dict[str, Any]:
        """Return the configuration that a process of a trial, a measurement or the final training is created with.

        Args:
            train: The TrainConfig as a dictionary; empty for a measurement.
            folder: Where the checkpoints are, below the folder of the search.
        """
        search, inside = self.record.search, folder.relative_to(self.record.folder)
        storage = self.replicator.worker_config(inside.as_posix())
        return {
            "number": number,
            "train": train,
            "folder": str(Path(self.cluster.scratch) / inside if storage else folder.absolute()),
            "storage": storage,
            "needs": str(self.record.folder.absolute() / SEARCH_FILE),
            "noise": search.noise,
            "objective": search.objective,
            "cpus": cpus,
            "gpus": self.cluster.gpus_per_trial,
            "figures": None,
            "allow_cpu": search.allow_cpu,
        }

    def with_value(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics and, as `value`, what the objective of the search makes of them."""
        value = objective_value(metrics, self.record.search.objective)
        return {**metrics, "value": value}

    def save_cost(self) -> None:
        """Write the cost so far to the record, so that the next driver continues from it."""
        if self.budget.usd is not None:
            self.record.set_metadata(COST, self.budget.usd)
            self.replicator.mark_dirty()

    def on_demand_fallback(self) -> OnDemandFallback:
        """Return what requests on-demand nodes while no spot nodes are available."""
        return OnDemandFallback(self.cluster, self.progress.print_line, 60 * self.record.search.on_demand_after_minutes)

    def tensorboard(self) -> TensorBoard | None:
        """Return a writer of TensorBoard events if the search asks for one."""
        if not self.record.search.tensorboard:
            return None
        from hpo.tracking.tensorboard import TensorBoard  # noqa: PLC0415 - an optional service

        return TensorBoard(self.record)


def open_budget(record: Record, cluster: trial_slots.Cluster) -> TimeAndCostBudget:
    """Return the budget of this driver; it counts from what earlier drivers have spent.

    Raises:
        ConfigError: The cost limit is used up, or does not suffice for what must follow the trials.
    """
    spent = record.metadata().get(COST, 0.0)
    budget = create_budget(record.search, spent, record.trials, cluster.monitor, cluster.limits)
    if not budget.allows_running_trials() and search_results.winner(record) is None:
        raise ConfigError(
            f"max_cost={record.search.max_cost:g}: {spent:.2f} USD are spent, and finalists, final training and export "
            "are expected to cost the rest; no trial can begin"
        )
    return budget


def create_tracker(record: Record, console: Console) -> Tracker | None:
    """Return what logs to W&B, to be closed after the export; None if the search does not log there."""
    if record.search.wandb == "disabled":
        return None
    from hpo.tracking.wandb_tracker import Tracker  # noqa: PLC0415 - an optional service

    return Tracker(record, lambda line: console.print(line, highlight=False, soft_wrap=True))
