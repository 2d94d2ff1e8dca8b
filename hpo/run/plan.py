"""The plan of a search, as `hpo search` prints it at the start."""

from __future__ import annotations

from hpo.cluster.trial_slots import Cluster
from hpo.policy import report_decision
from hpo.policy.report_decision import expected_epochs
from hpo.policy.search_config import SearchConfig
from hpo.store.record import Record
from hpo.store.study_replication import similar_name


def describe_plan(record: Record, cluster: Cluster) -> str:
    """Return the lines that say what a search is going to do, with which resources, and where its results go."""
    search = record.search
    images = f"{search.images_per_epoch:,}" if search.images_per_epoch else "all training"
    gpus = f"{cluster.gpus_per_trial:g} GPUs and " if cluster.gpus_per_trial else ""
    lines = [
        f"{record.name}: {_beginning(record)}",
        f"  {search.trials} trials of up to {search.epochs} epochs of {images} images; {_pruning(search)}",
        f"  space {search.space}, {_objectives(search)}, noise {search.noise}, seed {search.seed}",
        f"  {cluster.slots} at a time with {gpus}{search.cpus_per_trial:g} CPUs each; W&B {search.wandb}",
    ]
    if search.replicates:
        lines.append(f"  then the finalists' settings with {search.replicates} fresh seeds each; worse ones end early")
    if search.final_epochs:
        lines.append(f"  then {search.final_epochs} epochs of the winner's configuration, and the export")
    if cluster.slots_now < cluster.slots:
        lines.append(f"  {cluster.slots_now} of them now; the cluster grows")
    if cluster.head_cpus:
        lines.append(
            f"  the head has {cluster.head_cpus:g} CPUs, so trials also run there, and may take it down; "
            "`ray start --head --num-cpus=0` prevents that"
        )
    copied = f", a copy of what is in {record.storage}" if record.storage else ""
    return "\n".join([*lines, f"  folder {record.folder}{copied}"])


def _beginning(record: Record) -> str:
    if trials := record.trials():
        return f"continues with {len(trials)} trials on record"
    similar = similar_name(record.name, record.user_folder.parent, None)
    return f"a new search{f', not {similar}, which also exists' if similar else ''}"


def _objectives(search: SearchConfig) -> str:
    limits = "".join(f", {limit}" for limit in search.limits())
    return f"{'objectives' if search.is_multi_objective else 'objective'} {' and '.join(search.objectives)}{limits}"


def _pruning(search: SearchConfig) -> str:
    if search.pruner.endswith(".py"):
        return f"pruned by {search.pruner}"
    first = report_decision.next_comparison(0, search)
    if first is None:
        return "none is pruned"
    expected = search.trials * expected_epochs(search)
    return f"weak ones are pruned from epoch {first} on, so that about {expected:.0f} epochs are run"
